// A session's parameters, its turns, and going back. session_eval.cpp evaluates.
#include "pysa/session.h"

#include <algorithm>

#include "base/pages.h"
#include "engine/placement.h"
#include "engine/session_impl.h"
#include "engine/turn.h"
#include "graph/weights.h"
#include "kv/cache_types.h"
#include "ops/shared_attn_gpu.h"

namespace pysa {

namespace {

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
    if (!(params.v_skip >= 0.0f && params.v_skip < 1.0f))  // nan fails this too
        refuse("v_skip: expected 0 (exact) or more and below 1, got " + std::to_string(params.v_skip));
    return params;
}

int32_t first_gpu_layer_of(const Model & model, const AttnTable & table, bool kv_offload) {
    const int32_t n_layer = model.hparams().n_layer;
    if (model.n_gpu_layers() == 0 || !kv_offload) return n_layer;
    return attention_cut(table, model.placement().first_gpu_layer());
}

std::vector<ggml_backend_buffer_type_t> buffer_types(const Model & model, int32_t first_gpu_layer) {
    std::vector<ggml_backend_buffer_type_t> types(size_t(model.hparams().n_layer), ggml_backend_cpu_buffer_type());
    for (size_t il = size_t(first_gpu_layer); il < types.size(); ++il) types[il] = model.placement().gpu->buffer_type();
    return types;
}

}  // namespace

std::unique_ptr<SharedAttention> Session::Impl::make_attention() const {
    const bool any_cpu = first_gpu_layer_ > 0, any_gpu = first_gpu_layer_ < hp_.n_layer;
    if (params_.attention == "composed") return make_composed_attention(table_, cache_);
    std::unique_ptr<SharedAttention> on_cpu, on_gpu;
    if (any_cpu) on_cpu = make_fused_cpu_attention(table_, cache_, compute_.n_threads(), params_.v_skip);
    if (any_gpu) {
        const Gpu & gpu = *compute_.gpu();
        if (gpu.kernels() && gpu.kernels()->supports(gpu_attn_shape(table_, cache_, params_.v_skip))) {
            on_gpu = make_fused_gpu_attention(table_, cache_, gpu, params_.v_skip);
        } else if (params_.attention == "fused") {
            throw DeviceError("attention: expected auto or composed: " + gpu.name() +
                              " has no kernels for this model's heads or these cache types, got \"fused\"");
        } else {
            on_gpu = make_composed_attention(table_, cache_);
        }
    }
    if (!on_cpu) return on_gpu;
    return on_gpu ? make_placed_attention(first_gpu_layer_, std::move(on_cpu), std::move(on_gpu)) : std::move(on_cpu);
}

Session::Impl::Impl(std::shared_ptr<const Model> model, const SessionParams & params, const SharingPlan & plan)
    : model_(std::move(model)), hp_(model_->hparams()), params_(checked(params, hp_)), plan_(plan),
      table_(make_attn_table(plan_, hp_)), first_gpu_layer_(first_gpu_layer_of(*model_, table_, params_.kv_offload)),
      compute_(model_->n_threads(), 2 * step_graph_nodes(hp_), model_->placement().gpu),
      cache_(hp_, make_cache_layout(plan_, hp_, params_.n_slack),
             parse_cache_types(params_.type_k, params_.type_v, hp_), buffer_types(*model_, first_gpu_layer_),
             params_.n_ctx) {
    attention_ = make_attention();
    stepper_ = std::make_unique<Stepper>(hp_, model_->weights().model(), compute_, 1);
    lanes_ = {StepLane{&cache_, attention_.get(), {}, 0}};
}

void Session::Impl::truncate(int64_t n) {
    if (n < 0 || n > cache_.n_past())
        throw ArgumentError("truncate: expected 0 to " + std::to_string(cache_.n_past()) + " positions, got " +
                            std::to_string(n));
    if (!cache_.can_truncate(n))
        throw RollbackError("truncate: the window before position " + std::to_string(n) +
                            " has been overwritten: expected a checkpoint there, got none; truncate to " +
                            std::to_string(rollback_position(n)) + " and evaluate the tokens after it again");
    cache_.truncate(n);
    tokens_.resize(size_t(n));
}

int64_t Session::Impl::checkpoint() {
    cache_.checkpoint();
    return cache_.n_past();
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
    report.checkpoints = cache_.log().size_bytes();
    report.attention = attention_->size_bytes();
    report.compute = compute_.size_bytes();
    report.device = cache_.device_bytes();
    return report;
}

void Session::Impl::reset() {
    cache_.clear();
    attention_->reset_skip_report();
    tokens_.clear();
}

Session::Session(std::shared_ptr<const Model> model, const SessionParams & params,
                 const std::optional<SharingPlan> & plan) {
    model->check_process();
    const SharingPlan effective = model->effective_plan(plan);
    impl_ = std::make_unique<Impl>(std::move(model), params, effective);
}

Session::~Session() {
    impl_.reset();
    trim_heap();
}

int64_t Session::n_past() const { return impl_->cache_.n_past(); }
int64_t Session::n_ctx() const { return impl_->params_.n_ctx; }
int32_t Session::n_vocab() const { return impl_->hp_.n_vocab; }
int32_t Session::n_embd() const { return impl_->hp_.n_embd; }
int64_t Session::ubatch_size(int64_t n) const { return impl_->ubatch_size(std::max<int64_t>(n, 1)); }
bool Session::has_window() const { return impl_->cache_.layout().has_ring(); }
const SharingPlan & Session::plan() const { return impl_->plan_; }
const SessionParams & Session::params() const { return impl_->params_; }
std::string Session::attention_name() const { return impl_->attention_->name(); }
std::string Session::kernel_name() const { return impl_->attention_->kernel(); }
int32_t Session::first_gpu_layer() const { return impl_->first_gpu_layer_; }
int32_t Session::n_splits() const { return impl_->compute_.n_splits(); }
std::vector<int32_t> Session::tokens() const {
    Turn turn(impl_->busy_, "session");
    return impl_->tokens_;
}

void Session::eval(const int32_t * tokens, int64_t n_tokens, Logits logits, const LogitsSink & sink,
                   const Interrupt & interrupt) {
    Turn turn(impl_->busy_, "session");
    impl_->eval(tokens, n_tokens, logits, sink, interrupt);
}

int32_t Session::next_token(const int32_t * tokens, int64_t n_tokens, Sampler & sampler, const Interrupt & interrupt) {
    int32_t token = 0;
    const auto sample = [&](const float * row, int64_t) { token = sampler.sample(row, n_vocab()); };
    eval(tokens, n_tokens, Logits::last, sample, interrupt);
    return token;
}

void Session::fill(int64_t n, uint64_t seed) {
    Turn turn(impl_->busy_, "session");
    impl_->fill(n, seed);
}

void Session::truncate(int64_t n) {
    Turn turn(impl_->busy_, "session");
    impl_->truncate(n);
}

int64_t Session::rollback_position(int64_t n) const { return impl_->rollback_position(n); }

int64_t Session::checkpoint() {
    Turn turn(impl_->busy_, "session");
    return impl_->checkpoint();
}

MemoryReport Session::memory() const {
    Turn turn(impl_->busy_, "session");
    return impl_->memory();
}

SkipReport Session::skip_report() const {
    Turn turn(impl_->busy_, "session");
    return impl_->attention_->skip_report();
}

void Session::save(const std::string & path, bool force) const {
    Turn turn(impl_->busy_, "session");
    impl_->save(path, force);
}

void Session::reset() {
    Turn turn(impl_->busy_, "session");
    impl_->reset();
}

}  // namespace pysa
