// Fused attention on the CPU, as one custom op per layer.
// A unit of work is one KV head and a tile of queries: each K and V row is read and converted once for all of them.
// Stages: score the window, score the distance (or take the source's weights), one softmax, weigh the values.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>

#include "ggml-cpu.h"
#include "ops/cpu_rows.h"
#include "ops/distant_store.h"
#include "ops/shared_attn.h"

namespace pysa {

namespace {

constexpr int64_t n_tile = 8;    // queries
constexpr int64_t n_block = 64;  // rows converted at a time

class FusedCpuAttention final : public SharedAttention {
  public:
    FusedCpuAttention(const AttnTable & table, const SplitCache & cache, int n_threads)
        : table_(table), cache_(cache), n_threads_(n_threads), userdata_(table.layers.size()) {
        for (size_t il = 0; il < userdata_.size(); ++il) userdata_[il] = {this, int32_t(il)};
    }

    const char * name() const override { return "fused"; }

    int64_t bytes_per_token(int64_t n_kv) const override {
        return table_.n_slots * n_kv * int64_t(sizeof(ggml_fp16_t));
    }

    void begin(ggml_context *, const AttnStep & step) override {
        step_ = step;
        n_columns_ = step.n_kv() + n_tile;
        const int64_t n_queries = std::min(n_tile, step.n_tokens) * table_.hp.n_gqa();
        const int64_t n_embd_head = std::max(table_.hp.n_embd_head_k, table_.hp.n_embd_head_v);
        scratch_stride_ = n_queries * (2 * n_columns_ + n_embd_head) + n_block * n_embd_head;
        resize_buffer(scratch_, size_t(scratch_stride_ * n_threads_));
        shared_.begin(table_.n_slots, step.n_tokens, n_columns_);
    }

    ggml_tensor * build(ggml_context * ctx, ggml_cgraph *, int32_t il, const AttnInputs & inputs) override {
        const HParams & hp = table_.hp;
        std::vector<ggml_tensor *> args;
        for (ggml_tensor * input : {inputs.v_cur, inputs.k_cur, inputs.q})
            if (input) args.push_back(input);
        userdata_[il].has_q = inputs.q != nullptr;
        userdata_[il].has_k = inputs.k_cur != nullptr;
        return ggml_custom_4d(ctx, GGML_TYPE_F32, int64_t(hp.n_embd_head_v) * hp.n_head, step_.n_tokens, 1, 1,
                              args.data(), int(args.size()), &FusedCpuAttention::run, GGML_N_TASKS_MAX, &userdata_[il]);
    }

    void set_inputs() override {}

    int64_t size_bytes() const override { return int64_t(scratch_.capacity() * sizeof(float)) + shared_.size_bytes(); }

  private:
    struct UserData {
        FusedCpuAttention * self = nullptr;
        int32_t il = 0;
        bool has_q = false, has_k = false;
    };

    // Everything one unit of work needs.
    struct Unit {
        const AttnLayer & layer;
        Rows keys, values;
        int32_t kv_head;
        int64_t first;      // first query of the tile, within the ubatch
        int64_t n_queries;  // of the tile
        const ggml_tensor * q;
        float *
            window;  // [n_columns, n_gqa, n_queries]: column = position (sinks), or after the sinks, position - recent.begin
        float * distant;           // [n_columns, n_gqa, n_queries]: column = position - n_sink
        float * out;               // [n_embd_head_v, n_gqa, n_queries]
        float * rows;              // [n_embd_head, n_block]
        Range sinks, recent, far;  // positions that some query of the tile needs
    };

    static void run(ggml_tensor * dst, int ith, int nth, void * userdata) {
        const UserData & data = *static_cast<const UserData *>(userdata);
        data.self->run_layer(dst, ith, nth, data);
    }

    void run_layer(ggml_tensor * dst, int ith, int nth, const UserData & data) {
        const HParams & hp = table_.hp;
        const AttnLayer & layer = table_.layers[data.il];
        const LayerLayout & layout = cache_.layout().layers[data.il];
        const LayerCache & rows = cache_.layer(data.il);
        const ggml_tensor * v_cur = dst->src[0];
        const ggml_tensor * k_cur = data.has_k ? dst->src[1] : nullptr;
        const ggml_tensor * q = data.has_q ? dst->src[data.has_k ? 2 : 1] : nullptr;

        float * scratch = scratch_.data() + ith * scratch_stride_;
        const int64_t n_tiles = (step_.n_tokens + n_tile - 1) / n_tile;
        for (int64_t i = ith; i < n_tiles * hp.n_head_kv; i += nth) {
            const int32_t kv = int32_t(i / n_tiles);
            const KvHeadLayout & kv_layout = layout.kv_heads[kv];
            const int64_t first = i % n_tiles * n_tile;
            const int64_t n_queries = std::min(n_tile, step_.n_tokens - first);
            const int64_t n_rows = std::min(n_tile, step_.n_tokens) * hp.n_gqa();
            const int64_t t0 = step_.n_past + first, t1 = t0 + n_queries;  // positions [t0, t1)
            Unit unit{layer,
                      Rows(rows.k_full, rows.k_ring, k_cur, kv_layout.k_full, kv_layout.k_index, kv, cache_.ring(),
                           step_.n_past),
                      Rows(rows.v_full, rows.v_ring, v_cur, kv_layout.v_full, kv_layout.v_index, kv, cache_.ring(),
                           step_.n_past),
                      kv,
                      first,
                      n_queries,
                      q,
                      scratch,
                      scratch + n_rows * n_columns_,
                      scratch + 2 * n_rows * n_columns_,
                      scratch + 2 * n_rows * n_columns_ + n_rows * hp.n_embd_head_v,
                      {},
                      {},
                      {}};
            if (table_.n_recent > 0) {
                unit.sinks = {0, std::min<int64_t>(table_.n_sink, t1)};
                unit.recent = {std::max<int64_t>(table_.n_sink, t0 - table_.n_recent + 1), t1};
            }
            unit.far = {table_.n_sink, t1 - table_.n_recent};
            score_window(unit);
            score_distant(unit);
            softmax(unit);
            weigh_values(unit);
            for (int64_t iq = 0; iq < n_queries; ++iq) {
                float * out = static_cast<float *>(dst->data) + (first + iq) * dst->ne[0] +
                              int64_t(kv) * hp.n_gqa() * hp.n_embd_head_v;
                std::memcpy(out, unit.out + iq * hp.n_gqa() * hp.n_embd_head_v,
                            hp.n_gqa() * hp.n_embd_head_v * sizeof(float));
            }
        }
    }

    const float * query(const Unit & unit, int64_t iq, int32_t g) const {
        const char * base = static_cast<const char *>(unit.q->data);
        const int64_t h = int64_t(unit.kv_head) * table_.hp.n_gqa() + g;
        return reinterpret_cast<const float *>(base + h * unit.q->nb[1] + (unit.first + iq) * unit.q->nb[2]);
    }

    float * line(float * columns, int64_t iq, int32_t g) const {
        return columns + (iq * table_.hp.n_gqa() + g) * n_columns_;
    }

    // Scores of every query of the tile against the rows of `range`, to columns from `column` on.
    void score(Unit & unit, const Rows & keys, Range range, float * columns, int64_t column) const {
        const HParams & hp = table_.hp;
        for (int64_t begin = range.begin; begin < range.end; begin += n_block) {
            const int64_t n = std::min(n_block, range.end - begin);
            keys.load(begin, n, unit.rows);
            for (int64_t iq = 0; iq < unit.n_queries; ++iq)
                for (int32_t g = 0; g < hp.n_gqa(); ++g) {
                    const float * q = query(unit, iq, g);
                    float * out = line(columns, iq, g) + column + (begin - range.begin);
                    for (int64_t i = 0; i < n; ++i)
                        out[i] = hp.kq_scale * dot(q, unit.rows + i * hp.n_embd_head_k, hp.n_embd_head_k);
                }
        }
    }

    void score_window(Unit & unit) const {
        if (table_.n_recent == 0) return;
        score(unit, unit.keys, unit.sinks, unit.window, 0);
        score(unit, unit.keys, unit.recent, unit.window, unit.sinks.size());
    }

    // Owners read their own keys, followers of "keys" the source's; followers of "scores" read none.
    void score_distant(Unit & unit) const {
        const int32_t source = unit.layer.keys_layer[unit.kv_head];
        if (source < 0 || unit.far.size() == 0) return;
        const KvHeadLayout & layout = cache_.layout().layers[source].kv_heads[unit.kv_head];
        const Rows keys(cache_.layer(source).k_full, nullptr, nullptr, true, layout.k_index, unit.kv_head,
                        cache_.ring(), step_.n_past);
        score(unit, keys, unit.far, unit.distant, 0);
    }

    // Weights of the distant columns of one query and head, and their maximum and sum; empty for a local head.
    Part distant_part(const Unit & unit, const AttnHead & head, int64_t iq, float * columns, Range far) {
        if (head.kind == HeadKind::local || far.size() == 0) return {};
        const int64_t t = unit.first + iq;
        if (head.slot_in >= 0) return shared_.get(head.slot_in, t, columns, far.size());
        const Part part = exponentiate(columns, {0, far.size()});
        if (head.slot_out >= 0) shared_.put(head.slot_out, t, columns, far.size(), part);
        return part;
    }

    // Scores -> normalised weights; columns outside P(t) and D(t) become 0.
    void softmax(Unit & unit) {
        for (int64_t iq = 0; iq < unit.n_queries; ++iq) {
            const int64_t t = step_.n_past + unit.first + iq;
            const Range far{table_.n_sink, std::max<int64_t>(table_.n_sink, t - table_.n_recent + 1)};
            for (int32_t g = 0; g < table_.hp.n_gqa(); ++g) {
                const AttnHead & head = unit.layer.heads[unit.kv_head * table_.hp.n_gqa() + g];
                float * window = line(unit.window, iq, g);
                float * distant = line(unit.distant, iq, g);
                const Part near = window_part(unit, t, window);
                const Part dist = distant_part(unit, head, iq, distant, far);

                const float max = std::max(near.max, dist.max + head.bias);
                const float near_mass = near.sum * (near.sum > 0 ? std::exp(near.max - max) : 0.0f);
                float dist_mass = dist.sum * (dist.sum > 0 ? std::exp(dist.max + head.bias - max) : 0.0f);
                if (table_.skip_gate < 1.0f && near_mass / (near_mass + dist_mass) >= table_.skip_gate)
                    dist_mass = 0.0f;
                const float total = near_mass + dist_mass;
                scale(window, unit.sinks.size() + unit.recent.size(),
                      near.sum > 0 ? near_mass / near.sum / total : 0.0f);
                scale(distant, far.size(), dist.sum > 0 ? dist_mass / dist.sum / total : 0.0f);
                std::fill(distant + far.size(), distant + unit.far.size(), 0.0f);
            }
        }
    }

    // P(t) within the columns of the tile: the sinks up to t and the last n_recent positions. The rest is cleared.
    Part window_part(const Unit & unit, int64_t t, float * columns) const {
        if (table_.n_recent == 0) return {};
        const int64_t n_sinks = unit.sinks.size();
        const int64_t sink_end = std::min(t + 1, unit.sinks.end);
        const int64_t begin =
            n_sinks + std::max<int64_t>(unit.recent.begin, t - table_.n_recent + 1) - unit.recent.begin;
        const int64_t end = n_sinks + std::max(unit.recent.begin, t + 1) - unit.recent.begin;
        const float nothing = -std::numeric_limits<float>::infinity();
        std::fill(columns + sink_end, columns + begin, nothing);
        std::fill(columns + end, columns + n_sinks + unit.recent.size(), nothing);
        return exponentiate(columns, {0, n_sinks + unit.recent.size()});
    }

    // A factor of 0 also clears columns that were never scored.
    static void scale(float * columns, int64_t n, float factor) {
        if (factor == 0.0f) return std::fill(columns, columns + n, 0.0f);
        for (int64_t i = 0; i < n; ++i) columns[i] *= factor;
    }

    void weigh(Unit & unit, Range range, const float * columns, int64_t column) const {
        const HParams & hp = table_.hp;
        for (int64_t begin = range.begin; begin < range.end; begin += n_block) {
            const int64_t n = std::min(n_block, range.end - begin);
            unit.values.load(begin, n, unit.rows);
            for (int64_t iq = 0; iq < unit.n_queries; ++iq)
                for (int32_t g = 0; g < hp.n_gqa(); ++g) {
                    const float * weights =
                        columns + (iq * hp.n_gqa() + g) * n_columns_ + column + (begin - range.begin);
                    float * out = unit.out + (iq * hp.n_gqa() + g) * hp.n_embd_head_v;
                    for (int64_t i = 0; i < n; ++i)
                        if (weights[i] != 0.0f)
                            add_scaled(out, weights[i], unit.rows + i * hp.n_embd_head_v, hp.n_embd_head_v);
                }
        }
    }

    void weigh_values(Unit & unit) const {
        std::fill(unit.out, unit.out + unit.n_queries * table_.hp.n_gqa() * table_.hp.n_embd_head_v, 0.0f);
        if (table_.n_recent > 0) {
            weigh(unit, unit.sinks, unit.window, 0);
            weigh(unit, unit.recent, unit.window, unit.sinks.size());
        }
        bool any_distant = false;
        for (int32_t g = 0; g < table_.hp.n_gqa(); ++g)
            any_distant |= unit.layer.heads[unit.kv_head * table_.hp.n_gqa() + g].kind != HeadKind::local;
        if (any_distant) weigh(unit, unit.far, unit.distant, 0);
    }

    const AttnTable & table_;
    const SplitCache & cache_;
    const int n_threads_;
    AttnStep step_;
    int64_t n_columns_ = 0;
    int64_t scratch_stride_ = 0;
    std::vector<UserData> userdata_;
    std::vector<float> scratch_;
    DistantStore shared_;
};

}  // namespace

std::unique_ptr<SharedAttention> make_fused_cpu_attention(const AttnTable & table, const SplitCache & cache,
                                                          int n_threads) {
    return std::make_unique<FusedCpuAttention>(table, cache, n_threads);
}

}  // namespace pysa
