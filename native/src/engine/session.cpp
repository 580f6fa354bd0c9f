#include "pysa/session.h"

#include <algorithm>
#include <map>

#include "base/log.h"
#include "engine/compute.h"
#include "graph/step_graph.h"
#include "graph/weights.h"
#include "kv/cache_types.h"
#include "kv/split_cache.h"
#include "kv/state_file.h"
#include "ops/shared_attn.h"

namespace pysa {

namespace {

constexpr size_t n_checkpoints_max = 8;  // the oldest goes first; rollback_position tells what is left

// Refuses a second thread instead of racing it.
class Turn {
  public:
    explicit Turn(std::atomic_flag & busy) : busy_(busy) {
        if (busy_.test_and_set()) throw SessionBusyError("session: expected one thread at a time, got a second one; give each thread its own session");
    }
    ~Turn() { busy_.clear(); }

  private:
    std::atomic_flag & busy_;
};

SessionParams checked(SessionParams params, const HParams & hp) {
    const auto refuse = [](const std::string & fault) { throw ArgumentError(fault); };
    if (params.n_ctx == 0) params.n_ctx = hp.n_ctx_train;
    if (params.n_ctx < 1 || params.n_ctx > INT32_MAX) refuse("n_ctx: expected 0 (the model's own) to 2147483647, got " + std::to_string(params.n_ctx));
    if (params.n_ubatch < 1 || params.n_ubatch > 65536) refuse("n_ubatch: expected 1 to 65536, got " + std::to_string(params.n_ubatch));
    if (params.n_slack < 0 || params.n_slack > 65536) refuse("n_slack: expected 0 to 65536, got " + std::to_string(params.n_slack));
    if (params.attn_budget_bytes < 0) refuse("attn_budget_bytes: expected 0 or more, got " + std::to_string(params.attn_budget_bytes));
    if (params.attention != "auto" && params.attention != "fused" && params.attention != "composed")
        refuse("attention: expected auto, fused or composed, got \"" + params.attention + "\"");
    return params;
}

}  // namespace

class Session::Impl {
  public:
    Impl(std::shared_ptr<const Model> model, const SessionParams & params, const SharingPlan & plan)
        : model_(std::move(model)), hp_(model_->hparams()), params_(checked(params, hp_)), plan_(plan), table_(make_attn_table(plan_, hp_)),
          compute_(model_->n_threads(), 2 * max_nodes()),
          cache_(hp_, make_cache_layout(plan_, hp_, params_.n_slack), parse_cache_types(params_.type_k, params_.type_v, hp_), compute_.cache_buffer_type(), params_.n_ctx) {
        attention_ = params_.attention == "composed" ? make_composed_attention(table_, cache_) : make_fused_cpu_attention(table_, cache_, compute_.n_threads());
        builder_ = std::make_unique<StepGraphBuilder>(hp_, model_->weights().model(), cache_, *attention_);
        graph_memory_.resize(2 * max_nodes() * ggml_tensor_overhead() + ggml_graph_overhead_custom(max_nodes(), false));
    }

    std::vector<float> eval(const std::vector<int32_t> & tokens, Logits logits, const Interrupt & interrupt) {
        check_tokens(tokens);
        const int64_t n_tokens = int64_t(tokens.size()), n_before = cache_.n_past();
        cache_.reserve(n_before + n_tokens);
        const bool needs_undo = cache_.ring().overwrites_window(n_before, n_tokens) && cache_.layout().has_ring();
        const RingSnapshot undo = needs_undo ? cache_.snapshot() : RingSnapshot{n_before, cache_.ring().n_written, {}};

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
            throw DeviceError("evaluation: out of memory: cannot hold " + std::to_string(n_out) + " rows of logits; ask for logits=\"last\"");
        } catch (...) {
            undo_eval(undo, needs_undo);
            throw;
        }
        tokens_.insert(tokens_.end(), tokens.begin(), tokens.end());
        return out;
    }

    void truncate(int64_t n) {
        if (n < 0 || n > cache_.n_past())
            throw ArgumentError("truncate: expected 0 to " + std::to_string(cache_.n_past()) + " positions, got " + std::to_string(n));
        if (n == cache_.n_past()) return;
        if (cache_.layout().has_ring() && !cache_.ring().can_continue_at(n)) {
            const auto kept = checkpoints_.find(n);
            if (kept == checkpoints_.end())
                throw RollbackError("truncate: the window before position " + std::to_string(n) + " has been overwritten: expected a checkpoint there, got none; "
                                    "truncate to " + std::to_string(rollback_position(n)) + " and evaluate the tokens after it again");
            cache_.restore(kept->second);
        } else {
            cache_.truncate(n);
        }
        tokens_.resize(size_t(n));
        checkpoints_.erase(checkpoints_.upper_bound(n), checkpoints_.end());
    }

    int64_t rollback_position(int64_t n) const {
        n = std::clamp<int64_t>(n, 0, cache_.n_past());
        if (n == cache_.n_past() || !cache_.layout().has_ring() || cache_.ring().can_continue_at(n)) return n;
        const auto after = checkpoints_.upper_bound(n);
        const int64_t kept = after == checkpoints_.begin() ? 0 : std::prev(after)->first;
        return std::max(kept, std::min<int64_t>(n, cache_.ring().n_sink));
    }

    int64_t checkpoint() {
        const int64_t n = cache_.n_past();
        if (!cache_.layout().has_ring()) return n;  // nothing is ever forgotten
        checkpoints_[n] = cache_.snapshot();
        if (checkpoints_.size() > n_checkpoints_max) checkpoints_.erase(checkpoints_.begin());
        return n;
    }

    MemoryReport memory() const {
        const CacheBytes bytes = cache_.allocated();
        MemoryReport report;
        report.n_past = cache_.n_past();
        report.n_rows = cache_.n_rows();
        report.n_window_rows = cache_.n_window_rows();
        report.keys = bytes.keys;
        report.values = bytes.values;
        report.window_keys = bytes.window_keys;
        report.window_values = bytes.window_values;
        report.dense = int64_t(hp_.n_layer) * hp_.n_head_kv * cache_.n_rows() * (cache_.row_bytes_k() + cache_.row_bytes_v());
        for (const auto & [n, snapshot] : checkpoints_) report.checkpoints += int64_t(snapshot.bytes.size());
        report.attention = attention_->size_bytes();
        report.compute = compute_.size_bytes();
        return report;
    }

    void reset() {
        cache_.clear();
        tokens_.clear();
        checkpoints_.clear();
    }

    void save(const std::string & path, bool force) const;
    void load_state(StateReader & reader);

    std::shared_ptr<const Model> model_;
    const HParams & hp_;
    const SessionParams params_;
    const SharingPlan plan_;
    const AttnTable table_;
    Compute compute_;
    SplitCache cache_;
    std::unique_ptr<SharedAttention> attention_;
    std::unique_ptr<StepGraphBuilder> builder_;
    std::vector<uint8_t> graph_memory_;
    std::vector<int32_t> tokens_;
    std::map<int64_t, RingSnapshot> checkpoints_;
    std::atomic_flag busy_ = ATOMIC_FLAG_INIT;

  private:
    size_t max_nodes() const { return step_graph_nodes(hp_); }

    void check_tokens(const std::vector<int32_t> & tokens) const {
        if (tokens.empty()) throw ArgumentError("tokens: expected at least one, got none");
        for (size_t i = 0; i < tokens.size(); ++i)
            if (tokens[i] < 0 || tokens[i] >= hp_.n_vocab)
                throw ArgumentError("tokens[" + std::to_string(i) + "]: expected 0 to " + std::to_string(hp_.n_vocab - 1) + ", got " + std::to_string(tokens[i]));
        const int64_t n_left = params_.n_ctx - cache_.n_past();
        if (int64_t(tokens.size()) > n_left)
            throw ContextFullError("context: expected at most " + std::to_string(n_left) + " more tokens (n_ctx " + std::to_string(params_.n_ctx) + ", held " +
                                   std::to_string(cache_.n_past()) + "), got " + std::to_string(tokens.size()) + "; truncate, or make a session with a larger n_ctx");
    }

    // As many tokens as n_ubatch and the budget for shared scores allow at the depth they end at.
    int64_t ubatch_size(int64_t n_left) const {
        const int64_t n = std::min<int64_t>(n_left, params_.n_ubatch);
        const int64_t per_token = attention_->bytes_per_token(cache_.n_past() + n);
        return per_token == 0 ? n : std::clamp<int64_t>(params_.attn_budget_bytes / per_token, 1, n);
    }

    void step(const int32_t * tokens, int64_t n_tokens, int64_t n_out, float * out, const Interrupt & interrupt) {
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

    // Window rows come back from the snapshot. Without one no row below n_past was touched; what lay above it may be gone.
    void undo_eval(const RingSnapshot & undo, bool has_rows) {
        if (has_rows) {
            cache_.restore(undo);
        } else {
            cache_.restore_position(undo.n_past, std::max(undo.n_written, cache_.ring().n_written));
        }
    }
};

void Session::Impl::save(const std::string & path, bool force) const {
    StateWriter writer(path, force);
    writer.put(model_->fingerprint());
    writer.put(params_.n_ctx);
    writer.put(params_.n_ubatch);
    writer.put(params_.n_slack);
    writer.put(params_.attn_budget_bytes);
    writer.put_text(params_.type_k);
    writer.put_text(params_.type_v);
    writer.put_text(params_.attention);

    writer.put_text(plan_.method);
    writer.put(int32_t(plan_.distant));
    writer.put(plan_.n_sink);
    writer.put(plan_.n_recent);
    writer.put(plan_.skip_gate);
    writer.put_list(plan_.score_layer);
    writer.put_list(plan_.score_head);
    writer.put_list(plan_.mass_bias);

    writer.put(cache_.ring().n_written);
    writer.put_list(tokens_);
    writer.put<uint64_t>(checkpoints_.size());
    for (const auto & [n, snapshot] : checkpoints_) {
        writer.put(snapshot.n_past);
        writer.put(snapshot.n_written);
        writer.put_list(snapshot.bytes);
    }
    std::vector<uint8_t> bytes;
    cache_.for_each_stretch(cache_.n_past(), cache_.ring().n_written, false, [&](const ggml_tensor * tensor, size_t offset, size_t size) {
        bytes.resize(size);
        ggml_backend_tensor_get(tensor, bytes.data(), offset, size);
        writer.put_bytes(bytes.data(), size);
    });
    writer.finish();
}

void Session::Impl::load_state(StateReader & reader) {
    const int64_t n_written = reader.get<int64_t>("n_written");
    tokens_ = reader.get_list<int32_t>("tokens");
    const int64_t n_past = int64_t(tokens_.size());
    const auto refuse = [](const std::string & fault) { throw StateFileError("saved session: " + fault); };
    if (n_past > params_.n_ctx || n_written < n_past || n_written > params_.n_ctx) refuse("positions: expected them within n_ctx, got " + std::to_string(n_written));
    for (int32_t token : tokens_)
        if (token < 0 || token >= hp_.n_vocab) refuse("tokens: expected ids of the vocabulary, got " + std::to_string(token));
    if (n_written > 0) cache_.reserve(n_written);

    const uint64_t n_checkpoints = reader.get<uint64_t>("checkpoints");
    for (uint64_t i = 0; i < n_checkpoints; ++i) {
        RingSnapshot snapshot;
        snapshot.n_past = reader.get<int64_t>("checkpoint");
        snapshot.n_written = reader.get<int64_t>("checkpoint");
        snapshot.bytes = reader.get_list<uint8_t>("checkpoint");
        if (snapshot.n_past < 0 || snapshot.n_past > n_past || snapshot.n_written < snapshot.n_past || snapshot.n_written > n_written ||
            snapshot.bytes.size() != cache_.snapshot_bytes(snapshot.n_written))
            refuse("checkpoint: expected the window rows of a position held, got others");
        checkpoints_[snapshot.n_past] = std::move(snapshot);
    }
    cache_.for_each_stretch(n_past, n_written, false,
                            [&](ggml_tensor * tensor, size_t offset, size_t size) { ggml_backend_tensor_set(tensor, reader.view_bytes("cache rows", size), offset, size); });
    reader.expect_end();
    cache_.restore_position(n_past, n_written);
}

Session::Session(std::shared_ptr<const Model> model, const SessionParams & params, const std::optional<SharingPlan> & plan) {
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
const std::vector<int32_t> & Session::tokens() const { return impl_->tokens_; }

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

std::unique_ptr<Session> Session::load(std::shared_ptr<const Model> model, const std::string & path) {
    StateReader reader(path);
    if (reader.get<uint64_t>("model") != model->fingerprint())
        throw StateFileError(path + ": expected a session of this model and plan, got one of another file");
    SessionParams params;
    params.n_ctx = reader.get<int64_t>("n_ctx");
    params.n_ubatch = reader.get<int32_t>("n_ubatch");
    params.n_slack = reader.get<int32_t>("n_slack");
    params.attn_budget_bytes = reader.get<int64_t>("attn_budget_bytes");
    params.type_k = reader.get_text("type_k");
    params.type_v = reader.get_text("type_v");
    params.attention = reader.get_text("attention");

    SharingPlan plan;
    plan.n_layer = model->hparams().n_layer;
    plan.n_head = model->hparams().n_head;
    plan.method = reader.get_text("plan.method");
    plan.distant = reader.get<int32_t>("plan.distant") == 0 ? Distant::scores : Distant::keys;
    plan.n_sink = reader.get<int32_t>("plan.n_sink");
    plan.n_recent = reader.get<int32_t>("plan.n_recent");
    plan.skip_gate = reader.get<float>("plan.skip_gate");
    plan.score_layer = reader.get_list<int32_t>("plan.score_layer");
    plan.score_head = reader.get_list<int32_t>("plan.score_head");
    plan.mass_bias = reader.get_list<float>("plan.mass_bias");
    try {
        auto session = std::make_unique<Session>(std::move(model), params, plan);
        session->impl_->load_state(reader);
        return session;
    } catch (const StateFileError &) {
        throw;
    } catch (const DeviceError &) {
        throw;
    } catch (const Error & error) {
        throw StateFileError(path + ": " + error.what());
    }
}

void Session::reset() {
    Turn turn(impl_->busy_);
    impl_->reset();
}

}  // namespace pysa
