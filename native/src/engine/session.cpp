// Evaluation: plan the cache, build the graph, run it, commit. Only commit changes what the session holds.
#include "pysa/session.h"

#include <algorithm>

#include "engine/session_impl.h"
#include "graph/weights.h"
#include "kv/cache_types.h"

namespace pysa {

namespace {

constexpr size_t n_checkpoints_max = 8;  // the oldest goes first; rollback_position tells what is left

// Refuses a second thread instead of racing it.
class Turn {
  public:
    explicit Turn(std::atomic_flag & busy) : busy_(busy) {
        if (busy_.test_and_set())
            throw SessionBusyError(
                "session: expected one thread at a time, got a second one; give each thread its own session");
    }
    ~Turn() { busy_.clear(); }

  private:
    std::atomic_flag & busy_;
};

SessionParams checked(SessionParams params, const HParams & hp) {
    const auto refuse = [](const std::string & fault) { throw ArgumentError(fault); };
    if (params.n_ctx == 0) params.n_ctx = hp.n_ctx_train;
    if (params.n_ctx < 1 || params.n_ctx > INT32_MAX)
        refuse("n_ctx: expected 0 (the model's own) to 2147483647, got " + std::to_string(params.n_ctx));
    if (params.n_ubatch < 1 || params.n_ubatch > 65536)
        refuse("n_ubatch: expected 1 to 65536, got " + std::to_string(params.n_ubatch));
    if (params.n_slack < 0 || params.n_slack > 65536)
        refuse("n_slack: expected 0 to 65536, got " + std::to_string(params.n_slack));
    if (params.distant_budget_bytes < 0)
        refuse("distant_budget_bytes: expected 0 or more, got " + std::to_string(params.distant_budget_bytes));
    if (params.attention != "auto" && params.attention != "fused" && params.attention != "composed")
        refuse("attention: expected auto, fused or composed, got \"" + params.attention + "\"");
    return params;
}

}  // namespace

Session::Impl::Impl(std::shared_ptr<const Model> model, const SessionParams & params, const SharingPlan & plan)
    : model_(std::move(model)), hp_(model_->hparams()), params_(checked(params, hp_)), plan_(plan),
      table_(make_attn_table(plan_, hp_)), compute_(model_->n_threads(), 2 * step_graph_nodes(hp_)),
      cache_(hp_, make_cache_layout(plan_, hp_, params_.n_slack),
             parse_cache_types(params_.type_k, params_.type_v, hp_), compute_.cache_buffer_type(), params_.n_ctx) {
    attention_ = params_.attention == "composed" ? make_composed_attention(table_, cache_)
                                                 : make_fused_cpu_attention(table_, cache_, compute_.n_threads());
    builder_ = std::make_unique<StepGraphBuilder>(hp_, model_->weights().model(), cache_, *attention_);
    graph_memory_.resize(2 * step_graph_nodes(hp_) * ggml_tensor_overhead() +
                         ggml_graph_overhead_custom(step_graph_nodes(hp_), false));
}

std::vector<float> Session::Impl::eval(const std::vector<int32_t> & tokens, Logits logits,
                                       const Interrupt & interrupt) {
    check_tokens(tokens);
    const int64_t n_tokens = int64_t(tokens.size()), n_before = cache_.n_past();
    cache_.reserve(n_before + n_tokens);
    const bool needs_undo = cache_.ring().overwrites_window(n_before, n_tokens) && cache_.layout().has_ring();
    // Without a snapshot the rows below n_before that a query there needs stay; older ones count as overwritten.
    const RingSnapshot undo = needs_undo
                                  ? cache_.snapshot()
                                  : RingSnapshot{n_before, std::max(cache_.ring().n_written, n_before + n_tokens), {}};

    const int64_t n_vocab = hp_.n_vocab;
    const int64_t n_out = logits == Logits::all ? n_tokens : logits == Logits::last ? 1 : 0;
    std::vector<float> out;
    try {
        out.resize(size_t(n_out * n_vocab));
        tokens_.reserve(tokens_.size() + tokens.size());
        for (int64_t done = 0; done < n_tokens;) {
            const int64_t n = ubatch_size(n_tokens - done);
            const bool is_last = done + n == n_tokens;
            const int64_t n_now = logits == Logits::all ? n : is_last ? n_out : 0;
            step(tokens.data() + done, n, n_now, out.data() + (logits == Logits::all ? done * n_vocab : 0), interrupt);
            done += n;
        }
    } catch (const std::bad_alloc &) {
        undo_eval(undo, needs_undo);
        throw DeviceError("evaluation: out of memory: cannot hold " + std::to_string(n_out) +
                          " rows of logits; ask for logits=\"last\"");
    } catch (...) {
        undo_eval(undo, needs_undo);
        throw;
    }
    tokens_.insert(tokens_.end(), tokens.begin(), tokens.end());
    return out;
}

void Session::Impl::truncate(int64_t n) {
    if (n < 0 || n > cache_.n_past())
        throw ArgumentError("truncate: expected 0 to " + std::to_string(cache_.n_past()) + " positions, got " +
                            std::to_string(n));
    if (n == cache_.n_past()) return;
    if (cache_.layout().has_ring() && !cache_.ring().can_continue_at(n)) {
        const auto kept = checkpoints_.find(n);
        if (kept == checkpoints_.end())
            throw RollbackError("truncate: the window before position " + std::to_string(n) +
                                " has been overwritten: expected a checkpoint there, got none; "
                                "truncate to " +
                                std::to_string(rollback_position(n)) + " and evaluate the tokens after it again");
        cache_.restore(kept->second);
    } else {
        cache_.truncate(n);
    }
    tokens_.resize(size_t(n));
    checkpoints_.erase(checkpoints_.upper_bound(n), checkpoints_.end());
}

int64_t Session::Impl::rollback_position(int64_t n) const {
    n = std::clamp<int64_t>(n, 0, cache_.n_past());
    if (n == cache_.n_past() || !cache_.layout().has_ring() || cache_.ring().can_continue_at(n)) return n;
    const auto after = checkpoints_.upper_bound(n);
    const int64_t kept = after == checkpoints_.begin() ? 0 : std::prev(after)->first;
    return std::max(kept, std::min<int64_t>(n, cache_.ring().n_sink));
}

int64_t Session::Impl::checkpoint() {
    const int64_t n = cache_.n_past();
    if (!cache_.layout().has_ring()) return n;  // nothing is ever forgotten
    checkpoints_[n] = cache_.snapshot();
    if (checkpoints_.size() > n_checkpoints_max) checkpoints_.erase(checkpoints_.begin());
    return n;
}

MemoryReport Session::Impl::memory() const {
    const CacheBytes bytes = cache_.allocated();
    MemoryReport report;
    report.n_past = cache_.n_past();
    report.n_rows = cache_.n_rows();
    report.n_window_rows = cache_.n_window_rows();
    report.keys = bytes.keys;
    report.values = bytes.values;
    report.window_keys = bytes.window_keys;
    report.window_values = bytes.window_values;
    report.dense =
        int64_t(hp_.n_layer) * hp_.n_head_kv * cache_.n_rows() * (cache_.row_bytes_k() + cache_.row_bytes_v());
    for (const auto & [n, snapshot] : checkpoints_) report.checkpoints += int64_t(snapshot.bytes.size());
    report.attention = attention_->size_bytes();
    report.compute = compute_.size_bytes();
    return report;
}

void Session::Impl::reset() {
    cache_.clear();
    tokens_.clear();
    checkpoints_.clear();
}

void Session::Impl::check_tokens(const std::vector<int32_t> & tokens) const {
    if (tokens.empty()) throw ArgumentError("tokens: expected at least one, got none");
    for (size_t i = 0; i < tokens.size(); ++i)
        if (tokens[i] < 0 || tokens[i] >= hp_.n_vocab)
            throw ArgumentError("tokens[" + std::to_string(i) + "]: expected 0 to " + std::to_string(hp_.n_vocab - 1) +
                                ", got " + std::to_string(tokens[i]));
    const int64_t n_left = params_.n_ctx - cache_.n_past();
    if (int64_t(tokens.size()) > n_left)
        throw ContextFullError("context: expected at most " + std::to_string(n_left) + " more tokens (n_ctx " +
                               std::to_string(params_.n_ctx) + ", held " + std::to_string(cache_.n_past()) + "), got " +
                               std::to_string(tokens.size()) + "; truncate, or make a session with a larger n_ctx");
}

// As many tokens as n_ubatch and the budget for shared scores allow at the depth they end at.
int64_t Session::Impl::ubatch_size(int64_t n_left) const {
    const int64_t n = std::min<int64_t>(n_left, params_.n_ubatch);
    const int64_t per_token = attention_->bytes_per_token(cache_.n_past() + n);
    return per_token == 0 ? n : std::clamp<int64_t>(params_.distant_budget_bytes / per_token, 1, n);
}

void Session::Impl::step(const int32_t * tokens, int64_t n_tokens, int64_t n_out, float * out,
                         const Interrupt & interrupt) {
    if (interrupt && interrupt()) throw Interrupted("evaluation: interrupted");
    ggml_init_params memory = {graph_memory_.size(), graph_memory_.data(), true};
    std::unique_ptr<ggml_context, decltype(&ggml_free)> ctx(ggml_init(memory), ggml_free);
    const StepGraph graph = builder_->build(ctx.get(), AttnStep{cache_.n_past(), n_tokens}, n_out);
    compute_.allocate(graph.gf);
    builder_->set_inputs(tokens);
    compute_.run(graph.gf, interrupt);
    if (graph.logits) ggml_backend_tensor_get(graph.logits, out, 0, ggml_nbytes(graph.logits));
    cache_.commit(n_tokens);
}

void Session::Impl::undo_eval(const RingSnapshot & undo, bool has_rows) {
    if (has_rows) {
        cache_.restore(undo);
    } else {
        cache_.restore_position(undo.n_past, undo.n_written);
    }
}

Session::Session(std::shared_ptr<const Model> model, const SessionParams & params,
                 const std::optional<SharingPlan> & plan) {
    const SharingPlan effective = model->effective_plan(plan);
    impl_ = std::make_unique<Impl>(std::move(model), params, effective);
}

Session::~Session() = default;

int64_t Session::n_past() const { return impl_->cache_.n_past(); }
int64_t Session::n_ctx() const { return impl_->params_.n_ctx; }
int32_t Session::n_vocab() const { return impl_->hp_.n_vocab; }
const SharingPlan & Session::plan() const { return impl_->plan_; }
const SessionParams & Session::params() const { return impl_->params_; }
std::string Session::attention_name() const { return impl_->attention_->name(); }
std::string Session::kernel_name() const { return impl_->attention_->kernel(); }
std::vector<int32_t> Session::tokens() const {
    Turn turn(impl_->busy_);
    return impl_->tokens_;
}

std::vector<float> Session::eval(const std::vector<int32_t> & tokens, Logits logits, const Interrupt & interrupt) {
    Turn turn(impl_->busy_);
    return impl_->eval(tokens, logits, interrupt);
}

void Session::truncate(int64_t n) {
    Turn turn(impl_->busy_);
    impl_->truncate(n);
}

int64_t Session::rollback_position(int64_t n) const { return impl_->rollback_position(n); }

int64_t Session::checkpoint() {
    Turn turn(impl_->busy_);
    return impl_->checkpoint();
}

MemoryReport Session::memory() const {
    Turn turn(impl_->busy_);
    return impl_->memory();
}

void Session::save(const std::string & path, bool force) const {
    Turn turn(impl_->busy_);
    impl_->save(path, force);
}

void Session::reset() {
    Turn turn(impl_->busy_);
    impl_->reset();
}

}  // namespace pysa
