#include "ops/cpu_unit.h"

#include <cmath>
#include <cstring>

namespace pysa {

namespace {

constexpr float minus_infinity = -std::numeric_limits<float>::infinity();

// A factor of 0 also clears columns that were never scored.
void scale(float * columns, int64_t n, float factor) {
    if (factor == 0.0f) return std::fill(columns, columns + n, 0.0f);
    for (int64_t i = 0; i < n; ++i) columns[i] *= factor;
}

}  // namespace

UnitShape::UnitShape(const HParams & hp, const AttnStep & step) {
    n_lines = padded(std::min(n_tile, step.n_tokens) * hp.n_gqa(), n_pad_queries);
    n_columns = step.n_kv() + n_tile + n_pad_columns;
    stride_k = padded(hp.n_embd_head_k, n_pad_embd);
    stride_v = padded(hp.n_embd_head_v, n_pad_embd);
}

AttnUnit::AttnUnit(const AttnTable & table, const SplitCache & cache, const CpuKernels & kernels, const AttnStep & step,
                   const UnitShape & shape, DistantStore & shared, float * scratch)
    : table_(table), cache_(cache), kernels_(kernels), step_(step), shape_(shape), shared_(shared),
      n_gqa_(table.hp.n_gqa()), queries_(scratch), window_(queries_ + shape.n_lines * shape.stride_k),
      distant_(window_ + shape.n_lines * shape.n_columns), out_(distant_ + shape.n_lines * shape.n_columns),
      rows_(out_ + shape.n_lines * shape.stride_v) {}

void AttnUnit::run(const AttnLayer & layer, const AttnInputs & inputs, int32_t kv, int64_t first, int64_t n_queries,
                   ggml_tensor * dst) {
    kv_ = kv;
    first_ = first;
    n_queries_ = n_queries;
    const int64_t t0 = step_.n_past + first, t1 = t0 + n_queries;  // positions [t0, t1)
    sinks_ = recent_ = {};
    if (table_.n_recent > 0) {
        sinks_ = {0, std::min<int64_t>(table_.n_sink, t1)};
        recent_ = {std::max<int64_t>(table_.n_sink, t0 - table_.n_recent + 1), t1};
    }
    far_ = {table_.n_sink, t1 - table_.n_recent};

    const LayerCache & cache = cache_.layer(layer.il);
    const KvHeadLayout & layout = cache_.layout().layers[layer.il].kv_heads[kv];
    const Rows keys(cache.k_full, cache.k_ring, inputs.k_cur, layout.k_full, layout.k_index, kv, cache_.ring(),
                    step_.n_past);
    const Rows values(cache.v_full, cache.v_ring, inputs.v_cur, layout.v_full, layout.v_index, kv, cache_.ring(),
                      step_.n_past);
    if (inputs.q) take_queries(inputs.q);
    if (table_.n_recent > 0) {
        score(keys, sinks_, window_);
        score(keys, recent_, window_ + sinks_.size());
    }
    score_distant(layer);
    softmax(layer);

    std::fill(out_, out_ + shape_.n_lines * shape_.stride_v, 0.0f);
    weigh(values, sinks_, window_);
    weigh(values, recent_, window_ + sinks_.size());
    if (layout.v_full) weigh(values, far_, distant_);  // else every head of the group is local
    for (int64_t iq = 0; iq < n_queries; ++iq)
        for (int64_t g = 0; g < n_gqa_; ++g) {
            float * to = static_cast<float *>(dst->data) + (first + iq) * dst->ne[0] +
                         (kv * n_gqa_ + g) * table_.hp.n_embd_head_v;
            std::memcpy(to, out_ + (iq * n_gqa_ + g) * shape_.stride_v, table_.hp.n_embd_head_v * sizeof(float));
        }
}

// The tile's queries, side by side and padded with zeros, as the kernels read them.
void AttnUnit::take_queries(const ggml_tensor * q) {
    std::fill(queries_, queries_ + shape_.n_lines * shape_.stride_k, 0.0f);
    for (int64_t iq = 0; iq < n_queries_; ++iq)
        for (int64_t g = 0; g < n_gqa_; ++g) {
            const char * from =
                static_cast<const char *>(q->data) + (kv_ * n_gqa_ + g) * q->nb[1] + (first_ + iq) * q->nb[2];
            std::memcpy(queries_ + (iq * n_gqa_ + g) * shape_.stride_k, from, table_.hp.n_embd_head_k * sizeof(float));
        }
}

// Scores of every line against the rows of `range`, one column a position.
void AttnUnit::score(const Rows & keys, Range range, float * columns) {
    std::fill(rows_, rows_ + (UnitShape::n_block + n_pad_columns) * shape_.stride_k, 0.0f);
    for (int64_t begin = range.begin; begin < range.end; begin += UnitShape::n_block) {
        const int64_t n = std::min(UnitShape::n_block, range.end - begin);
        keys.load(kernels_, begin, n, shape_.stride_k, rows_);
        kernels_.score(queries_, n_queries_ * n_gqa_, rows_, n, shape_.stride_k, table_.hp.kq_scale,
                       columns + (begin - range.begin), shape_.n_columns);
    }
}

// Owners read their own keys, followers of "keys" the source's; followers of "scores" read none.
void AttnUnit::score_distant(const AttnLayer & layer) {
    const int32_t source = layer.keys_layer[kv_];
    if (source < 0 || far_.size() == 0) return;
    const KvHeadLayout & layout = cache_.layout().layers[source].kv_heads[kv_];
    score(Rows(cache_.layer(source).k_full, nullptr, nullptr, true, layout.k_index, kv_, cache_.ring(), step_.n_past),
          far_, distant_);
}

// Scores of one part of a softmax -> unnormalised weights in [0, 1].
Part AttnUnit::exponentiate(float * columns, int64_t n) const {
    const float max = kernels_.maximum(columns, n);
    return {max, kernels_.exponentiate(columns, n, max)};
}

// P(t) within the columns of the tile: the sinks up to t and the last n_recent positions. The rest is cleared.
Part AttnUnit::window_part(int64_t t, float * columns) const {
    if (table_.n_recent == 0) return {};
    const int64_t n_sinks = sinks_.size(), n = n_sinks + recent_.size();
    const int64_t sink_end = std::min(t + 1, sinks_.end);
    const int64_t begin = n_sinks + std::max<int64_t>(recent_.begin, t - table_.n_recent + 1) - recent_.begin;
    const int64_t end = n_sinks + std::max(recent_.begin, t + 1) - recent_.begin;
    std::fill(columns + sink_end, columns + begin, minus_infinity);
    std::fill(columns + end, columns + n, minus_infinity);
    return exponentiate(columns, n);
}

// The first n_far distant columns as unnormalised weights, with their maximum and sum; empty for a local head.
Part AttnUnit::distant_part(const AttnHead & head, int64_t iq, float * columns, int64_t n_far) {
    if (head.kind == HeadKind::local || n_far <= 0) return {};
    const int64_t token = first_ + iq;
    if (head.slot_in >= 0) return shared_.get(head.slot_in, token, columns, n_far);
    const Part part = exponentiate(columns, n_far);
    if (head.slot_out >= 0) shared_.put(head.slot_out, token, columns, n_far, part);
    return part;
}

// Scores -> normalised weights; columns outside P(t) and D(t) become 0.
void AttnUnit::softmax(const AttnLayer & layer) {
    for (int64_t iq = 0; iq < n_queries_; ++iq) {
        const int64_t t = step_.n_past + first_ + iq;
        const int64_t n_far = std::max<int64_t>(0, t - table_.n_recent + 1 - table_.n_sink);
        for (int64_t g = 0; g < n_gqa_; ++g) {
            const AttnHead & head = layer.heads[kv_ * n_gqa_ + g];
            float * window = window_ + (iq * n_gqa_ + g) * shape_.n_columns;
            float * distant = distant_ + (iq * n_gqa_ + g) * shape_.n_columns;
            const Part near = window_part(t, window);
            const Part dist = distant_part(head, iq, distant, n_far);

            const float max = std::max(near.max, dist.max + head.bias);
            const float near_scale = near.sum > 0 ? std::exp(near.max - max) : 0.0f;
            float dist_scale = dist.sum > 0 ? std::exp(dist.max + head.bias - max) : 0.0f;
            const float near_mass = near.sum * near_scale;
            const float share = near_mass / (near_mass + dist.sum * dist_scale);
            if (table_.skip_gate < 1.0f && share >= table_.skip_gate) dist_scale = 0.0f;
            const float total = near_mass + dist.sum * dist_scale;
            scale(window, sinks_.size() + recent_.size(), near_scale / total);
            scale(distant, n_far, dist_scale / total);
            std::fill(distant + n_far, distant + std::max(n_far, far_.size()), 0.0f);
        }
    }
}

// Adds the weighted rows of `range` to every line's output. Blocks that nobody weighs are not read.
void AttnUnit::weigh(const Rows & values, Range range, const float * columns) {
    const int64_t n_lines = n_queries_ * n_gqa_;
    std::fill(rows_, rows_ + UnitShape::n_block * shape_.stride_v, 0.0f);
    for (int64_t begin = range.begin; begin < range.end; begin += UnitShape::n_block) {
        const int64_t n = std::min(UnitShape::n_block, range.end - begin);
        const float * weights = columns + (begin - range.begin);
        bool any = false;
        for (int64_t line = 0; line < n_lines && !any; ++line)
            any = kernels_.maximum(weights + line * shape_.n_columns, n) > 0.0f;
        if (!any) continue;
        values.load(kernels_, begin, n, shape_.stride_v, rows_);
        kernels_.weigh(weights, shape_.n_columns, n_lines, rows_, n, shape_.stride_v, out_);
    }
}

}  // namespace pysa
