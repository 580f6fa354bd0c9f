// Picks the next token from logits. Deterministic: one seed, one sequence of calls, one result.
#pragma once

#include <cstdint>
#include <vector>

struct llama_sampler;

namespace pysa {

struct SamplerParams {
    float temperature = 0.8f;  // 0: the likeliest token, the rest is ignored
    int32_t top_k = 40;        // 0: off
    float top_p = 0.95f;       // 1: off
    float min_p = 0.05f;       // 0: off
    uint32_t seed = 0;         // below 2^32 - 1
};

class Sampler {
  public:
    explicit Sampler(const SamplerParams & params);  // ArgumentError
    ~Sampler();
    Sampler(const Sampler &) = delete;
    Sampler & operator=(const Sampler &) = delete;

    // logits [n_vocab]; -inf excludes a token. ArgumentError if none is left or one is NaN or +inf.
    int32_t sample(const float * logits, int32_t n_vocab);

  private:
    llama_sampler * chain_ = nullptr;  // none at a temperature of 0
    std::vector<uint8_t> candidates_;  // llama_token_data, kept to avoid an allocation per token
};

}  // namespace pysa
