#include "graph/step_graph.h"

#include <algorithm>
#include <numeric>

#include "ggml-backend.h"

namespace pysa {

namespace {

int64_t size_of(const ggml_tensor * tensor) { return tensor ? tensor->ne[0] : 0; }

}  // namespace

size_t step_graph_nodes(const HParams & hp) {
    // Composed attention takes about 30 nodes per run of KV heads, and one view and one concat per head at worst.
    return 256 + size_t(hp.n_layer) * (64 + 40 * size_t(hp.n_head_kv) + 4 * size_t(hp.n_head));
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

ggml_tensor * StepGraphBuilder::rope(ggml_context * ctx, ggml_tensor * x) const {
    const RopeParams & r = hp_.rope;
    if (r.kind == RopeKind::none) return x;
    const int mode = r.kind == RopeKind::neox ? GGML_ROPE_TYPE_NEOX : GGML_ROPE_TYPE_NORMAL;
    return ggml_rope_ext(ctx, x, positions_, weights_.rope_freqs, r.n_rot, mode, r.n_ctx_orig, r.freq_base,
                         r.freq_scale, r.ext_factor, r.attn_factor, r.beta_fast, r.beta_slow);
}

// Full rows are written before attention reads them; ring rows after it, because they overwrite rows it still needs.
void StepGraphBuilder::write_rows(ggml_context * ctx, ggml_cgraph * gf, int32_t il, bool is_key, bool to_full,
                                  ggml_tensor * cur) const {
    const LayerLayout & layout = cache_.layout().layers[il];
    const LayerCache & cache = cache_.layer(il);
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
            write(begin, end - begin, full_rows_, 0);
        } else {
            write(begin, end - begin, sink_rows_, 0);
            write(begin, end - begin, tail_rows_, step_.n_tokens - size_of(tail_rows_));
        }
        begin = end;
    }
}

ggml_tensor * StepGraphBuilder::query(ggml_context * ctx, const LayerWeights & w, ggml_tensor * x) const {
    ggml_tensor * q = ggml_reshape_3d(ctx, linear(ctx, w.wq, w.bq, x), hp_.n_embd_head_k, hp_.n_head, x->ne[1]);
    return rope(ctx, w.q_norm ? norm(ctx, q, w.q_norm) : q);
}

ggml_tensor * StepGraphBuilder::attention_block(ggml_context * ctx, ggml_cgraph * gf, int32_t il, ggml_tensor * x,
                                                const LayerOut & wanted) {
    const LayerWeights & w = weights_.layers[il];
    const LayerLayout & layout = cache_.layout().layers[il];
    const int64_t n_tokens = step_.n_tokens;
    ggml_tensor *q = nullptr, *k = nullptr;
    if (layout.needs_q && wanted.any) {
        q = query(ctx, w, x);
        if (probe_ && probe_->shows_queries) {
            if (q->view_src) q = ggml_cont(ctx, q);  // an output must have memory of its own
            ggml_set_output(probe_->queries[il] = q);
        }
        ggml_build_forward_expand(gf, q);
    }
    if (layout.needs_k) {
        k = ggml_reshape_3d(ctx, linear(ctx, w.wk, w.bk, x), hp_.n_embd_head_k, hp_.n_head_kv, n_tokens);
        k = rope(ctx, w.k_norm ? norm(ctx, k, w.k_norm) : k);
        k = ggml_permute(ctx, k, 0, 2, 1, 3);  // [n_embd_head_k, n_tokens, n_head_kv]
        ggml_build_forward_expand(gf, k);
    }
    ggml_tensor * v = ggml_reshape_3d(ctx, linear(ctx, w.wv, w.bv, x), hp_.n_embd_head_v, hp_.n_head_kv, n_tokens);
    v = ggml_permute(ctx, v, 0, 2, 1, 3);
    ggml_build_forward_expand(gf, v);

    if (k) write_rows(ctx, gf, il, true, true, k);
    write_rows(ctx, gf, il, false, true, v);
    ggml_tensor * out = nullptr;
    if (wanted.any) {
        AttnInputs in{q, k, v};
        if (cache_.layout().n_recent > 0) {
            in.k_cur = ggml_cast(ctx, k, cache_.types().k);
            in.v_cur = ggml_cast(ctx, v, cache_.types().v);
        }
        out = attention_.build(ctx, gf, il, in);
        ggml_build_forward_expand(gf, out);
    }
    if (k) write_rows(ctx, gf, il, true, false, k);
    write_rows(ctx, gf, il, false, false, v);
    if (out && wanted.ids) out = ggml_get_rows(ctx, out, wanted.ids);
    return out ? linear(ctx, w.wo, w.bo, out) : nullptr;
}

ggml_tensor * StepGraphBuilder::ffn_block(ggml_context * ctx, const LayerWeights & w, ggml_tensor * x) const {
    ggml_tensor * gate = linear(ctx, w.ffn_gate, w.ffn_gate_b, x);
    ggml_tensor * up = linear(ctx, w.ffn_up, w.ffn_up_b, x);
    return linear(ctx, w.ffn_down, w.ffn_down_b, ggml_swiglu_split(ctx, gate, up));
}

StepShape StepGraphBuilder::shape(const AttnStep & step, int64_t n_out) const {
    const Ring & ring = cache_.ring();
    StepShape shape{step.n_tokens, n_out, 0, 0, cache_.generation()};
    if (ring.n_rows > 0) {
        const int64_t end = step.n_kv();
        const int64_t tail_begin = std::max({step.n_past, ring.n_sink, end - ring.n_ring()});
        shape.n_sink_rows = std::clamp<int64_t>(ring.n_sink - step.n_past, 0, step.n_tokens);
        shape.n_tail_rows = std::max<int64_t>(0, end - tail_begin);
    }
    return shape;
}

bool StepGraphBuilder::can_reuse(const AttnStep & step, int64_t n_out) const {
    return shape(step, n_out) == shape_ && attention_.can_reuse(step_, step);
}

void StepGraphBuilder::reuse(const AttnStep & step) {
    step_ = step;
    attention_.begin(nullptr, step);
}

StepGraph StepGraphBuilder::begin(ggml_context * ctx, const AttnStep & step, int64_t n_out) {
    step_ = step;
    shape_ = shape(step, n_out);
    tokens_ = input(ctx, GGML_TYPE_I32, step.n_tokens);
    positions_ = input(ctx, GGML_TYPE_I32, step.n_tokens);
    full_rows_ = input(ctx, GGML_TYPE_I64, step.n_tokens);
    sink_rows_ = input(ctx, GGML_TYPE_I64, shape_.n_sink_rows);
    tail_rows_ = input(ctx, GGML_TYPE_I64, shape_.n_tail_rows);
    out_ids_ = n_out < step.n_tokens ? input(ctx, GGML_TYPE_I32, n_out) : nullptr;

    StepGraph graph;
    graph.gf = ggml_new_graph_custom(ctx, step_graph_nodes(hp_), false);
    attention_.begin(ctx, step);
    return graph;
}

ggml_tensor * StepGraphBuilder::layer(ggml_context * ctx, ggml_cgraph * gf, int32_t il, ggml_tensor * x,
                                      const LayerOut & wanted) {
    const LayerWeights & w = weights_.layers[il];
    ggml_tensor * cur = attention_block(ctx, gf, il, norm(ctx, x, w.attn_norm), wanted);
    if (!cur) return nullptr;
    if (wanted.ids) x = ggml_get_rows(ctx, x, wanted.ids);
    x = ggml_add(ctx, cur, x);
    return ggml_add(ctx, ffn_block(ctx, w, norm(ctx, x, w.ffn_norm)), x);
}

ggml_tensor * StepGraphBuilder::logits(ggml_context * ctx, ggml_cgraph * gf, ggml_tensor * x) const {
    ggml_tensor * logits = ggml_mul_mat(ctx, weights_.output, norm(ctx, x, weights_.output_norm));
    ggml_set_output(logits);
    ggml_build_forward_expand(gf, logits);
    return logits;
}

StepGraph StepGraphBuilder::build(ggml_context * ctx, const AttnStep & step, int64_t n_out) {
    StepGraph graph = begin(ctx, step, n_out);
    ggml_tensor * x = ggml_get_rows(ctx, weights_.token_embd, tokens_);
    for (int32_t il = 0; il < hp_.n_layer; ++il) {
        x = layer(ctx, graph.gf, il, x, il == hp_.n_layer - 1 ? LayerOut{n_out > 0, out_ids_} : LayerOut{});
        if (!x) return graph;
    }
    graph.logits = logits(ctx, graph.gf, x);
    return graph;
}

ggml_tensor * StepGraphBuilder::input_rows(ggml_context * ctx, int64_t n) const {
    ggml_tensor * rows = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, hp_.n_embd, n);
    ggml_set_input(rows);
    return rows;
}

// What a layer begins with: the embedding, or what an earlier run left.
ggml_tensor * StepGraphBuilder::probe_input(ggml_context * ctx, StepProbe & probe, int32_t il) const {
    if (il == 0) return ggml_get_rows(ctx, weights_.token_embd, tokens_);
    return probe.given[il] = input_rows(ctx, step_.n_tokens);
}

StepGraph StepGraphBuilder::build_probe(ggml_context * ctx, const AttnStep & step, StepProbe & probe) {
    StepGraph graph = begin(ctx, step, 0);
    for (auto * tensors : {&probe.given, &probe.inputs, &probe.queries}) tensors->assign(size_t(hp_.n_layer), nullptr);
    for (int32_t il : probe.sources) {
        const LayerWeights & w = weights_.layers[il];
        ggml_tensor * q = query(ctx, w, norm(ctx, probe_input(ctx, probe, il), w.attn_norm));
        // Keys and values are in the cache; the ubatch's own are asked for where a ring has not taken them, and there is none.
        ggml_build_forward_expand(graph.gf, attention_.build(ctx, graph.gf, il, {q, nullptr, q}));
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

StepGraph StepGraphBuilder::build_logits(ggml_context * ctx, int64_t n_out, ggml_tensor *& hidden) const {
    StepGraph graph;
    graph.gf = ggml_new_graph_custom(ctx, step_graph_nodes(hp_), false);
    hidden = input_rows(ctx, n_out);
    graph.logits = logits(ctx, graph.gf, hidden);
    return graph;
}

void StepGraphBuilder::set_values(ggml_tensor * tensor, int64_t first) {
    if (!tensor || !tensor->buffer) return;
    const auto set = [&](auto & values) {
        values.resize(size_t(tensor->ne[0]));
        std::iota(values.begin(), values.end(), first);
        ggml_backend_tensor_set(tensor, values.data(), 0, ggml_nbytes(tensor));
    };
    tensor->type == GGML_TYPE_I64 ? set(rows_) : set(ids_);
}

void StepGraphBuilder::set_inputs(const int32_t * tokens) {
    if (tokens_->buffer) ggml_backend_tensor_set(tokens_, tokens, 0, ggml_nbytes(tokens_));
    set_values(positions_, step_.n_past);
    set_values(full_rows_, step_.n_past);
    set_values(out_ids_, step_.n_tokens - shape_.n_out);
    set_values(sink_rows_, step_.n_past);
    if (tail_rows_ && tail_rows_->buffer) {
        rows_.resize(size_t(tail_rows_->ne[0]));
        for (size_t i = 0; i < rows_.size(); ++i)
            rows_[i] = cache_.ring().row(step_.n_kv() - int64_t(rows_.size()) + int64_t(i));
        ggml_backend_tensor_set(tail_rows_, rows_.data(), 0, ggml_nbytes(tail_rows_));
    }
    attention_.set_inputs();
}

}  // namespace pysa
