#include "pysa/trial.h"

#include <algorithm>
#include <new>
#include <set>
#include <utility>

#include "engine/compute.h"
#include "engine/turn.h"
#include "graph/step_graph.h"
#include "graph/weights.h"
#include "kv/cache_types.h"
#include "kv/split_cache.h"
#include "ops/shared_attn.h"

namespace pysa {

namespace {

constexpr int64_t n_logits_rows = 128;  // computed at once

// Whether a layer attends alike under two plans whose layers before it do.
bool same_layer(const SharingPlan & a, const SharingPlan & b, int32_t il) {
    const bool same_window = a.n_sink == b.n_sink && a.n_recent == b.n_recent;
    if ((a.skip_gate < 1.0f || b.skip_gate < 1.0f) && !(same_window && a.skip_gate == b.skip_gate)) return false;
    for (int32_t h = 0; h < a.n_head; ++h) {
        const bool is_plain = a.kind(il, h) == HeadKind::owner && a.bias(il, h) == 0.0f;  // its window does not show
        if (a.source_layer(il, h) != b.source_layer(il, h) || a.source_head(il, h) != b.source_head(il, h) ||
            a.bias(il, h) != b.bias(il, h))
            return false;
        if (!is_plain && !same_window) return false;
        if (a.kind(il, h) == HeadKind::follower && a.distant != b.distant) return false;
    }
    return true;
}

int32_t first_change(const SharingPlan & a, const SharingPlan & b) {
    int32_t il = 0;
    while (il < a.n_layer && same_layer(a, b, il)) ++il;
    return il;
}

// Earlier layers whose owners' distant weights layers from `first` on read.
std::vector<int32_t> sources_before(const SharingPlan & plan, int32_t first) {
    std::set<int32_t> sources;
    for (int32_t il = first; il < plan.n_layer; ++il)
        for (int32_t h = 0; h < plan.n_head; ++h)
            if (plan.kind(il, h) == HeadKind::follower && plan.source_layer(il, h) < first)
                sources.insert(plan.source_layer(il, h));
    if (plan.distant == Distant::keys) sources.clear();  // their keys are in the cache
    return {sources.begin(), sources.end()};
}

// The table of a run that begins at `first`: of the layers before it, owners with followers are all there is to compute.
AttnTable table_from(const SharingPlan & plan, const HParams & hp, int32_t first) {
    AttnTable table = make_attn_table(plan, hp);
    for (int32_t il = 0; il < first; ++il)
        for (AttnHead & head : table.layers[il].heads)
            if (head.slot_out < 0) head = {HeadKind::local, -1, -1, 0.0f, -1, -1};
    return table;
}

// Rows [first, first + n) of a tensor [n_embd, n_all] in the host's memory.
void take_rows(const ggml_tensor * tensor, std::vector<float> & to, int64_t first) {
    ggml_backend_tensor_get(tensor, to.data() + first * tensor->ne[0], 0, ggml_nbytes(tensor));
}

void give_rows(ggml_tensor * tensor, const std::vector<float> & from, int64_t first) {
    if (tensor->buffer) ggml_backend_tensor_set(tensor, from.data() + first * tensor->ne[0], 0, ggml_nbytes(tensor));
}

std::vector<ggml_backend_buffer_type_t> host_layers(const HParams & hp) {
    return std::vector<ggml_backend_buffer_type_t>(size_t(hp.n_layer), ggml_backend_cpu_buffer_type());
}

}  // namespace

class Trial::Impl {
  public:
    Impl(std::shared_ptr<const Model> model, const TrialParams & params, std::vector<int32_t> tokens);

    int32_t run(const SharingPlan & plan, bool keep, const Interrupt & interrupt);
    void logits(const int64_t * positions, int64_t n, float * out, const Interrupt & interrupt);
    void rows(int32_t il, bool is_key, float * out) const;
    void check_result(int32_t il) const;
    int64_t size_bytes() const;

    std::shared_ptr<const Model> model_;
    const HParams & hp_;
    const TrialParams params_;
    const std::vector<int32_t> tokens_;
    std::atomic_flag busy_ = ATOMIC_FLAG_INIT;

    // What a run leaves beside the rows of its cache.
    struct Results {
        std::vector<std::vector<float>> queries;  // [n_layer] of [n_embd_head_k * n_head, n_queries]
        std::vector<float> hidden;                // [n_embd, n_tokens]
    };
    Results last_, kept_results_;
    bool has_results_ = false;

  private:
    void evaluate(const SharingPlan & plan, int32_t first, bool keep, const Interrupt & interrupt);
    void take(const StepProbe & probe, const AttnStep & step, bool keep);
    void copy_layers(const SplitCache & from, SplitCache & to, int32_t begin, int32_t end) const;
    ggml_context * new_graph();

    Compute compute_;
    SplitCache work_, kept_cache_;
    std::vector<uint8_t> graph_memory_;
    std::unique_ptr<ggml_context, decltype(&ggml_free)> graph_ctx_{nullptr, ggml_free};
    std::unique_ptr<SharingPlan> kept_;
    std::vector<std::vector<float>> inputs_;  // [n_layer] of [n_embd, n_tokens], of the plan kept; none for layer 0
    int32_t n_clean_ = 0;                     // leading layers whose rows in work_ are the kept ones
};

Trial::Impl::Impl(std::shared_ptr<const Model> model, const TrialParams & params, std::vector<int32_t> tokens)
    : model_(std::move(model)), hp_(model_->hparams()), params_(params), tokens_(std::move(tokens)),
      compute_(model_->n_threads(), 2 * step_graph_nodes(hp_)),
      work_(hp_, make_cache_layout(dense_plan(hp_), hp_, 0), parse_cache_types(params.type_k, params.type_v, hp_),
            host_layers(hp_), int64_t(tokens_.size())),
      kept_cache_(hp_, make_cache_layout(dense_plan(hp_), hp_, 0), work_.types(), host_layers(hp_),
                  int64_t(tokens_.size())) {
    model_->check_process();
    const auto refuse = [](const std::string & fault) { throw ArgumentError("trial: " + fault); };
    if (model_->n_gpu_layers() > 0)
        refuse("device: expected a model on the CPU, got one on " + model_->device_name() +
               "; open it with device=\"cpu\"");
    const int64_t n = int64_t(tokens_.size());
    if (n < 2) refuse("tokens: expected at least 2, got " + std::to_string(n));
    for (size_t i = 0; i < tokens_.size(); ++i)
        if (tokens_[i] < 0 || tokens_[i] >= hp_.n_vocab)
            refuse("tokens[" + std::to_string(i) + "]: expected 0 to " + std::to_string(hp_.n_vocab - 1) + ", got " +
                   std::to_string(tokens_[i]));
    if (params.n_ubatch < 1 || params.n_ubatch > 65536)
        refuse("n_ubatch: expected 1 to 65536, got " + std::to_string(params.n_ubatch));
    if (params.n_queries < 0 || params.n_queries > n)
        refuse("n_queries: expected 0 to " + std::to_string(n) + " (the tokens), got " +
               std::to_string(params.n_queries));
    if (model_->pruned()) refuse("expected a model with all its query and key weights, got a pruned one");
    work_.reserve(n);
    kept_cache_.reserve(n);
    inputs_.resize(size_t(hp_.n_layer));
    for (int32_t il = 1; il < hp_.n_layer; ++il) inputs_[il].resize(size_t(hp_.n_embd) * n);
    for (Results * results : {&last_, &kept_results_}) {
        results->hidden.resize(size_t(hp_.n_embd) * n);
        results->queries.assign(size_t(hp_.n_layer),
                                std::vector<float>(size_t(hp_.n_embd_head_k) * hp_.n_head * params.n_queries));
    }
    graph_memory_.resize(2 * step_graph_nodes(hp_) * ggml_tensor_overhead() +
                         ggml_graph_overhead_custom(step_graph_nodes(hp_), false));
}

ggml_context * Trial::Impl::new_graph() {
    graph_ctx_.reset(ggml_init({graph_memory_.size(), graph_memory_.data(), true}));
    return graph_ctx_.get();
}

void Trial::Impl::copy_layers(const SplitCache & from, SplitCache & to, int32_t begin, int32_t end) const {
    for (int32_t il = begin; il < end; ++il) {
        ggml_backend_tensor_copy(from.layer(il).k_full, to.layer(il).k_full);
        ggml_backend_tensor_copy(from.layer(il).v_full, to.layer(il).v_full);
    }
}

int32_t Trial::Impl::run(const SharingPlan & override_plan, bool keep, const Interrupt & interrupt) {
    const SharingPlan plan = model_->effective_plan(override_plan);
    const int32_t first = kept_ ? first_change(plan, *kept_) : 0;
    has_results_ = false;
    if (kept_) {
        copy_layers(kept_cache_, work_, n_clean_, first);
        std::copy_n(kept_results_.queries.begin(), first, last_.queries.begin());
        if (first == hp_.n_layer) last_.hidden = kept_results_.hidden;
    }
    n_clean_ = first;
    if (keep) kept_.reset();  // until this run is complete
    evaluate(plan, first, keep, interrupt);
    if (keep) {
        copy_layers(work_, kept_cache_, first, hp_.n_layer);
        kept_results_ = last_;
        kept_ = std::make_unique<SharingPlan>(plan);
        n_clean_ = hp_.n_layer;
    }
    has_results_ = true;
    return hp_.n_layer - first;
}

void Trial::Impl::evaluate(const SharingPlan & plan, int32_t first, bool keep, const Interrupt & interrupt) {
    if (first == hp_.n_layer) return;
    const AttnTable table = table_from(plan, hp_, first);
    const auto attention = make_fused_cpu_attention(table, work_, compute_.n_threads(), 0.0f);
    StepGraphBuilder builder(hp_, model_->weights().model());
    StepProbe probe;
    probe.first_layer = first;
    probe.sources = sources_before(plan, first);
    // In every ubatch: ggml gives graphs that differ in their outputs alone the same memory.
    probe.shows_queries = params_.n_queries > 0;
    const int64_t n_all = int64_t(tokens_.size());
    for (AttnStep step{0, 0}; step.n_past < n_all; step.n_past += step.n_tokens) {
        if (interrupt && interrupt()) throw Interrupted("trial: interrupted");
        const int64_t n = std::min<int64_t>(params_.n_ubatch, n_all - step.n_past);
        const int64_t per_token = attention->bytes_per_token(step.n_past + n);
        step.n_tokens = per_token == 0 ? n : std::clamp<int64_t>(params_.distant_budget_bytes / per_token, 1, n);
        const StepGraph graph = builder.build_probe(new_graph(), StepLane{&work_, attention.get(), step, 0}, probe);
        compute_.allocate(graph.gf);
        builder.set_inputs(tokens_.data() + step.n_past);
        for (int32_t il = 0; il < hp_.n_layer; ++il)
            if (probe.given[il]) give_rows(probe.given[il], inputs_[il], step.n_past);
        compute_.run(graph.gf, interrupt);
        take(probe, step, keep);
    }
}

// Copies what a ubatch computed to where the whole text's lies.
void Trial::Impl::take(const StepProbe & probe, const AttnStep & step, bool keep) {
    take_rows(probe.hidden, last_.hidden, step.n_past);
    const int64_t n_row = int64_t(hp_.n_embd_head_k) * hp_.n_head;
    const int64_t first_query = int64_t(tokens_.size()) - params_.n_queries;
    const int64_t begin = std::max(first_query, step.n_past);
    for (int32_t il = probe.first_layer; il < hp_.n_layer; ++il) {
        if (keep && il > probe.first_layer) take_rows(probe.inputs[il], inputs_[il], step.n_past);
        if (probe.queries[il] && begin < step.n_kv())
            ggml_backend_tensor_get(probe.queries[il], last_.queries[il].data() + (begin - first_query) * n_row,
                                    size_t(begin - step.n_past) * n_row * sizeof(float),
                                    size_t(step.n_kv() - begin) * n_row * sizeof(float));
    }
}

void Trial::Impl::check_result(int32_t il) const {
    if (!has_results_) throw ArgumentError("trial: expected a finished run, got none; call run() first");
    if (il < 0 || il >= hp_.n_layer)
        throw ArgumentError("trial: layer: expected 0 to " + std::to_string(hp_.n_layer - 1) + ", got " +
                            std::to_string(il));
}

void Trial::Impl::logits(const int64_t * positions, int64_t n, float * out, const Interrupt & interrupt) {
    check_result(0);
    for (int64_t i = 0; i < n; ++i)
        if (positions[i] < 0 || positions[i] >= int64_t(tokens_.size()))
            throw ArgumentError("trial: positions[" + std::to_string(i) + "]: expected 0 to " +
                                std::to_string(tokens_.size() - 1) + ", got " + std::to_string(positions[i]));
    StepGraphBuilder builder(hp_, model_->weights().model());
    for (int64_t begin = 0; begin < n; begin += n_logits_rows) {
        const int64_t n_rows = std::min(n_logits_rows, n - begin);
        ggml_tensor * hidden = nullptr;
        const StepGraph graph = builder.build_logits(new_graph(), n_rows, hidden);
        compute_.allocate(graph.gf);
        for (int64_t i = 0; i < n_rows; ++i)
            ggml_backend_tensor_set(hidden, last_.hidden.data() + positions[begin + i] * hp_.n_embd, i * hidden->nb[1],
                                    hidden->nb[1]);
        compute_.run(graph.gf, interrupt);
        ggml_backend_tensor_get(graph.out, out + begin * hp_.n_vocab, 0, ggml_nbytes(graph.out));
    }
}

void Trial::Impl::rows(int32_t il, bool is_key, float * out) const {
    check_result(il);
    const ggml_tensor * store = is_key ? work_.layer(il).k_full : work_.layer(il).v_full;
    const ggml_to_float_t to_float = ggml_get_type_traits(store->type)->to_float;
    std::vector<uint8_t> rows(tokens_.size() * store->nb[1]);
    const int64_t n = int64_t(tokens_.size()) * store->ne[0];
    for (int64_t kv = 0; kv < store->ne[2]; ++kv, out += n) {
        ggml_backend_tensor_get(store, rows.data(), size_t(kv) * store->nb[2], rows.size());
        if (store->type == GGML_TYPE_F32) {
            std::copy_n(reinterpret_cast<const float *>(rows.data()), n, out);
        } else {
            to_float(rows.data(), out, n);
        }
    }
}

int64_t Trial::Impl::size_bytes() const {
    const int64_t n_embd = int64_t(tokens_.size()) * hp_.n_embd;
    const int64_t n_queries = int64_t(hp_.n_embd_head_k) * hp_.n_head * hp_.n_layer * params_.n_queries;
    return work_.allocated().total() + kept_cache_.allocated().total() + compute_.size_bytes() +
           int64_t(sizeof(float)) * (n_embd * (hp_.n_layer - 1 + 2) + 2 * n_queries);
}

Trial::Trial(std::shared_ptr<const Model> model, const TrialParams & params, std::vector<int32_t> tokens) {
    try {
        impl_ = std::make_unique<Impl>(std::move(model), params, std::move(tokens));
    } catch (const std::bad_alloc &) {
        throw DeviceError("trial: out of memory: cannot hold the layers' inputs; give a shorter text");
    }
}

Trial::~Trial() = default;

const Model & Trial::model() const { return *impl_->model_; }
int64_t Trial::n_tokens() const { return int64_t(impl_->tokens_.size()); }
int64_t Trial::n_queries() const { return impl_->params_.n_queries; }
int64_t Trial::size_bytes() const { return impl_->size_bytes(); }

int32_t Trial::run(const SharingPlan & plan, bool keep, const Interrupt & interrupt) {
    impl_->model_->check_process();
    Turn turn(impl_->busy_, "trial");
    return impl_->run(plan, keep, interrupt);
}

void Trial::logits(const int64_t * positions, int64_t n, float * out, const Interrupt & interrupt) {
    Turn turn(impl_->busy_, "trial");
    impl_->logits(positions, n, out, interrupt);
}

void Trial::queries(int32_t il, float * out) const {
    Turn turn(impl_->busy_, "trial");
    impl_->check_result(il);
    std::copy(impl_->last_.queries[il].begin(), impl_->last_.queries[il].end(), out);
}

void Trial::keys(int32_t il, float * out) const {
    Turn turn(impl_->busy_, "trial");
    impl_->rows(il, true, out);
}

void Trial::values(int32_t il, float * out) const {
    Turn turn(impl_->busy_, "trial");
    impl_->rows(il, false, out);
}

}  // namespace pysa
