#include "ops/cpu_prompt.h"

#include "ops/softmax_parts.h"

namespace pysa {

namespace {

constexpr int64_t n_tile = n_lanes * (n_block_rows + n_pad_columns);  // floats

// What a tile, [n_lanes, 2], has seen of one query's part.
SoftmaxPart of_lane(const float * seen, int64_t lane) { return {seen[lane], seen[n_lanes + lane]}; }

}  // namespace

void PromptAttention::Part::clear() {
    for (size_t i = 0; i < seen.size(); ++i) seen[i] = i / n_lanes % 2 == 0 ? minus_infinity : 0.0f;
    std::fill(out.begin(), out.end(), 0.0f);
}

PromptAttention::PromptAttention(const AttnTable & table, const SplitCache & cache, const CpuKernels & kernels,
                                 int n_threads)
    : table_(table), cache_(cache), kernels_(kernels), n_gqa_(table.hp.n_gqa()),
      stride_k_(padded(table.hp.n_embd_head_k, n_pad_embd)), stride_v_(padded(table.hp.n_embd_head_v, n_pad_embd)),
      scratch_(n_threads), next_unit_(new std::atomic<int64_t>[table.layers.size()]()) {
    for (Scratch & scratch : scratch_) {
        scratch.queries.resize(n_gqa_ * n_lanes * table.hp.n_embd_head_k);
        scratch.tiles.resize(n_gqa_ * n_tile);
        scratch.scored_queries.reserve(n_gqa_);  // nothing is allocated inside a graph: no exception may leave it
        scratch.scored_tiles.reserve(n_gqa_);
        scratch.rows.resize((n_block_rows + n_pad_columns) * std::max(stride_k_, stride_v_));
        for (Part * part : {&scratch.near, &scratch.far}) {
            part->seen.resize(n_gqa_ * 2 * n_lanes);
            part->out.resize(n_gqa_ * n_lanes * stride_v_);
        }
    }
}

void PromptAttention::begin(const AttnStep & step) {
    step_ = step;
    n_tiles_ = (step.n_tokens + n_lanes - 1) / n_lanes;
    const int64_t n_far = std::max<int64_t>(0, step.n_kv() - table_.n_recent - table_.n_sink);
    shared_.begin(table_.n_slots, n_tiles_, (n_far + n_block_rows - 1) / n_block_rows, n_lanes, n_block_rows);
    for (size_t i = 0; i < table_.layers.size(); ++i) next_unit_[i].store(0, std::memory_order_relaxed);
}

int64_t PromptAttention::bytes_per_token(int64_t n_kv) const {
    const int64_t n_chunks = (std::max<int64_t>(0, n_kv - table_.n_recent) + n_block_rows - 1) / n_block_rows;
    return table_.n_slots * n_chunks * (n_block_rows * int64_t(sizeof(uint16_t)) + 2 * int64_t(sizeof(float)));
}

int64_t PromptAttention::size_bytes() const {
    int64_t n = 0;
    for (const Scratch & s : scratch_)
        n += int64_t(s.queries.size() + s.tiles.size() + s.rows.size() + 2 * (s.near.seen.size() + s.near.out.size()));
    return n * int64_t(sizeof(float)) + shared_.size_bytes();
}

void PromptAttention::run(const AttnLayer & layer, const AttnInputs & inputs, ggml_tensor * dst, int ith) {
    for (;;) {
        const int64_t i = next_unit_[layer.il].fetch_add(1, std::memory_order_relaxed);
        if (i >= n_tiles_ * table_.hp.n_head_kv) return;
        const int64_t tile = n_tiles_ - 1 - i % n_tiles_;  // the longest first
        const int64_t first = tile * n_lanes;
        const Unit unit = {
            layer, inputs, i / n_tiles_, tile, std::min(n_lanes, step_.n_tokens - first), step_.n_past + first};
        run_unit(unit, dst, scratch_[ith]);
    }
}

// The query at t sees [max(begin, t - before + 1), min(end, t - behind + 1)).
PromptAttention::View PromptAttention::view(const Unit & unit, int64_t begin, int64_t before, int64_t end,
                                            int64_t behind) const {
    View view;
    for (int64_t lane = 0; lane < unit.n_queries; ++lane) {
        const int64_t t = unit.t0 + lane;
        view.begin[lane] = int32_t(std::max(begin, t - before + 1));
        view.end[lane] = int32_t(std::max<int64_t>(view.begin[lane], std::min(end, t - behind + 1)));
    }
    const int64_t last = unit.n_queries - 1;
    view.rows = {view.begin[0], std::max(view.end[last], view.begin[0])};
    return view;
}

void PromptAttention::run_unit(const Unit & unit, ggml_tensor * dst, Scratch & scratch) {
    scratch.near.clear();
    scratch.far.clear();
    if (unit.inputs.q) take_queries(unit, scratch);
    const int64_t all = unit.t0 + n_lanes;  // more than anyone sees
    if (table_.n_recent > 0) {
        attend(unit, view(unit, 0, all, table_.n_sink, 0), false, scratch.near, scratch);
        attend(unit, view(unit, table_.n_sink, table_.n_recent, all, 0), false, scratch.near, scratch);
    }
    const AttnHead * heads = &unit.layer.heads[unit.kv * n_gqa_];
    const bool all_local =
        std::all_of(heads, heads + n_gqa_, [](const AttnHead & head) { return head.kind == HeadKind::local; });
    if (!all_local && !is_gated(unit, scratch))
        attend(unit, view(unit, table_.n_sink, all, all, table_.n_recent), true, scratch.far, scratch);
    merge(unit, dst, scratch);
}

// The tile's queries, side by side and scaled; lanes without a query are 0.
void PromptAttention::take_queries(const Unit & unit, Scratch & scratch) const {
    const ggml_tensor * q = unit.inputs.q;
    const int64_t n_embd = table_.hp.n_embd_head_k;
    std::fill(scratch.queries.begin(), scratch.queries.end(), 0.0f);
    for (int64_t g = 0; g < n_gqa_; ++g)
        for (int64_t lane = 0; lane < unit.n_queries; ++lane) {
            const auto * from =
                reinterpret_cast<const float *>(static_cast<const char *>(q->data) + (unit.kv * n_gqa_ + g) * q->nb[1] +
                                                (unit.tile * n_lanes + lane) * q->nb[2]);
            float * to = &scratch.queries[g * n_lanes * n_embd + lane];
            for (int64_t d = 0; d < n_embd; ++d) to[d * n_lanes] = from[d] * table_.hp.kq_scale;
        }
}

// Whether the gate shuts the distance out for every query, known before a value is read: where all weights are there already.
bool PromptAttention::is_gated(const Unit & unit, const Scratch & scratch) {
    if (table_.skip_gate >= 1.0f) return false;
    for (int64_t g = 0; g < n_gqa_; ++g) {
        const AttnHead & head = unit.layer.heads[unit.kv * n_gqa_ + g];
        if (head.kind == HeadKind::local) continue;
        if (head.scores_far()) return false;
        float seen[2 * n_lanes], decay[n_lanes], factor[n_lanes];
        std::fill(seen, seen + n_lanes, minus_infinity);
        std::fill(seen + n_lanes, seen + 2 * n_lanes, 0.0f);
        const float * near = &scratch.near.seen[g * 2 * n_lanes];
        const int64_t n_far = unit.t0 + unit.n_queries - table_.n_recent - table_.n_sink;
        for (int64_t begin = 0; begin < n_far; begin += n_block_rows)
            kernels_.merge_tile(seen, shared_.part(head.slot_in, unit.tile, begin / n_block_rows), head.bias, decay,
                                factor);
        for (int64_t lane = 0; lane < unit.n_queries; ++lane)
            if (join_parts(of_lane(near, lane), of_lane(seen, lane), table_.skip_gate).has_far) return false;
    }
    return true;
}

// Adds the rows of a view to one part of the softmax of every head that sees them.
void PromptAttention::attend(const Unit & unit, const View & view, bool is_far, Part & part, Scratch & scratch) {
    const AttnHead * heads = &unit.layer.heads[unit.kv * n_gqa_];
    const int32_t source = is_far ? unit.layer.keys_layer[unit.kv] : unit.layer.il;
    std::vector<const float *> & queries = scratch.scored_queries;
    std::vector<float *> & tiles = scratch.scored_tiles;
    queries.clear();
    tiles.clear();
    for (int64_t g = 0; g < n_gqa_; ++g) {
        if (is_far && !heads[g].scores_far()) continue;
        queries.push_back(&scratch.queries[g * n_lanes * table_.hp.n_embd_head_k]);
        tiles.push_back(&scratch.tiles[g * n_tile]);
    }
    const Rows values = Rows::values(cache_, unit.layer.il, int32_t(unit.kv), unit.inputs.v_cur, step_.n_past);
    const int32_t begin_most = *std::max_element(view.begin, view.begin + unit.n_queries);
    const int32_t end_least = *std::min_element(view.end, view.end + unit.n_queries);
    for (int64_t begin = view.rows.begin; begin < view.rows.end; begin += n_block_rows) {
        const int64_t n = std::min(n_block_rows, view.rows.end - begin),
                      chunk = (begin - view.rows.begin) / n_block_rows;
        if (!tiles.empty()) {
            Rows::keys(cache_, source, int32_t(unit.kv), unit.inputs.k_cur, step_.n_past)
                .load(kernels_, begin, n, stride_k_, scratch.rows.data());
            kernels_.score_tiles(queries.data(), tiles.data(), int64_t(tiles.size()), scratch.rows.data(), n, stride_k_,
                                 table_.hp.n_embd_head_k);
        }
        values.load(kernels_, begin, n, stride_v_, scratch.rows.data());
        const char * rows[n_block_rows];
        for (int64_t i = 0; i < n; ++i) rows[i] = reinterpret_cast<const char *>(&scratch.rows[i * stride_v_]);

        for (int64_t g = 0; g < n_gqa_; ++g) {
            const AttnHead & head = heads[g];
            if (is_far && head.kind == HeadKind::local) continue;
            float * tile = &scratch.tiles[g * n_tile];
            float * seen = &part.seen[g * 2 * n_lanes];
            float own[2 * n_lanes], decay[n_lanes], factor[n_lanes];
            const float * added = own;
            if (is_far && head.slot_in >= 0) {
                kernels_.unpack(shared_.weights(head.slot_in, unit.tile, chunk), n * n_lanes, tile);
                added = shared_.part(head.slot_in, unit.tile, chunk);
            } else {
                if (begin < begin_most || begin + n > end_least)
                    kernels_.mask_tile(tile, n, int32_t(begin), view.begin, view.end);
                const bool is_left = is_far && head.slot_out >= 0;
                kernels_.softmax_tile(tile, n, is_left ? nullptr : seen,
                                      is_left ? shared_.weights(head.slot_out, unit.tile, chunk) : nullptr, own);
                if (is_left) std::copy_n(own, 2 * n_lanes, shared_.part(head.slot_out, unit.tile, chunk));
            }
            const float bias = is_far ? head.bias : 0.0f;
            kernels_.merge_tile(seen, added, bias, decay, factor);
            kernels_.weigh(GGML_TYPE_F32, tile, 1, n_lanes, unit.n_queries, rows, nullptr, n, stride_v_, decay, factor,
                           &part.out[g * n_lanes * stride_v_], stride_v_);
        }
    }
}

// One softmax over both parts, the gate between them, and the result.
void PromptAttention::merge(const Unit & unit, ggml_tensor * dst, const Scratch & scratch) const {
    const int64_t n_embd = table_.hp.n_embd_head_v;
    for (int64_t g = 0; g < n_gqa_; ++g)
        for (int64_t lane = 0; lane < unit.n_queries; ++lane) {
            const SoftmaxPart near_part = of_lane(&scratch.near.seen[g * 2 * n_lanes], lane);
            const SoftmaxPart far_part = of_lane(&scratch.far.seen[g * 2 * n_lanes], lane);
            const SoftmaxJoin join = join_parts(near_part, far_part, table_.skip_gate);
            const float * near = &scratch.near.out[(g * n_lanes + lane) * stride_v_];
            const float * far = &scratch.far.out[(g * n_lanes + lane) * stride_v_];
            float * to = static_cast<float *>(dst->data) + (unit.tile * n_lanes + lane) * dst->ne[0] +
                         (unit.kv * n_gqa_ + g) * n_embd;
            const float a = join.factor(near_part.max), b = join.has_far ? join.factor(far_part.max) : 0.0f;
            for (int64_t d = 0; d < n_embd; ++d) to[d] = near[d] * a + far[d] * b;
        }
}

}  // namespace pysa
