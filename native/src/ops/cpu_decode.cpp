#include "ops/cpu_decode.h"

#include <cmath>

namespace pysa {

namespace {

// Calls f(begin, end) for every stretch of heads of a KV head's group for which `is_in` holds.
template <class Predicate, class F> void for_each_stretch(int64_t n, Predicate && is_in, F && f) {
    for (int64_t begin = 0; begin < n; ++begin) {
        if (!is_in(begin)) continue;
        int64_t end = begin;
        while (end < n && is_in(end)) ++end;
        f(begin, end);
        begin = end;
    }
}

}  // namespace

DecodeAttention::DecodeAttention(const AttnTable & table, const SplitCache & cache, const CpuKernels & kernels,
                                 int n_threads, float v_skip)
    : table_(table), cache_(cache), kernels_(kernels), v_skip_(v_skip), n_gqa_(table.hp.n_gqa()),
      stride_k_(padded(table.hp.n_embd_head_k, n_pad_embd)), stride_v_(padded(table.hp.n_embd_head_v, n_pad_embd)),
      lines_(table.hp.n_head), arrived_(new std::atomic<int32_t>[table.hp.n_head_kv]()), scratch_(n_threads),
      tallies_(n_threads), next_unit_(new std::atomic<int64_t>[2 * table.layers.size()]()) {
    for (Scratch & scratch : scratch_) {
        scratch.queries.resize(n_gqa_ * stride_k_);
        scratch.weights.resize(n_gqa_ * n_chunk);
        scratch.factors.resize(n_gqa_);
        scratch.rows.resize(n_chunk * std::max(stride_k_, stride_v_));
    }
}

void DecodeAttention::begin(int64_t t) {
    t_ = t;
    chunks_.clear();
    int64_t n_near = 0, n_far = 0;
    const auto add = [&](bool is_far, int64_t & index, int64_t begin, int64_t end) {
        for (; begin < end; begin += n_chunk)
            chunks_.push_back({is_far, index++, {begin, std::min(begin + n_chunk, end)}});
    };
    if (table_.n_recent > 0) {
        add(false, n_near, 0, std::min<int64_t>(table_.n_sink, t + 1));
        add(false, n_near, std::max<int64_t>(table_.n_sink, t - table_.n_recent + 1), t + 1);
    }
    add(true, n_far, table_.n_sink, t - table_.n_recent + 1);

    const int64_t n_head = table_.hp.n_head;
    n_splits_ = std::clamp<int64_t>(int64_t(chunks_.size()) / 4, 1, n_most_splits);
    near_.begin(n_head, 1, n_near, 1, n_chunk);
    far_.begin(n_head, 1, n_far, 1, n_chunk);
    shared_.begin(table_.n_slots, 1, n_far, 1, n_chunk);
    resize_buffer(lists_, v_skip_ > 0 ? (table_.n_slots + n_head) * n_far : 0);
    resize_buffer(outs_, table_.hp.n_head_kv * n_splits_ * n_gqa_ * stride_v_);
    for (size_t i = 0; i < 2 * table_.layers.size(); ++i) next_unit_[i].store(0, std::memory_order_relaxed);
}

// Where a head's list of rows stands: with the weights it was made from.
ValueList & DecodeAttention::list_of(const AttnHead & head, int64_t h, int64_t chunk) {
    const int64_t slot = head.slot_in >= 0 ? head.slot_in : head.slot_out >= 0 ? head.slot_out : table_.n_slots + h;
    return lists_[slot * far_.n_chunks() + chunk];
}

// Maximum and sum of a chunk's weights.
const float * DecodeAttention::part(const AttnHead & head, int64_t h, bool is_far, int64_t chunk) {
    if (!is_far) return near_.part(h, 0, chunk);
    return head.slot_in >= 0 ? shared_.part(head.slot_in, 0, chunk) : far_.part(h, 0, chunk);
}

Range DecodeAttention::split(int64_t i) const {
    const int64_t n = int64_t(chunks_.size());
    return {i * n / n_splits_, (i + 1) * n / n_splits_};
}

// -- first node ------------------------------------------------------------------------------------------------------------

void DecodeAttention::score(const AttnLayer & layer, const AttnInputs & inputs, int ith) {
    Scratch & scratch = scratch_[ith];
    for (;;) {
        const int64_t unit = next_unit_[2 * layer.il].fetch_add(1, std::memory_order_relaxed);
        if (unit >= table_.hp.n_head_kv * n_splits_) return;
        const int64_t kv = unit / n_splits_;
        const int32_t source = layer.keys_layer[kv];
        const float * queries = nullptr;
        int64_t query_stride = 0;
        if (inputs.q) {
            queries = reinterpret_cast<const float *>(static_cast<const char *>(inputs.q->data) +
                                                      kv * n_gqa_ * inputs.q->nb[1]);
            query_stride = int64_t(inputs.q->nb[1] / sizeof(float));
            if (stride_k_ != table_.hp.n_embd_head_k) {
                for (int64_t g = 0; g < n_gqa_; ++g)
                    std::copy_n(queries + g * query_stride, table_.hp.n_embd_head_k, &scratch.queries[g * stride_k_]);
                queries = scratch.queries.data();
                query_stride = stride_k_;
            }
        }
        const Range own = split(unit % n_splits_);
        for (int64_t i = own.begin; i < own.end; ++i) {
            const Chunk & chunk = chunks_[i];
            if (chunk.is_far && source < 0) continue;
            const Rows keys = Rows::keys(cache_, chunk.is_far ? source : layer.il, int32_t(kv), inputs.k_cur, t_);
            score_chunk(layer, keys, chunk, kv, queries, query_stride, scratch);
        }
        if (arrived_[kv].fetch_add(1, std::memory_order_acq_rel) + 1 == n_splits_) {
            arrived_[kv].store(0, std::memory_order_relaxed);
            close_softmax(layer, kv);
        }
    }
}

// A chunk's rows as the kernels take them: in the cache's own type, or as float where a head's size is no multiple of a kernel's
// block or so many heads share a row that converting it once is cheaper. Returns the type.
ggml_type DecodeAttention::find_rows(const Rows & rows, const Chunk & chunk, int64_t stride, const char ** found,
                                     Scratch & scratch) const {
    const int64_t n = chunk.rows.size();
    rows.find(chunk.rows.begin, n, found);
    if (rows.n_embd() == stride && (n_gqa_ <= 8 || rows.type() == GGML_TYPE_F32)) return rows.type();
    kernels_.to_float(rows.type(), found, n, rows.n_embd(), scratch.rows.data(), stride);
    for (int64_t i = 0; i < n; ++i) found[i] = reinterpret_cast<const char *>(&scratch.rows[i * stride]);
    return GGML_TYPE_F32;
}

void DecodeAttention::score_chunk(const AttnLayer & layer, const Rows & keys, const Chunk & chunk, int64_t kv,
                                  const float * queries, int64_t query_stride, Scratch & scratch) {
    const AttnHead * heads = &layer.heads[kv * n_gqa_];
    const auto is_scored = [&](int64_t g) { return !chunk.is_far || heads[g].scores_far(); };
    WeightStore<float> & store = chunk.is_far ? far_ : near_;
    const int64_t n = chunk.rows.size();
    const char * rows[n_chunk];
    const ggml_type type = find_rows(keys, chunk, stride_k_, rows, scratch);
    for_each_stretch(n_gqa_, is_scored, [&](int64_t g, int64_t end) {
        kernels_.dots(type, queries + g * query_stride, query_stride, end - g, rows, n, stride_k_, table_.hp.kq_scale,
                      store.weights(kv * n_gqa_ + g, 0, chunk.index), store.slot_stride());
    });
    for (int64_t g = 0; g < n_gqa_; ++g) {
        if (!is_scored(g)) continue;
        const int64_t h = kv * n_gqa_ + g, slot = heads[g].slot_out;
        const bool is_left = chunk.is_far && slot >= 0;
        float * part = store.part(h, 0, chunk.index);
        kernels_.softmax(store.weights(h, 0, chunk.index), n, is_left ? shared_.weights(slot, 0, chunk.index) : nullptr,
                         part, part + 1);
        if (is_left) std::copy_n(part, 2, shared_.part(slot, 0, chunk.index));
    }
}

// One softmax over both parts of each head, and the gate: by the last split of a KV head.
void DecodeAttention::close_softmax(const AttnLayer & layer, int64_t kv) {
    const auto total = [this](const AttnHead & head, int64_t h, bool is_far) {
        SoftmaxPart all;
        const int64_t n = is_far ? far_.n_chunks() : near_.n_chunks();
        for (int64_t i = 0; i < n; ++i) all.max = std::max(all.max, part(head, h, is_far, i)[0]);
        for (int64_t i = 0; i < n; ++i) {
            const float * chunk = part(head, h, is_far, i);
            all.sum += chunk[1] * std::exp(chunk[0] - all.max);
        }
        return all;
    };
    for (int64_t g = 0; g < n_gqa_; ++g) {
        const int64_t h = kv * n_gqa_ + g;
        const AttnHead & head = layer.heads[h];
        Line & line = lines_[h];
        line.far = head.kind == HeadKind::local ? SoftmaxPart() : total(head, h, true);
        line.join = join_parts(total(head, h, false), {line.far.max + head.bias, line.far.sum}, table_.skip_gate);
    }
}

// -- second node -----------------------------------------------------------------------------------------------------------

void DecodeAttention::weigh(const AttnLayer & layer, const AttnInputs & inputs, ggml_tensor * dst, int ith) {
    Scratch & scratch = scratch_[ith];
    const int64_t n_out = n_gqa_ * stride_v_;
    for (;;) {
        const int64_t unit = next_unit_[2 * layer.il + 1].fetch_add(1, std::memory_order_relaxed);
        if (unit >= table_.hp.n_head_kv * n_splits_) return;
        const int64_t kv = unit / n_splits_;
        const Rows values = Rows::values(cache_, layer.il, int32_t(kv), inputs.v_cur, t_);
        float * out = &outs_[unit * n_out];
        std::fill(out, out + n_out, 0.0f);
        const Range own = split(unit % n_splits_);
        for (int64_t i = own.begin; i < own.end; ++i)
            weigh_chunk(layer, values, chunks_[i], kv, out, scratch, tallies_[ith]);
        if (arrived_[kv].fetch_add(1, std::memory_order_acq_rel) + 1 == n_splits_) {
            arrived_[kv].store(0, std::memory_order_relaxed);
            add_up(layer, kv, dst, tallies_[ith]);
        }
    }
}

// A chunk's part of v_skip is by its number of rows, so that the parts add up to v_skip.
ValueList DecodeAttention::choose(const Chunk & chunk, int64_t h) {
    const float * part = far_.part(h, 0, chunk.index);
    const int64_t n = chunk.rows.size(), n_far = t_ - table_.n_recent + 1 - table_.n_sink;
    const float scale = std::exp(part[0] - lines_[h].far.max) / lines_[h].far.sum;
    return ValueList::choose(kernels_, far_.weights(h, 0, chunk.index), n, part[1], scale,
                             v_skip_ * float(n) / float(n_far));
}

void DecodeAttention::weigh_chunk(const AttnLayer & layer, const Rows & values, const Chunk & chunk, int64_t kv,
                                  float * out, Scratch & scratch, Tally & tally) {
    const AttnHead * heads = &layer.heads[kv * n_gqa_];
    const Line * lines = &lines_[kv * n_gqa_];
    WeightStore<float> & store = chunk.is_far ? far_ : near_;
    const int64_t h0 = kv * n_gqa_, n = chunk.rows.size();
    const bool skips = chunk.is_far && v_skip_ > 0;
    const auto is_weighed = [&](int64_t g) { return !chunk.is_far || lines[g].join.has_far; };
    ValueList joined;
    bool any = false, any_taken = false;
    for (int64_t g = 0; g < n_gqa_; ++g) {
        const AttnHead & head = heads[g];
        // Also where the gate is shut: followers may need the list.
        if (skips && head.scores_far()) list_of(head, h0 + g, chunk.index) = choose(chunk, h0 + g);
        if (!is_weighed(g)) continue;
        any = true;
        any_taken |= chunk.is_far && head.slot_in >= 0;
        const float max = part(head, h0 + g, chunk.is_far, chunk.index)[0] + (chunk.is_far ? head.bias : 0.0f);
        scratch.factors[g] = lines[g].join.factor(max);
        if (skips) joined.join(list_of(head, h0 + g, chunk.index));
    }
    if (chunk.is_far) tally.sums.n_values += n;
    if (!any) return;
    const int64_t n_kept = skips ? joined.count() : n;
    if (n_kept == 0) return;

    // Weights where they are, or side by side where some come from a source.
    for (int64_t g = 0; any_taken && g < n_gqa_; ++g) {
        if (!is_weighed(g)) continue;
        float * to = &scratch.weights[g * n_chunk];
        if (heads[g].slot_in >= 0) {
            kernels_.unpack(shared_.weights(heads[g].slot_in, 0, chunk.index), n, to);
        } else {
            std::copy_n(store.weights(h0 + g, 0, chunk.index), n, to);
        }
    }
    const float * weights = any_taken ? scratch.weights.data() : store.weights(h0, 0, chunk.index);
    const int64_t head_step = any_taken ? n_chunk : store.slot_stride();
    int32_t list[n_chunk + n_lanes];
    const bool is_listed = n_kept < n - n / 8;  // else a list costs more than it saves
    const int64_t n_rows = is_listed ? joined.write(kernels_, list) : n;
    if (chunk.is_far) tally.sums.n_values_read += n_rows;

    const char * rows[n_chunk];
    const ggml_type type = find_rows(values, chunk, stride_v_, rows, scratch);
    for_each_stretch(n_gqa_, is_weighed, [&](int64_t g, int64_t end) {
        kernels_.weigh(type, weights + g * head_step, head_step, 1, end - g, rows, is_listed ? list : nullptr, n_rows,
                       stride_v_, nullptr, &scratch.factors[g], out + g * stride_v_, stride_v_);
    });
}

// The splits of a KV head, in order; and what its owners left out.
void DecodeAttention::add_up(const AttnLayer & layer, int64_t kv, ggml_tensor * dst, Tally & tally) {
    const int64_t n_embd = table_.hp.n_embd_head_v, n_out = n_gqa_ * stride_v_;
    const float * outs = &outs_[kv * n_splits_ * n_out];
    for (int64_t g = 0; g < n_gqa_; ++g) {
        const int64_t h = kv * n_gqa_ + g;
        float * to = static_cast<float *>(dst->data) + h * n_embd;
        std::copy_n(outs + g * stride_v_, n_embd, to);
        for (int64_t i = 1; i < n_splits_; ++i)
            for (int64_t d = 0; d < n_embd; ++d) to[d] += outs[i * n_out + g * stride_v_ + d];
        if (v_skip_ <= 0 || far_.n_chunks() == 0 || !layer.heads[h].scores_far()) continue;
        double dropped = 0;
        for (int64_t i = 0; i < far_.n_chunks(); ++i) dropped += list_of(layer.heads[h], h, i).dropped;
        tally.sums.dropped_mass_max = std::max(tally.sums.dropped_mass_max, dropped);
        tally.sums.dropped_mass_mean += dropped;
        ++tally.n_heads;
    }
}

// ---------------------------------------------------------------------------------------------------------------------------

int64_t DecodeAttention::size_bytes() const {
    int64_t n =
        near_.size_bytes() + far_.size_bytes() + shared_.size_bytes() + int64_t(lists_.capacity() * sizeof(ValueList));
    n += int64_t(outs_.capacity() * sizeof(float));
    for (const Scratch & s : scratch_)
        n += int64_t((s.queries.size() + s.weights.size() + s.rows.size()) * sizeof(float));
    return n;
}

SkipReport DecodeAttention::skip_report() const {
    SkipReport report;
    int64_t n_heads = 0;
    for (const Tally & tally : tallies_) {
        report.n_values += tally.sums.n_values;
        report.n_values_read += tally.sums.n_values_read;
        report.dropped_mass_max = std::max(report.dropped_mass_max, tally.sums.dropped_mass_max);
        report.dropped_mass_mean += tally.sums.dropped_mass_mean;
        n_heads += tally.n_heads;
    }
    if (n_heads > 0) report.dropped_mass_mean /= double(n_heads);
    return report;
}

void DecodeAttention::reset_skip_report() { std::fill(tallies_.begin(), tallies_.end(), Tally()); }

}  // namespace pysa
