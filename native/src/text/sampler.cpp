#include "pysa/sampler.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>

#include "base/log.h"
#include "llama.h"
#include "pysa/error.h"

namespace pysa {

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

void check_params(const SamplerParams & params) {
    Faults faults("sampler");
    const auto expect = [&](bool holds, const char * what, double found) {
        if (!holds) faults.add(std::string(what) + ", got " + std::to_string(found));
    };
    expect(std::isfinite(params.temperature) && params.temperature >= 0, "temperature: expected a number of at least 0",
           params.temperature);
    expect(params.top_k >= 0, "top_k: expected at least 0", params.top_k);
    expect(params.top_p > 0 && params.top_p <= 1, "top_p: expected a number above 0 and at most 1", params.top_p);
    expect(params.min_p >= 0 && params.min_p < 1, "min_p: expected a number of at least 0 and below 1", params.min_p);
    // libllama takes the largest seed as "draw one".
    expect(params.seed != LLAMA_DEFAULT_SEED, "seed: expected a number below 4294967295", params.seed);
    faults.raise_if_any<ArgumentError>();
}

[[noreturn]] void refuse(const float * logits, int32_t n_vocab) {
    for (int32_t i = 0; i < n_vocab; ++i)
        if (!(logits[i] < infinity))
            throw ArgumentError("logits: expected finite numbers, got " + std::to_string(logits[i]) + " for token " +
                                std::to_string(i));
    throw ArgumentError("logits: expected a token that is not excluded, got -inf for all");
}

// Integers in the order of the numbers, nan beyond infinity on either side: compilers make vectors of their comparison.
int32_t order(float x) {
    int32_t bits;
    std::memcpy(&bits, &x, sizeof(bits));
    return bits ^ ((bits >> 31) & INT32_MAX);
}

// The first token of the largest logit; every logit is checked.
int32_t likeliest(const float * logits, int32_t n_vocab) {
    constexpr int32_t n_block = 1024;
    int32_t best = order(-infinity), best_block = -1;
    for (int32_t begin = 0; begin < n_vocab; begin += n_block) {
        int32_t largest = INT32_MIN, smallest = INT32_MAX;
        for (int32_t i = begin; i < std::min(begin + n_block, n_vocab); ++i) {
            const int32_t key = order(logits[i]);
            largest = std::max(largest, key);
            smallest = std::min(smallest, key);
        }
        if (largest >= order(infinity) || smallest < order(-infinity)) refuse(logits, n_vocab);
        if (largest > best) {
            best = largest;
            best_block = begin;
        }
    }
    if (best_block < 0) refuse(logits, n_vocab);
    const auto is_best = [best](float logit) { return order(logit) == best; };
    return int32_t(std::find_if(logits + best_block, logits + n_vocab, is_best) - logits);
}

}  // namespace

Sampler::Sampler(const SamplerParams & params) {
    check_params(params);
    if (params.temperature == 0.0f) return;
    init_logging();
    llama_sampler_chain_params chain_params = llama_sampler_chain_default_params();
    chain_params.no_perf = true;
    chain_ = llama_sampler_chain_init(chain_params);
    const auto add = [&](llama_sampler * sampler) { llama_sampler_chain_add(chain_, sampler); };
    if (params.top_k > 0) add(llama_sampler_init_top_k(params.top_k));
    if (params.top_p < 1.0f) add(llama_sampler_init_top_p(params.top_p, 1));
    if (params.min_p > 0.0f) add(llama_sampler_init_min_p(params.min_p, 1));
    add(llama_sampler_init_temp(params.temperature));
    add(llama_sampler_init_dist(params.seed));
}

Sampler::~Sampler() {
    if (chain_) llama_sampler_free(chain_);
}

int32_t Sampler::sample(const float * logits, int32_t n_vocab) {
    if (n_vocab < 1) throw ArgumentError("logits: expected at least one, got " + std::to_string(n_vocab));
    const int32_t first_best = likeliest(logits, n_vocab);
    if (!chain_) return first_best;

    candidates_.resize(sizeof(llama_token_data) * static_cast<size_t>(n_vocab));
    auto * data = reinterpret_cast<llama_token_data *>(candidates_.data());
    for (int32_t i = 0; i < n_vocab; ++i) data[i] = {i, logits[i], 0.0f};
    llama_token_data_array array = {data, static_cast<size_t>(n_vocab), -1, false};
    llama_sampler_apply(chain_, &array);
    if (array.selected < 0 || static_cast<size_t>(array.selected) >= array.size) {
        throw DeviceError("sampler: libllama selected no token");
    }
    const llama_token token = array.data[array.selected].id;
    llama_sampler_accept(chain_, token);
    return token;
}

}  // namespace pysa
