// Evaluation: plan the cache, step, commit. Only commit changes what the session holds.
#include <algorithm>
#include <new>
#include <utility>

#include "engine/placement.h"
#include "engine/session_impl.h"

namespace pysa {

void Session::Impl::eval(const int32_t * tokens, int64_t n_tokens, Logits logits, const LogitsSink & sink,
                         const Interrupt & interrupt) {
    model_->check_process();
    begin(n_tokens);
    try {
        take_in(tokens, n_tokens, logits == Logits::all);
        eval_ubatches(logits, sink, interrupt);
        keep();
    } catch (const std::bad_alloc &) {
        revert();
        throw DeviceError("evaluation: out of memory: cannot hold " + std::to_string(n_tokens) +
                          " more tokens; evaluate fewer at once");
    } catch (...) {
        revert();
        throw;
    }
}

void Session::Impl::begin(int64_t n_tokens) {
    check_room(n_tokens);
    cache_.hold(n_tokens);
}

void Session::Impl::take_in(const int32_t * tokens, int64_t n_tokens, bool wants_all_rows) {
    const int64_t n_before = cache_.n_past();
    tokens_.insert(tokens_.end(), tokens, tokens + n_tokens);  // checked here: the caller's may change meanwhile
    check_tokens(n_before);
    cache_.keep_free(free_bytes_for_steps(n_before + n_tokens, wants_all_rows));
    cache_.reserve(n_before + n_tokens);
}

// What steps up to n positions may need beyond what they hold already.
int64_t Session::Impl::free_bytes_for_steps(int64_t n, bool wants_all_rows) const {
    if (first_gpu_layer_ == hp_.n_layer) return 0;
    const int64_t n_ubatch = std::min<int64_t>(params_.n_ubatch, n);
    const int64_t shared = std::min(params_.distant_budget_bytes, n_ubatch * attention_->bytes_per_token(n));
    const int64_t one_token = 4 * n * (hp_.n_head + table_.n_slots);
    const int64_t logits = wants_all_rows ? 4 * n_ubatch * hp_.n_vocab : 0;
    return std::max<int64_t>(0, activation_bytes(hp_, n_ubatch) + logits - compute_.size_bytes()) +
           std::max<int64_t>(0, shared + one_token - attention_->size_bytes());
}

void Session::Impl::revert() {
    cache_.undo();
    tokens_.resize(size_t(cache_.n_past()));
}

void Session::Impl::eval_ubatches(Logits logits, const LogitsSink & sink, const Interrupt & interrupt) {
    const int64_t n_end = int64_t(tokens_.size());
    const bool all = logits == Logits::all || logits == Logits::embeddings;
    const StepOut out = logits == Logits::embeddings ? StepOut::embeddings : StepOut::logits;
    StepLane & lane = lanes_.front();
    while (cache_.n_past() < n_end) {
        const int64_t n = ubatch_size(n_end - cache_.n_past());
        const bool is_last = cache_.n_past() + n == n_end;
        lane.step = {cache_.n_past(), n};
        lane.n_out = all ? n : logits == Logits::last && is_last ? 1 : 0;
        cache_.log_overwritten(n);
        const float * rows = stepper_->step(lanes_, out, tokens_.data() + lane.step.n_past, interrupt);
        if (rows) sink(rows, lane.n_out);
        cache_.commit(n);
    }
}

void Session::Impl::check_room(int64_t n_tokens) const {
    if (n_tokens < 1) throw ArgumentError("tokens: expected at least one, got none");
    const int64_t n_left = params_.n_ctx - cache_.n_past();
    if (n_tokens > n_left)
        throw ContextFullError("context: expected at most " + std::to_string(n_left) + " more tokens (n_ctx " +
                               std::to_string(params_.n_ctx) + ", held " + std::to_string(cache_.n_past()) + "), got " +
                               std::to_string(n_tokens) + "; truncate, or make a session with a larger n_ctx");
}

void Session::Impl::check_tokens(int64_t first) const {
    for (size_t i = size_t(first); i < tokens_.size(); ++i)
        if (tokens_[i] < 0 || tokens_[i] >= hp_.n_vocab)
            throw ArgumentError("tokens[" + std::to_string(int64_t(i) - first) + "]: expected 0 to " +
                                std::to_string(hp_.n_vocab - 1) + ", got " + std::to_string(tokens_[i]));
}

int64_t Session::Impl::ubatch_size(int64_t n_left) const {
    // ggml's CUDA kernels have a token for each block of a grid's second dimension, which may have 65,535.
    const int64_t n_most = compute_.gpu() ? std::min(params_.n_ubatch, 32768) : params_.n_ubatch;
    const int64_t n = std::min<int64_t>(n_left, n_most);
    const int64_t per_token = attention_->bytes_per_token(cache_.n_past() + n);
    return per_token == 0 ? n : std::clamp<int64_t>(params_.distant_budget_bytes / per_token, 1, n);
}

}  // namespace pysa
