#include "graph/step_graph.h"

#include <algorithm>

#include "ggml-backend.h"

namespace pysa {

namespace {

bool is_on_gpu(const ggml_tensor * weight) { return !ggml_backend_buffer_is_host(weight->buffer); }

int64_t size_of(const ggml_tensor * tensor) { return tensor ? tensor->ne[0] : 0; }

// `n` of a tensor's rows along dimension `dim`, from row `first` on; the tensor itself if that is all of them.
ggml_tensor * stretch(ggml_context * ctx, ggml_tensor * t, int dim, int64_t first, int64_t n) {
    if (!t || t->ne[dim] == n) return t;
    int64_t ne[3] = {t->ne[0], t->ne[1], t->ne[2]};
    ne[dim] = n;
    return ggml_view_3d(ctx, t, ne[0], ne[1], ne[2], t->nb[1], t->nb[2], size_t(first) * t->nb[dim]);
}

}  // namespace

size_t step_graph_nodes(const HParams & hp, size_t n_lanes) {
    // Composed attention takes about 30 nodes per run of KV heads, and one view and one concat per head at worst.
    return 256 + size_t(hp.n_layer) * (64 + n_lanes * (16 + 40 * size_t(hp.n_head_kv) + 4 * size_t(hp.n_head)));
}

ggml_tensor * StepGraphBuilder::input(ggml_context * ctx, ggml_type type, int64_t n) {
    if (n == 0) return nullptr;
    ggml_tensor * tensor = ggml_new_tensor_1d(ctx, type, n);
    ggml_set_input(tensor);
    return tensor;
}

ggml_tensor * StepGraphBuilder::norm(ggml_context * ctx, ggml_tensor * x, ggml_tensor * weight) const {
    return ggml_mul(ctx, ggml_rms_norm(ctx, x, hp_.norm_eps), weight);
}

ggml_tensor * StepGraphBuilder::linear(ggml_context * ctx, ggml_tensor * w, ggml_tensor * b, ggml_tensor * x) const {
    ggml_tensor * y = ggml_mul_mat(ctx, w, x);
    return b ? ggml_add(ctx, y, b) : y;
}

ggml_tensor * StepGraphBuilder::rope(ggml_context * ctx, ggml_tensor * x, bool on_gpu) const {
    const RopeParams & r = hp_.rope;
    if (r.kind == RopeKind::none) return x;
    const int mode = r.kind == RopeKind::neox ? GGML_ROPE_TYPE_NEOX : GGML_ROPE_TYPE_NORMAL;
    ggml_tensor * freqs = on_gpu ? weights_.rope_freqs_gpu : weights_.rope_freqs;
    return ggml_rope_ext(ctx, x, positions_, freqs, r.n_rot, mode, r.n_ctx_orig, r.freq_base, r.freq_scale,
                         r.ext_factor, r.attn_factor, r.beta_fast, r.beta_slow);
}

// Full rows are written before attention reads them; ring rows after it, because they overwrite rows it still needs.
void StepGraphBuilder::write_rows(ggml_context * ctx, ggml_cgraph * gf, int32_t il, const Lane & lane, bool is_key,
                                  bool to_full, ggml_tensor * cur) const {
    const LayerLayout & layout = lane.given.cache->layout().layers[il];
    const LayerCache & cache = lane.given.cache->layer(il);
    ggml_tensor * store = is_key ? (to_full ? cache.k_full : cache.k_ring) : (to_full ? cache.v_full : cache.v_ring);
    if (!store) return;
    const auto belongs = [&](int32_t kv) {
        return (is_key ? layout.kv_heads[kv].k_full : layout.kv_heads[kv].v_full) == to_full;
    };
    const auto write = [&](int32_t begin, int32_t n, ggml_tensor * rows, int64_t first_token) {
        if (!rows) return;
        const int64_t index = is_key ? layout.kv_heads[begin].k_index : layout.kv_heads[begin].v_index;
        ggml_tensor * to =
            ggml_view_3d(ctx, store, store->ne[0], store->ne[1], n, store->nb[1], store->nb[2], index * store->nb[2]);
        ggml_tensor * from = ggml_view_3d(ctx, cur, cur->ne[0], rows->ne[0], n, cur->nb[1], cur->nb[2],
                                          begin * cur->nb[2] + first_token * cur->nb[1]);
        ggml_build_forward_expand(gf, ggml_set_rows(ctx, to, from, rows));
    };
    for (int32_t begin = 0; begin < hp_.n_head_kv; ++begin) {
        if (!belongs(begin)) continue;
        int32_t end = begin;
        while (end < hp_.n_head_kv && belongs(end)) ++end;
        if (to_full) {
            write(begin, end - begin, lane.full_rows, 0);
        } else {
            write(begin, end - begin, lane.sink_rows, 0);
            write(begin, end - begin, lane.tail_rows, lane.shape.n_tokens - size_of(lane.tail_rows));
        }
        begin = end;
    }
}

ggml_tensor * StepGraphBuilder::query(ggml_context * ctx, const LayerWeights & w, ggml_tensor * x) const {
    ggml_tensor * q = ggml_reshape_3d(ctx, linear(ctx, w.wq, w.bq, x), hp_.n_embd_head_k, hp_.n_head, x->ne[1]);
    return rope(ctx, w.q_norm ? norm(ctx, q, w.q_norm) : q, is_on_gpu(w.attn_norm));
}

StepGraphBuilder::Rows StepGraphBuilder::rows_of(ggml_context * ctx, const Lane & lane, const Rows & all) const {
    const int64_t first = lane.first_token, n = lane.shape.n_tokens;
    return {stretch(ctx, all.q, 2, first, n), stretch(ctx, all.k, 1, first, n), stretch(ctx, all.v, 1, first, n)};
}

ggml_tensor * StepGraphBuilder::attention_block(ggml_context * ctx, ggml_cgraph * gf, int32_t il, ggml_tensor * x,
                                                const LayerOut & wanted) {
    const LayerWeights & w = weights_.layers[il];
    bool needs_q = false, needs_k = false;
    for (const Lane & lane : lanes_) {
        needs_q |= lane.given.cache->layout().layers[il].needs_q;
        needs_k |= lane.given.cache->layout().layers[il].needs_k;
    }
    Rows all;
    if (needs_q && wanted.any) {
        all.q = query(ctx, w, x);
        if (probe_ && probe_->shows_queries) {
            if (all.q->view_src) all.q = ggml_cont(ctx, all.q);  // an output must have memory of its own
            ggml_set_output(probe_->queries[il] = all.q);
        }
        ggml_build_forward_expand(gf, all.q);
    }
    if (needs_k) {
        all.k = ggml_reshape_3d(ctx, linear(ctx, w.wk, w.bk, x), hp_.n_embd_head_k, hp_.n_head_kv, n_tokens_);
        all.k = rope(ctx, w.k_norm ? norm(ctx, all.k, w.k_norm) : all.k, is_on_gpu(w.attn_norm));
        all.k = ggml_permute(ctx, all.k, 0, 2, 1, 3);  // [n_embd_head_k, n_tokens, n_head_kv]
        ggml_build_forward_expand(gf, all.k);
    }
    all.v = ggml_reshape_3d(ctx, linear(ctx, w.wv, w.bv, x), hp_.n_embd_head_v, hp_.n_head_kv, n_tokens_);
    all.v = ggml_permute(ctx, all.v, 0, 2, 1, 3);
    ggml_build_forward_expand(gf, all.v);
    mark(gf, is_on_gpu(w.attn_norm));

    ggml_tensor * out = nullptr;
    for (const Lane & lane : lanes_) {
        ggml_tensor * cur = attend(ctx, gf, il, lane, rows_of(ctx, lane, all), wanted.any);
        out = out ? ggml_concat(ctx, out, cur, 1) : cur;
    }
    if (out && wanted.ids) out = ggml_get_rows(ctx, out, wanted.ids);
    return out ? linear(ctx, w.wo, w.bo, out) : nullptr;
}

// One lane's attention, its new rows written; null if it is not wanted.
ggml_tensor * StepGraphBuilder::attend(ggml_context * ctx, ggml_cgraph * gf, int32_t il, const Lane & lane,
                                       const Rows & rows, bool wanted) {
    const SplitCache & cache = *lane.given.cache;
    const LayerLayout & layout = cache.layout().layers[il];
    ggml_tensor * q = layout.needs_q ? rows.q : nullptr;
    ggml_tensor * k = layout.needs_k ? rows.k : nullptr;
    if (k) write_rows(ctx, gf, il, lane, true, true, k);
    write_rows(ctx, gf, il, lane, false, true, rows.v);
    ggml_tensor * out = nullptr;
    if (wanted) {
        AttnInputs in{q, k, rows.v};
        if (cache.layout().n_recent > 0) {
            in.k_cur = ggml_cast(ctx, k, cache.types().k);
            in.v_cur = ggml_cast(ctx, rows.v, cache.types().v);
        }
        out = lane.given.attention->build(ctx, gf, il, in);
        ggml_build_forward_expand(gf, out);
    }
    if (k) write_rows(ctx, gf, il, lane, true, false, k);
    write_rows(ctx, gf, il, lane, false, false, rows.v);
    mark(gf, cache.is_on_device(il));
    return out;
}

ggml_tensor * StepGraphBuilder::ffn_block(ggml_context * ctx, const LayerWeights & w, ggml_tensor * x) const {
    ggml_tensor * gate = linear(ctx, w.ffn_gate, w.ffn_gate_b, x);
    ggml_tensor * up = linear(ctx, w.ffn_up, w.ffn_up_b, x);
    return linear(ctx, w.ffn_down, w.ffn_down_b, ggml_swiglu_split(ctx, gate, up));
}

LaneShape StepGraphBuilder::shape(const StepLane & lane) {
    const Ring & ring = lane.cache->ring();
    const AttnStep & step = lane.step;
    LaneShape shape{lane.cache, step.n_tokens, lane.n_out, 0, 0, lane.cache->generation()};
    if (ring.n_rows > 0) {
        const int64_t end = step.n_kv();
        const int64_t tail_begin = std::max({step.n_past, ring.n_sink, end - ring.n_ring()});
        shape.n_sink_rows = std::clamp<int64_t>(ring.n_sink - step.n_past, 0, step.n_tokens);
        shape.n_tail_rows = std::max<int64_t>(0, end - tail_begin);
    }
    return shape;
}

bool StepGraphBuilder::can_reuse(const std::vector<StepLane> & lanes, StepOut out) const {
    if (lanes.size() != lanes_.size() || out != out_) return false;
    for (size_t i = 0; i < lanes.size(); ++i)
        if (!(shape(lanes[i]) == lanes_[i].shape) || lanes[i].attention != lanes_[i].given.attention ||
            !lanes[i].attention->can_reuse(lanes_[i].given.step, lanes[i].step))
            return false;
    return true;
}

void StepGraphBuilder::reuse(const std::vector<StepLane> & lanes) {
    for (size_t i = 0; i < lanes.size(); ++i) {
        lanes_[i].given = lanes[i];
        lanes[i].attention->begin(nullptr, lanes[i].step);
    }
}

StepGraph StepGraphBuilder::begin(ggml_context * ctx, const std::vector<StepLane> & lanes) {
    lanes_.clear();
    on_gpu_.clear();
    embd_ = nullptr;
    n_tokens_ = n_out_ = 0;
    for (const StepLane & given : lanes) {
        Lane lane{given, shape(given), n_tokens_, nullptr, nullptr, nullptr};
        lane.full_rows = input(ctx, GGML_TYPE_I64, lane.shape.n_tokens);
        lane.sink_rows = input(ctx, GGML_TYPE_I64, lane.shape.n_sink_rows);
        lane.tail_rows = input(ctx, GGML_TYPE_I64, lane.shape.n_tail_rows);
        lanes_.push_back(lane);
        n_tokens_ += lane.shape.n_tokens;
        n_out_ += lane.shape.n_out;
    }
    tokens_ = input(ctx, GGML_TYPE_I32, n_tokens_);
    positions_ = input(ctx, GGML_TYPE_I32, n_tokens_);
    out_ids_ = n_out_ < n_tokens_ ? input(ctx, GGML_TYPE_I32, n_out_) : nullptr;

    StepGraph graph;
    graph.gf = ggml_new_graph_custom(ctx, step_graph_nodes(hp_, lanes.size()), false);
    for (const StepLane & lane : lanes) lane.attention->begin(ctx, lane.step);
    return graph;
}

ggml_tensor * StepGraphBuilder::layer(ggml_context * ctx, ggml_cgraph * gf, int32_t il, ggml_tensor * x,
                                      const LayerOut & wanted) {
    const LayerWeights & w = weights_.layers[il];
    ggml_tensor * cur = attention_block(ctx, gf, il, norm(ctx, x, w.attn_norm), wanted);
    if (!cur) return nullptr;
    if (wanted.ids) x = ggml_get_rows(ctx, x, wanted.ids);
    x = ggml_add(ctx, cur, x);
    x = ggml_add(ctx, ffn_block(ctx, w, norm(ctx, x, w.ffn_norm)), x);
    ggml_build_forward_expand(gf, x);
    mark(gf, is_on_gpu(w.attn_norm));
    return x;
}

void StepGraphBuilder::mark(ggml_cgraph * gf, bool on_gpu) { on_gpu_.resize(size_t(ggml_graph_n_nodes(gf)), on_gpu); }

ggml_tensor * StepGraphBuilder::result(ggml_context * ctx, StepGraph & graph, ggml_tensor * x, StepOut out) {
    x = norm(ctx, x, weights_.output_norm);
    if (out == StepOut::logits) x = ggml_mul_mat(ctx, weights_.output, x);
    ggml_set_output(x);
    ggml_build_forward_expand(graph.gf, x);
    mark(graph.gf, is_on_gpu(weights_.output_norm));
    graph.on_gpu = on_gpu_;
    return x;
}

// The embedding's weights stay with the host. A GPU is given the rows, so that its step is of one piece.
ggml_tensor * StepGraphBuilder::embed(ggml_context * ctx) {
    if (!is_on_gpu(weights_.layers.front().attn_norm)) return ggml_get_rows(ctx, weights_.token_embd, tokens_);
    return embd_ = input_rows(ctx, n_tokens_);
}

void StepGraphBuilder::set_embeddings(const int32_t * tokens) {
    if (!embd_ || !embd_->buffer) return;
    const ggml_tensor * weight = weights_.token_embd;
    const ggml_to_float_t to_float = ggml_get_type_traits(weight->type)->to_float;
    embd_rows_.resize(size_t(n_tokens_) * size_t(hp_.n_embd));
    for (int64_t i = 0; i < n_tokens_; ++i) {
        const char * row = static_cast<const char *>(weight->data) + size_t(tokens[i]) * weight->nb[1];
        float * to = &embd_rows_[size_t(i) * size_t(hp_.n_embd)];
        if (weight->type == GGML_TYPE_F32) {
            std::copy_n(reinterpret_cast<const float *>(row), hp_.n_embd, to);
        } else {
            to_float(row, to, hp_.n_embd);
        }
    }
    ggml_backend_tensor_set(embd_, embd_rows_.data(), 0, ggml_nbytes(embd_));
}

StepGraph StepGraphBuilder::build(ggml_context * ctx, const std::vector<StepLane> & lanes, StepOut out) {
    StepGraph graph = begin(ctx, lanes);
    out_ = out;
    ggml_tensor * x = embed(ctx);
    for (int32_t il = 0; il < hp_.n_layer; ++il) {
        x = layer(ctx, graph.gf, il, x, il == hp_.n_layer - 1 ? LayerOut{n_out_ > 0, out_ids_} : LayerOut{});
        if (!x) break;
    }
    graph.on_gpu = on_gpu_;
    if (!x) return graph;
    graph.out = result(ctx, graph, x, out);
    return graph;
}

ggml_tensor * StepGraphBuilder::input_rows(ggml_context * ctx, int64_t n) const {
    ggml_tensor * rows = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, hp_.n_embd, n);
    ggml_set_input(rows);
    return rows;
}

// What a layer begins with: the embedding, or what an earlier run left. On the CPU: planning/trial.cpp asks for that.
ggml_tensor * StepGraphBuilder::probe_input(ggml_context * ctx, StepProbe & probe, int32_t il) const {
    if (il == 0) return ggml_get_rows(ctx, weights_.token_embd, tokens_);
    return probe.given[il] = input_rows(ctx, n_tokens_);
}

StepGraph StepGraphBuilder::build_probe(ggml_context * ctx, const StepLane & lane, StepProbe & probe) {
    StepGraph graph = begin(ctx, {lane});
    for (auto * tensors : {&probe.given, &probe.inputs, &probe.queries}) tensors->assign(size_t(hp_.n_layer), nullptr);
    for (int32_t il : probe.sources) {
        const LayerWeights & w = weights_.layers[il];
        ggml_tensor * q = query(ctx, w, norm(ctx, probe_input(ctx, probe, il), w.attn_norm));
        // Keys and values are in the cache; the ubatch's own are asked for where a ring has not taken them, and there is none.
        ggml_build_forward_expand(graph.gf, lane.attention->build(ctx, graph.gf, il, {q, nullptr, q}));
    }
    ggml_tensor * x = probe_input(ctx, probe, probe.first_layer);
    probe_ = &probe;
    for (int32_t il = probe.first_layer; il < hp_.n_layer; ++il) {
        ggml_set_output(probe.inputs[il] = x);
        x = layer(ctx, graph.gf, il, x, {});
    }
    probe_ = nullptr;
    ggml_set_output(probe.hidden = x);
    ggml_build_forward_expand(graph.gf, x);
    return graph;
}

StepGraph StepGraphBuilder::build_logits(ggml_context * ctx, int64_t n_out, ggml_tensor *& hidden) {
    StepGraph graph;
    graph.gf = ggml_new_graph_custom(ctx, step_graph_nodes(hp_), false);
    hidden = input_rows(ctx, n_out);
    on_gpu_.clear();
    graph.out = result(ctx, graph, hidden, StepOut::logits);
    return graph;
}

template <class Row> void StepGraphBuilder::set_rows(ggml_tensor * tensor, Row row) {
    if (!tensor || !tensor->buffer) return;
    rows_.clear();
    for (int64_t i = 0; i < tensor->ne[0]; ++i) rows_.push_back(row(i));
    ggml_backend_tensor_set(tensor, rows_.data(), 0, ggml_nbytes(tensor));
}

// For i32 tensors: the values of all lanes, one after the other.
void StepGraphBuilder::set_lane_values(ggml_tensor * tensor, int64_t LaneShape::* count,
                                       int64_t (*first)(const Lane &)) {
    if (!tensor || !tensor->buffer) return;
    ids_.clear();
    for (const Lane & lane : lanes_)
        for (int64_t i = 0; i < lane.shape.*count; ++i) ids_.push_back(int32_t(first(lane) + i));
    ggml_backend_tensor_set(tensor, ids_.data(), 0, ggml_nbytes(tensor));
}

void StepGraphBuilder::set_inputs(const int32_t * tokens) {
    if (tokens_->buffer) ggml_backend_tensor_set(tokens_, tokens, 0, ggml_nbytes(tokens_));
    set_embeddings(tokens);
    set_lane_values(positions_, &LaneShape::n_tokens, [](const Lane & lane) { return lane.given.step.n_past; });
    set_lane_values(out_ids_, &LaneShape::n_out,
                    [](const Lane & lane) { return lane.first_token + lane.shape.n_tokens - lane.shape.n_out; });
    for (const Lane & lane : lanes_) {
        const AttnStep & step = lane.given.step;
        const Ring & ring = lane.given.cache->ring();
        const int64_t n_tail = size_of(lane.tail_rows);
        set_rows(lane.full_rows, [&](int64_t i) { return step.n_past + i; });
        set_rows(lane.sink_rows, [&](int64_t i) { return step.n_past + i; });
        set_rows(lane.tail_rows, [&](int64_t i) { return ring.row(step.n_kv() - n_tail + i); });
        lane.given.attention->set_inputs();
    }
}

}  // namespace pysa
