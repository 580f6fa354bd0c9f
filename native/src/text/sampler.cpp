#include "pysa/sampler.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>

#include "base/log.h"
#include "llama.h"
#include "pysa/error.h"
#include "text/deep_stack.h"

namespace pysa {

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

bool penalises(const SamplerParams & params) {
    return params.penalty_last_n > 0 &&
           (params.repeat_penalty != 1.0f || params.frequency_penalty != 0.0f || params.presence_penalty != 0.0f);
}

void check_params(const SamplerParams & params) {
    Faults faults("sampler");
    const auto expect = [&](bool holds, const char * what, double found) {
        if (!holds) faults.add(std::string(what) + ", got " + std::to_string(found));
    };
    const auto expect_finite = [&](float x, const char * name) {
        expect(std::isfinite(x), (std::string(name) + ": expected a finite number").c_str(), x);
    };
    expect_finite(params.temperature, "temperature");
    expect(params.top_k >= 0, "top_k: expected at least 0", params.top_k);
    expect(params.top_p > 0 && params.top_p <= 1, "top_p: expected a number above 0 and at most 1", params.top_p);
    expect(params.min_p >= 0 && params.min_p < 1, "min_p: expected a number of at least 0 and below 1", params.min_p);
    expect(params.typical_p > 0 && params.typical_p <= 1, "typical_p: expected a number above 0 and at most 1",
           params.typical_p);
    expect(std::isfinite(params.repeat_penalty) && params.repeat_penalty > 0,
           "repeat_penalty: expected a number above 0", params.repeat_penalty);
    expect_finite(params.frequency_penalty, "frequency_penalty");
    expect_finite(params.presence_penalty, "presence_penalty");
    expect(params.penalty_last_n >= 0 && params.penalty_last_n <= 1 << 20,
           "penalty_last_n: expected 0 to 1048576 tokens", params.penalty_last_n);
    expect(params.mirostat_mode >= 0 && params.mirostat_mode <= 2, "mirostat_mode: expected 0, 1 or 2",
           params.mirostat_mode);
    expect_finite(params.mirostat_tau, "mirostat_tau");
    expect_finite(params.mirostat_eta, "mirostat_eta");
    // libllama takes the largest seed as "draw one".
    expect(params.seed != LLAMA_DEFAULT_SEED, "seed: expected a number below 4294967295", params.seed);

    const int32_t n_vocab = params.vocab ? params.vocab->n_tokens() : 0;
    if (!params.vocab &&
        (penalises(params) || !params.logit_bias.empty() || !params.grammar.empty() || params.mirostat_mode == 1))
        faults.add(
            "vocab: expected the model's vocabulary with penalties, logit_bias, grammar or mirostat 1, got none");
    for (const auto & [token, bias] : params.logit_bias) {
        if (params.vocab && (token < 0 || token >= n_vocab))
            expect(false, ("logit_bias: expected tokens of 0 to " + std::to_string(n_vocab - 1)).c_str(), token);
        if (!(bias < infinity)) expect(false, "logit_bias: expected numbers or -inf", bias);
    }
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

// The first line of what libllama logged, without the function's name; the grammar itself follows it there.
std::string reason(std::string logged) {
    logged.resize(std::min(logged.find('\n'), logged.size()));
    if (const size_t name = logged.find(": "); name != std::string::npos) logged.erase(0, name + 2);
    constexpr size_t n_most = 160;  // a parser quotes all the rest of the text
    return logged.size() <= n_most ? logged : logged.substr(0, n_most) + "...";
}

llama_sampler * new_chain() {
    llama_sampler_chain_params params = llama_sampler_chain_default_params();
    params.no_perf = true;
    return llama_sampler_chain_init(params);
}

llama_token_data_array as_array(std::vector<uint8_t> & candidates, size_t n) {
    return {reinterpret_cast<llama_token_data *>(candidates.data()), n, -1, false};
}

// The first of the largest; they are in the tokens' order.
const llama_token_data & largest(const llama_token_data_array & array) {
    return *std::max_element(array.data, array.data + array.size,
                             [](const auto & a, const auto & b) { return a.logit < b.logit; });
}

}  // namespace

void Sampler::Deleter::operator()(llama_sampler * sampler) const { llama_sampler_free(sampler); }

Sampler::Sampler(const SamplerParams & params) : params_(params) {
    check_params(params);
    init_logging();
    const int32_t n_vocab = params.vocab ? params.vocab->n_tokens() : 0;
    if (penalises(params) || !params.logit_bias.empty()) rules_.reset(new_chain());
    if (!params.logit_bias.empty()) {
        std::vector<llama_logit_bias> biases;
        for (const auto & [token, bias] : params.logit_bias) biases.push_back({token, bias});
        llama_sampler_chain_add(rules_.get(),
                                llama_sampler_init_logit_bias(n_vocab, int32_t(biases.size()), biases.data()));
    }
    if (penalises(params))
        llama_sampler_chain_add(rules_.get(),
                                llama_sampler_init_penalties(n_vocab, params.penalty_last_n, params.repeat_penalty,
                                                             params.frequency_penalty, params.presence_penalty));
    if (!params.grammar.empty()) make_grammar();
    if (params.temperature == 0.0f) return;

    choice_.reset(new_chain());
    const auto add = [&](llama_sampler * sampler) { llama_sampler_chain_add(choice_.get(), sampler); };
    if (params.temperature < 0) {
        add(llama_sampler_init_dist(params.seed));
    } else if (params.mirostat_mode == 1) {
        constexpr int32_t n_estimate = 100;  // tokens that the paper estimates the slope from
        add(llama_sampler_init_mirostat(n_vocab, params.seed, params.mirostat_tau, params.mirostat_eta, n_estimate));
    } else if (params.mirostat_mode == 2) {
        add(llama_sampler_init_mirostat_v2(params.seed, params.mirostat_tau, params.mirostat_eta));
    } else {
        if (params.top_k > 0) add(llama_sampler_init_top_k(params.top_k));
        if (params.typical_p < 1.0f) add(llama_sampler_init_typical(params.typical_p, 1));
        if (params.top_p < 1.0f) add(llama_sampler_init_top_p(params.top_p, 1));
        if (params.min_p > 0.0f) add(llama_sampler_init_min_p(params.min_p, 1));
        add(llama_sampler_init_temp(params.temperature));
        add(llama_sampler_init_dist(params.seed));
    }
}

Sampler::~Sampler() = default;

// Its parser recurses with every bracket.
void Sampler::make_grammar() {
    if (params_.grammar.find('\0') != std::string::npos)
        throw ArgumentError("grammar: expected text without NUL, got one");
    take_logged_errors();
    llama_sampler * made = nullptr;
    std::string fault;
    with_deep_stack(params_.grammar.size(), [&] {
        try {
            made = llama_sampler_init_grammar(params_.vocab->handle(), params_.grammar.c_str(),
                                              params_.grammar_root.c_str());
        } catch (const std::exception & error) {
            fault = error.what();
        }
        if (!made && fault.empty()) fault = reason(take_logged_errors());
    });
    if (!made)
        throw ArgumentError("grammar: expected GBNF with a rule `" + params_.grammar_root +
                            "`, got a text that libllama refuses" + (fault.empty() ? "" : ": " + fault));
    grammar_.reset(made);
}

bool Sampler::grammar_allows(int32_t token) const {
    llama_token_data one{token, 1.0f, 0.0f};
    llama_token_data_array array{&one, 1, -1, false};
    llama_sampler_apply(grammar_.get(), &array);
    return one.logit == 1.0f;
}

void Sampler::check_token(int32_t token) const {
    if (params_.vocab && (token < 0 || token >= params_.vocab->n_tokens()))
        throw ArgumentError("token: expected 0 to " + std::to_string(params_.vocab->n_tokens() - 1) + ", got " +
                            std::to_string(token));
}

void Sampler::accept(int32_t token) {
    check_token(token);
    if (grammar_) {
        // libllama ends the process over a token that its grammar does not allow.
        if (!grammar_allows(token))
            throw ArgumentError("grammar: expected a token that it allows here, got " + std::to_string(token));
        llama_sampler_accept(grammar_.get(), token);
    }
    if (rules_) llama_sampler_accept(rules_.get(), token);
    if (choice_) llama_sampler_accept(choice_.get(), token);
}

void Sampler::reset() {
    if (rules_) llama_sampler_reset(rules_.get());
    if (choice_) llama_sampler_reset(choice_.get());
    if (grammar_) make_grammar();
}

std::unique_ptr<Sampler> Sampler::clone() const {
    std::unique_ptr<Sampler> copy(new Sampler());
    copy->params_ = params_;
    if (rules_) copy->rules_.reset(llama_sampler_clone(rules_.get()));
    if (grammar_) copy->grammar_.reset(llama_sampler_clone(grammar_.get()));
    if (choice_) copy->choice_.reset(llama_sampler_clone(choice_.get()));
    return copy;
}

// From the candidates, which bias and penalties have been applied to.
int32_t Sampler::pick(int32_t n_vocab) {
    llama_token_data_array array = as_array(candidates_, size_t(n_vocab));
    if (!choice_) {
        const llama_token_data & first = largest(array);
        const bool is_left = first.logit > -infinity;
        if (is_left && (!grammar_ || grammar_allows(first.id)))
            return first.id;  // most are, and asking for all is slow
    }
    if (grammar_) llama_sampler_apply(grammar_.get(), &array);
    const llama_token_data best = largest(array);
    if (!(best.logit > -infinity))
        throw ArgumentError("sampler: expected a token that grammar and bias allow, got none in the vocabulary");
    if (!choice_) return best.id;
    llama_sampler_apply(choice_.get(), &array);
    if (array.selected < 0 || size_t(array.selected) >= array.size)
        throw DeviceError("sampler: libllama selected no token");
    return array.data[array.selected].id;
}

int32_t Sampler::sample(const float * logits, int32_t n_vocab) {
    if (n_vocab < 1) throw ArgumentError("logits: expected at least one, got " + std::to_string(n_vocab));
    if (params_.vocab && n_vocab != params_.vocab->n_tokens())
        throw ArgumentError("logits: expected one per token of the vocabulary, " +
                            std::to_string(params_.vocab->n_tokens()) + ", got " + std::to_string(n_vocab));
    const int32_t first_best = likeliest(logits, n_vocab);
    if (!rules_ && !grammar_ && !choice_) return first_best;

    candidates_.resize(sizeof(llama_token_data) * size_t(n_vocab));
    llama_token_data_array array = as_array(candidates_, size_t(n_vocab));
    for (int32_t i = 0; i < n_vocab; ++i) array.data[i] = {i, logits[i], 0.0f};
    if (rules_) llama_sampler_apply(rules_.get(), &array);
    const int32_t token = pick(n_vocab);
    accept(token);
    return token;
}

}  // namespace pysa
