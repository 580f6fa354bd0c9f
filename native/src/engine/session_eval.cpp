// Evaluation: plan the cache, build the graph or take the last one again, run it, commit. Only commit changes what the
// session holds.
#include <algorithm>
#include <new>
#include <utility>

#include "engine/session_impl.h"

namespace pysa {

void Session::Impl::eval(const int32_t * tokens, int64_t n_tokens, Logits logits, const LogitsSink & sink,
                         const Interrupt & interrupt) {
    check_room(n_tokens);
    const int64_t n_before = cache_.n_past();
    try {
        tokens_.insert(tokens_.end(), tokens, tokens + n_tokens);  // checked here: the caller's may change meanwhile
        check_tokens(n_before);
        cache_.reserve(n_before + n_tokens);
        eval_ubatches(n_before, logits, sink, interrupt);
    } catch (const std::bad_alloc &) {
        tokens_.resize(size_t(n_before));
        throw DeviceError("evaluation: out of memory: cannot hold " + std::to_string(n_tokens) +
                          " more tokens; evaluate fewer at once");
    } catch (...) {
        tokens_.resize(size_t(n_before));
        throw;
    }
}

void Session::Impl::eval_ubatches(int64_t n_before, Logits logits, const LogitsSink & sink,
                                  const Interrupt & interrupt) {
    const int64_t n_end = int64_t(tokens_.size()), n_tokens = n_end - n_before;
    const bool needs_undo = cache_.ring().overwrites_window(n_before, n_tokens) && cache_.layout().has_ring();
    // Without a snapshot the rows below n_before that a query there needs stay; older ones count as overwritten.
    const RingSnapshot undo =
        needs_undo ? cache_.snapshot() : RingSnapshot{n_before, std::max(cache_.ring().n_written, n_end), {}};
    try {
        while (cache_.n_past() < n_end) {
            const int64_t n = ubatch_size(n_end - cache_.n_past());
            const bool is_last = cache_.n_past() + n == n_end;
            step(n, logits == Logits::all ? n : logits == Logits::last && is_last ? 1 : 0, sink, interrupt);
        }
    } catch (...) {
        needs_undo ? cache_.restore(undo) : cache_.restore_position(undo.n_past, undo.n_written);
        throw;
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

// As many tokens as n_ubatch and the budget for shared scores allow at the depth they end at.
int64_t Session::Impl::ubatch_size(int64_t n_left) const {
    const int64_t n = std::min<int64_t>(n_left, params_.n_ubatch);
    const int64_t per_token = attention_->bytes_per_token(cache_.n_past() + n);
    return per_token == 0 ? n : std::clamp<int64_t>(params_.distant_budget_bytes / per_token, 1, n);
}

void Session::Impl::step(int64_t n_tokens, int64_t n_out, const LogitsSink & sink, const Interrupt & interrupt) {
    if (interrupt && interrupt()) throw Interrupted("evaluation: interrupted");
    const AttnStep now{cache_.n_past(), n_tokens};
    StepGraph graph = std::exchange(graph_, {});  // kept for the next step only if this one succeeds
    if (graph.gf && builder_->can_reuse(now, n_out)) {
        builder_->reuse(now);
    } else {
        graph_ctx_.reset(ggml_init({graph_memory_.size(), graph_memory_.data(), true}));
        graph = builder_->build(graph_ctx_.get(), now, n_out);
        compute_.allocate(graph.gf);
    }
    builder_->set_inputs(tokens_.data() + now.n_past);
    compute_.run(graph.gf, interrupt);
    if (graph.logits) sink(ggml_get_data_f32(graph.logits), n_out);  // the CPU backend's memory is the host's
    cache_.commit(n_tokens);
    graph_ = graph;
}

}  // namespace pysa
