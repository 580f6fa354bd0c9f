// Picks the next token from logits: libllama's samplers, in one order. Deterministic: one seed, one sequence of calls, one result.
//
//   logit bias, penalties, grammar; then the likeliest, or mirostat, or top-k, typical, top-p, min-p, temperature and a draw
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "pysa/vocab.h"

struct llama_sampler;

namespace pysa {

struct SamplerParams {
    float temperature = 0.8f;  // 0: the likeliest token; below 0: a draw from the logits as they are
    int32_t top_k = 40;        // 0: off
    float top_p = 0.95f;       // 1: off
    float min_p = 0.05f;       // 0: off
    uint32_t seed = 0;         // below 2^32 - 1

    float typical_p = 1.0f;          // 1: off
    float repeat_penalty = 1.0f;     // 1: off
    float frequency_penalty = 0.0f;  // 0: off
    float presence_penalty = 0.0f;   // 0: off
    int32_t penalty_last_n = 64;     // accepted tokens that are penalised
    int32_t mirostat_mode = 0;       // 0: off; 1, 2
    float mirostat_tau = 5.0f;
    float mirostat_eta = 0.1f;

    std::map<int32_t, float> logit_bias;  // token to what is added; -inf excludes it
    std::string grammar;                  // GBNF; empty: none
    std::string grammar_root = "root";
    std::shared_ptr<const Vocab> vocab;  // needed with bias, penalties, grammar or mirostat 1
};

class Sampler {
  public:
    explicit Sampler(const SamplerParams & params);  // ArgumentError
    ~Sampler();

    // logits [n_vocab]; -inf excludes a token. The token is accepted. ArgumentError if none is left or one is NaN or +inf.
    int32_t sample(const float * logits, int32_t n_vocab);

    // Moves penalties and grammar on by a token that somebody else chose. ArgumentError if the grammar does not allow it.
    void accept(int32_t token);

    // Forgets what was accepted, and draws from the seed again.
    void reset();

    // As it is now, grammar and random numbers included.
    std::unique_ptr<Sampler> clone() const;

  private:
    struct Deleter { void operator()(llama_sampler * sampler) const; };
    using Chain = std::unique_ptr<llama_sampler, Deleter>;

    Sampler() = default;
    void check_token(int32_t token) const;
    void make_grammar();
    bool grammar_allows(int32_t token) const;
    int32_t pick(int32_t n_vocab);

    SamplerParams params_;
    Chain rules_;                      // bias and penalties; none where there are none
    Chain grammar_;                    // none without a grammar
    Chain choice_;                     // none at a temperature of 0
    std::vector<uint8_t> candidates_;  // llama_token_data, kept to avoid an allocation per token
};

// A GBNF grammar of the JSON texts that a JSON schema allows. ArgumentError.
std::string json_schema_to_gbnf(const std::string & schema_json);

}  // namespace pysa
