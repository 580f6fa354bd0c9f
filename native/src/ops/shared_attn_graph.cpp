// Composed attention: the contract of shared_attn.h from stock ggml ops, for any backend. The reference for the fused op.
// KV heads that are treated alike are taken together ("run"); scores are kept whole, so a ubatch is bounded by bytes_per_token.
#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

#include "ggml-backend.h"
#include "ops/composed_inputs.h"
#include "ops/shared_attn.h"

namespace pysa {

namespace {

constexpr float minus_infinity = -std::numeric_limits<float>::infinity();

// Consecutive KV heads with the same treatment, and their query heads.
struct Run {
    int32_t kv_begin = 0, kv_end = 0;
    int32_t h_begin = 0, h_end = 0;
    int32_t n_kv_heads() const { return kv_end - kv_begin; }
    int32_t n_heads() const { return h_end - h_begin; }
};

class ComposedAttention final : public SharedAttention {
  public:
    ComposedAttention(const AttnTable & table, const SplitCache & cache)
        : table_(table), cache_(cache), inputs_(table, cache.ring()) {}

    const char * name() const override { return "composed"; }
    const char * kernel() const override { return "ggml"; }

    int64_t bytes_per_token(int64_t n_kv) const override {
        // Raw scores, their concatenation, its softmax.
        const int64_t n_live = int64_t(table_.n_slots) + 4 * table_.hp.n_head;
        return n_live * n_kv * int64_t(sizeof(float));
    }

    void begin(ggml_context * ctx, const AttnStep & step) override {
        step_ = step;
        raw_.clear();
        biases_.clear();
        inputs_.begin(ctx, step);
    }

    ggml_tensor * build(ggml_context * ctx, ggml_cgraph * gf, int32_t il, const AttnInputs & given) override {
        AttnInputs in = given;
        // Whole, before heads are viewed: ggml-vulkan (0.25.3) casts quantised rows as if a view's offset were an aligned one.
        if (in.k_cur) in.k_cur = as_f32(ctx, in.k_cur);
        if (in.v_cur) in.v_cur = as_f32(ctx, in.v_cur);
        ggml_tensor * out = nullptr;
        ggml_tensor * q = in.q ? ggml_permute(ctx, in.q, 0, 2, 1, 3) : nullptr;  // [n_embd_head_k, n_tokens, n_head]
        for (const Run & run : runs(il)) {
            ggml_tensor * part = build_run(ctx, gf, il, run, q, in);  // [n_embd_head_v, n_tokens, n_heads]
            out = out ? ggml_concat(ctx, out, part, 2) : part;
        }
        out = ggml_permute(ctx, out, 0, 2, 1, 3);
        return ggml_cont_2d(ctx, out, int64_t(table_.hp.n_embd_head_v) * table_.hp.n_head, step_.n_tokens);
    }

    void set_inputs() override {
        inputs_.set();
        for (auto & [tensor, values] : biases_)
            if (tensor->buffer) ggml_backend_tensor_set(tensor, values.data(), 0, values.size() * sizeof(float));
    }

    int64_t size_bytes() const override { return 0; }

  private:
    struct HeadScores {
        ggml_tensor * scores = nullptr;  // [n_kv, n_tokens, n_heads], before scale and mask
        int32_t index = 0;
    };

    std::vector<Run> runs(int32_t il) const {
        const LayerLayout & layout = cache_.layout().layers[il];
        const AttnLayer & layer = table_.layers[il];
        std::vector<Run> runs;
        for (int32_t kv = 0; kv < table_.hp.n_head_kv; ++kv) {
            auto alike = [&](int32_t a, int32_t b) {
                const KvHeadLayout &x = layout.kv_heads[a], &y = layout.kv_heads[b];
                return x.k_full == y.k_full && x.v_full == y.v_full && layer.keys_layer[a] == layer.keys_layer[b];
            };
            if (runs.empty() || !alike(runs.back().kv_begin, kv)) runs.push_back({kv, kv, kv * table_.hp.n_gqa(), 0});
            runs.back().kv_end = kv + 1;
            runs.back().h_end = (kv + 1) * table_.hp.n_gqa();
        }
        return runs;
    }

    static ggml_tensor * heads(ggml_context * ctx, ggml_tensor * t, int64_t begin, int64_t n) {
        return ggml_view_3d(ctx, t, t->ne[0], t->ne[1], n, t->nb[1], t->nb[2], begin * t->nb[2]);
    }

    static ggml_tensor * as_f32(ggml_context * ctx, ggml_tensor * t) {
        return t->type == GGML_TYPE_F32 ? t : ggml_cast(ctx, t, GGML_TYPE_F32);
    }

    // All n_kv rows of a full tensor's heads: f32 [n_embd_head, n_kv, n]. Blocks of SplitCache::n_block rows keep heads aligned.
    ggml_tensor * full_rows(ggml_context * ctx, ggml_tensor * full, int64_t index, int64_t n) const {
        return as_f32(
            ctx, ggml_view_3d(ctx, full, full->ne[0], step_.n_kv(), n, full->nb[1], full->nb[2], index * full->nb[2]));
    }

    // The rows of the window, older positions first, then the ubatch: f32 [n_embd_head, n_window, n].
    ggml_tensor * window_rows(ggml_context * ctx, ggml_tensor * store, ggml_tensor * row_index, int64_t index,
                              ggml_tensor * cur, const Run & run) const {
        ggml_tensor * rows = heads(ctx, cur, run.kv_begin, run.n_kv_heads());
        if (inputs_.n_old() == 0) return rows;
        ggml_tensor * which = ggml_view_2d(ctx, row_index, row_index->ne[0], run.n_kv_heads(), row_index->nb[1], 0);
        ggml_tensor * old = ggml_get_rows(ctx, heads(ctx, store, index, run.n_kv_heads()), which);
        return ggml_concat(ctx, old, rows, 1);
    }

    ggml_tensor * multiply(ggml_context * ctx, ggml_tensor * a, ggml_tensor * b) const {
        ggml_tensor * product = ggml_mul_mat(ctx, a, b);
        ggml_prec_set_acc(product, GGML_PREC_F32);
        return product;
    }

    // sum_j weights(j) * v(j): [n_embd_head_v, n_tokens, n_heads].
    ggml_tensor * weigh(ggml_context * ctx, ggml_tensor * v, ggml_tensor * weights) const {
        return multiply(ctx, ggml_cont(ctx, ggml_transpose(ctx, v)), weights);
    }

    ggml_tensor * build_run(ggml_context * ctx, ggml_cgraph * gf, int32_t il, const Run & run, ggml_tensor * q,
                            const AttnInputs & in) {
        const AttnLayer & layer = table_.layers[il];
        const LayerCache & rows = cache_.layer(il);
        const KvHeadLayout & kv = cache_.layout().layers[il].kv_heads[run.kv_begin];
        ggml_tensor * q_run = q ? heads(ctx, q, run.h_begin, run.n_heads()) : nullptr;

        const int32_t source = layer.keys_layer[run.kv_begin];
        if (source >= 0) {
            const int32_t index = cache_.layout().layers[source].kv_heads[run.kv_begin].k_index;
            ggml_tensor * raw =
                multiply(ctx, full_rows(ctx, cache_.layer(source).k_full, index, run.n_kv_heads()), q_run);
            ggml_build_forward_expand(gf, raw);
            for (int32_t h = run.h_begin; h < run.h_end; ++h) raw_[{il, h}] = {raw, h - run.h_begin};
            if (layer.is_dense) {
                ggml_tensor * p = ggml_soft_max_ext(ctx, raw, inputs_.mask_causal, table_.hp.kq_scale, 0.0f);
                return weigh(ctx, full_rows(ctx, rows.v_full, kv.v_index, run.n_kv_heads()), p);
            }
        }
        ggml_tensor * distant = kv.v_full ? distant_scores(ctx, layer, run) : nullptr;
        if (table_.n_recent == 0) {
            ggml_tensor * p = ggml_soft_max_ext(ctx, distant, inputs_.mask_causal, table_.hp.kq_scale, 0.0f);
            return weigh(ctx, full_rows(ctx, rows.v_full, kv.v_index, run.n_kv_heads()), p);
        }

        ggml_tensor * k_window = window_rows(ctx, kv.k_full ? rows.k_full : rows.k_ring,
                                             kv.k_full ? inputs_.old_pos : inputs_.old_row, kv.k_index, in.k_cur, run);
        ggml_tensor * v_window = window_rows(ctx, kv.v_full ? rows.v_full : rows.v_ring,
                                             kv.v_full ? inputs_.old_pos : inputs_.old_row, kv.v_index, in.v_cur, run);
        ggml_tensor * near = multiply(ctx, k_window, q_run);
        if (!distant) {
            return weigh(ctx, v_window, ggml_soft_max_ext(ctx, near, inputs_.mask_window, table_.hp.kq_scale, 0.0f));
        }
        ggml_tensor * p =
            ggml_soft_max_ext(ctx, ggml_concat(ctx, near, distant, 0), inputs_.mask_split, table_.hp.kq_scale, 0.0f);
        ggml_tensor * p_near = columns(ctx, p, 0, inputs_.n_window());
        ggml_tensor * p_far = columns(ctx, p, inputs_.n_window(), step_.n_kv());
        if (table_.skip_gate < 1.0f) apply_gate(ctx, p_near, p_far);
        ggml_tensor * far = weigh(ctx, full_rows(ctx, rows.v_full, kv.v_index, run.n_kv_heads()), p_far);
        return ggml_add(ctx, weigh(ctx, v_window, p_near), far);
    }

    static ggml_tensor * columns(ggml_context * ctx, ggml_tensor * p, int64_t begin, int64_t n) {
        return ggml_cont(ctx, ggml_view_3d(ctx, p, n, p->ne[1], p->ne[2], p->nb[1], p->nb[2], begin * p->nb[0]));
    }

    // Source scores of each head of the run plus its bias: [n_kv, n_tokens, n_heads]. A local head gets -inf everywhere.
    ggml_tensor * distant_scores(ggml_context * ctx, const AttnLayer & layer, const Run & run) {
        const auto source = [&](int32_t h) {
            const AttnHead & head = layer.heads[h];
            const bool own = table_.distant == Distant::keys || head.kind == HeadKind::owner;
            return own ? raw_.at({layer.il, h}) : raw_.at({head.source_layer, head.source_head});
        };
        HeadScores any;
        for (int32_t h = run.h_begin; h < run.h_end && !any.scores; ++h)
            if (layer.heads[h].kind != HeadKind::local) any = source(h);

        ggml_tensor * scores = nullptr;
        std::vector<float> bias;
        bool all_zero = true;
        for (int32_t h = run.h_begin; h < run.h_end;) {
            const bool is_local = layer.heads[h].kind == HeadKind::local;
            const HeadScores from = is_local ? any : source(h);
            int32_t n = 1;  // heads whose sources lie side by side come in one view
            while (!is_local && h + n < run.h_end && layer.heads[h + n].kind != HeadKind::local &&
                   source(h + n).scores == from.scores && source(h + n).index == from.index + n)
                ++n;
            ggml_tensor * view = heads(ctx, from.scores, from.index, n);
            scores = scores ? ggml_concat(ctx, scores, view, 2) : view;
            for (int32_t i = 0; i < n; ++i)
                bias.push_back(is_local ? minus_infinity : layer.heads[h + i].bias / table_.hp.kq_scale);
            h += n;
        }
        for (float b : bias) all_zero &= b == 0.0f;
        if (all_zero) return scores;
        ggml_tensor * b = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, 1, 1, run.n_heads());
        ggml_set_input(b);
        biases_.push_back({b, bias});
        return ggml_add(ctx, scores, b);
    }

    // g = mass of the window; where g >= skip_gate the distant weights become 0 and the window's are scaled up by 1/g.
    void apply_gate(ggml_context * ctx, ggml_tensor *& p_near, ggml_tensor *& p_far) const {
        ggml_tensor * g = ggml_sum_rows(ctx, p_near);
        ggml_tensor * keep = ggml_step(ctx, ggml_scale_bias(ctx, g, -1.0f, table_.skip_gate));
        ggml_tensor * skip = ggml_scale_bias(ctx, keep, -1.0f, 1.0f);
        // Where it is not skipped g may be 0: divide by g + keep, which is g where it matters.
        ggml_tensor * up = ggml_add(ctx, keep, ggml_div(ctx, skip, ggml_add(ctx, g, keep)));
        p_far = ggml_mul(ctx, p_far, keep);
        p_near = ggml_mul(ctx, p_near, up);
    }

    const AttnTable & table_;
    const SplitCache & cache_;
    AttnStep step_;
    ComposedInputs inputs_;
    std::map<std::pair<int32_t, int32_t>, HeadScores> raw_;
    std::vector<std::pair<ggml_tensor *, std::vector<float>>> biases_;
};

}  // namespace

std::unique_ptr<SharedAttention> make_composed_attention(const AttnTable & table, const SplitCache & cache) {
    return std::make_unique<ComposedAttention>(table, cache);
}

}  // namespace pysa
