// Second kernel of one token: the lines are known, so are the weights; values are added up. A block takes a stretch of
// a KV head's chunks for all its heads and reads each row once, or not at all where all weights are negligible; the
// last block of a KV head adds up the stretches in order.
#pragma once

#include "cuda/decode_choose.h"
#include "cuda/decode_chunks.h"

namespace pysa::gpu {
inline namespace PYSA_GPU_FLAVOUR {

// What a block keeps of a chunk and of its heads. Weights [n_batch, n_chunk] of the rows that are read, in order.
template <int n_embd, int n_batch> struct WeighShared {
    union {
        float weights[n_chunk * n_batch];
        float out[n_batch * n_embd];
    };
    Head heads[n_most_gqa];
    Line lines[n_most_gqa];
    float factors[n_most_gqa];
    float dropped[n_most_gqa];
    uint32_t kept[n_decode_warps][n_list_words];
    uint8_t rows[n_chunk];
    uint32_t flag;
};

// How many rows of the chunk are read; the list of them and their weights are made. Called by all threads.
template <int n_batch, class Shared> PYSA_DEVICE int prepare_chunk(const Call & call, const Chunks & chunks,
                                                                   const Chunk & chunk, int kv, int n_gqa, int g0,
                                                                   Shared & shared) {
    const DecodeRoom & room = call.decode;
    const int i = thread_index(), h0 = kv * n_gqa;
    bool is_read = !chunk.is_far;
    for (int g = 0; g < n_gqa; ++g) is_read |= shared.lines[g].far_scale > 0.0f;
    const bool skips = chunk.is_far && call.shape.v_skip > 0.0f;
    if (skips) choose_rows(call, chunks, chunk, h0, n_gqa, g0 == 0, shared);
    if (!is_read) return 0;

    if (i < n_gqa) {
        const Line & line = shared.lines[i];
        const float scale = chunk.is_far ? line.far_scale : line.near_scale;
        const float line_max = chunk.is_far ? line.far_max : line.near_max;
        const float * part =
            chunk.is_far ? far_part(room, shared.heads[i], h0 + i, chunk.index) : near_part(room, h0 + i, chunk.index);
        shared.factors[i] = scale > 0.0f ? expf(part[0] - line_max) * scale : 0.0f;
    }
    uint16_t weights[n_batch];
    PYSA_UNROLL
    for (int b = 0; b < n_batch; ++b) {
        weights[b] = 0;
        const int g = g0 + b;
        if (g >= n_gqa) continue;
        if (chunk.is_far && !(shared.lines[g].far_scale > 0.0f)) continue;
        weights[b] = load2((chunk.is_far ? far_weights(room, shared.heads[g], h0 + g, chunk.index)
                                         : near_weights(room, h0 + g, chunk.index)) +
                           i);
    }
    sync_block();

    int at = i, n = chunk.n;
    bool is_kept = i < n;
    if (skips) {
        uint32_t words[n_list_words];
        at = 0;
        n = 0;
        PYSA_UNROLL
        for (int w = 0; w < n_list_words; ++w) {
            words[w] = 0;
            PYSA_UNROLL
            for (int from = 0; from < n_decode_warps; ++from) words[w] |= shared.kept[from][w];
            if (w < warp()) at += count_bits(words[w]);
            if (w == warp()) {
                is_kept = words[w] >> lane() & 1;
                at += count_bits(words[w] & ((1u << lane()) - 1));
            }
            n += count_bits(words[w]);
        }
    }
    if (is_kept) {
        shared.rows[at] = uint8_t(i);
        PYSA_UNROLL
        for (int b = 0; b < n_batch; ++b) {
            const float factor = g0 + b < n_gqa ? shared.factors[g0 + b] : 0.0f;
            shared.weights[at * n_batch + b] = half_to_float(weights[b]) * factor;
        }
    }
    sync_block();
    return n;
}

// sums [n_batch][n_piece] += weights of the rows times the lane's piece of them.
template <RowType type, int n_embd, int n_batch>
PYSA_DEVICE void weigh_rows(const ChunkRows & rows, int n_rows, const float * weights, const uint8_t * list,
                            float (&sums)[n_batch][n_piece]) {
    using Format = RowFormat<type, n_embd>;
    constexpr int n_over = lanes_per_row(n_embd), n_at_once = n_lanes / n_over;
    constexpr int n_unroll = type == RowType::f32 || n_batch > 4 ? 4 : 8;
    constexpr int n_step = n_at_once * n_decode_warps;
    const int own = lane() % n_over;
    const int piece = own < n_embd / n_piece ? own : 0;
    for (int i0 = warp() * n_at_once + lane() / n_over; i0 - lane() / n_over < n_rows; i0 += n_unroll * n_step) {
        typename Format::Raw raw[n_unroll];
        PYSA_UNROLL
        for (int u = 0; u < n_unroll; ++u) {
            const int i = i0 + u * n_step;
            raw[u] = Format::load(rows.at(list[i < n_rows ? i : n_rows - 1]), piece);
        }
        PYSA_UNROLL
        for (int u = 0; u < n_unroll; ++u) {
            const int i = i0 + u * n_step;
            float v[n_piece];
            const float scale = Format::unpack(raw[u], v);
            PYSA_UNROLL
            for (int b = 0; b < n_batch; b += 4) {
                const Bytes16 bits = load16(weights + (i < n_rows ? i : 0) * n_batch + b);
                PYSA_UNROLL
                for (int g = 0; g < 4; ++g) {
                    const float weight = i < n_rows ? bits_to_float(bits.x[g]) * scale : 0.0f;
                    PYSA_UNROLL
                    for (int j = 0; j < n_piece; ++j) sums[b + g][j] = fmaf(weight, v[j], sums[b + g][j]);
                }
            }
        }
    }
}

// The block's sums of a batch of heads to its place in the room: warp after warp adds its own.
template <RowType type, int n_embd, int n_batch, class Shared>
PYSA_DEVICE void leave_sums(float (&sums)[n_batch][n_piece], int n_heads, float * to, Shared & shared) {
    using Format = RowFormat<type, n_embd>;
    PYSA_UNROLL
    for (int mask = lanes_per_row(n_embd); mask < n_lanes; mask *= 2) PYSA_UNROLL
    for (int i = 0; i < n_batch * n_piece; ++i)
        sums[i / n_piece][i % n_piece] += shuffle_xor(sums[i / n_piece][i % n_piece], mask);
    for (int w = 0; w < n_decode_warps; ++w) {
        sync_block();
        if (warp() != w || lane() >= n_embd / n_piece) continue;
        PYSA_UNROLL
        for (int i = 0; i < n_batch * n_piece; ++i) {
            const int e = Format::first(lane(), i % n_piece / 4) + i % 4;
            float & sum = shared.out[i / n_piece * n_embd + e];
            sum = (w > 0 ? sum : 0.0f) + sums[i / n_piece][i % n_piece];
        }
    }
    sync_block();
    for (int i = thread_index(); i < n_heads * n_embd; i += n_decode_threads) to[i] = shared.out[i];
    sync_block();
}

// What the splits of a KV head come to; and what its owners left out.
PYSA_DEVICE void add_up(const Call & call, const Chunks & chunks, int kv, int n_gqa, int n_splits) {
    const Shape & shape = call.shape;
    const DecodeRoom & room = call.decode;
    const int n = n_gqa * shape.n_embd_v;
    const float * sums = room.sums + int64_t(kv) * n_most_splits * n;
    for (int i = 4 * thread_index(); i < n; i += 4 * n_decode_threads) {
        constexpr int n_unroll = 8;
        float all[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        for (int s0 = 0; s0 < n_splits; s0 += n_unroll) {
            Bytes16 bits[n_unroll];
            PYSA_UNROLL
            for (int u = 0; u < n_unroll; ++u) {
                bits[u] = {{0, 0, 0, 0}};
                if (s0 + u < n_splits) bits[u] = fresh16(sums + int64_t(s0 + u) * n + i);
            }
            PYSA_UNROLL
            for (int u = 0; u < n_unroll; ++u)
                for (int j = 0; j < 4; ++j) all[j] += bits_to_float(bits[u].x[j]);
        }
        PYSA_UNROLL
        for (int j = 0; j < 4; ++j) call.dst[int64_t(kv) * n + i + j] = all[j];
    }
    if (thread_index() == 0) atomic_add(&room.stats->n_values, (unsigned long long)(chunks.far_end - chunks.far_begin));
    if (thread_index() >= n_gqa || shape.v_skip <= 0.0f || chunks.n_far == 0) return;
    const int h = kv * n_gqa + thread_index();
    if (!call.heads[h].scores_far) return;
    float dropped = 0.0f;
    for (int s = 0; s < n_splits; ++s) dropped += fresh_float(room.dropped + int64_t(s) * shape.n_head + h);
    atomic_max(&room.stats->dropped_max, dropped);
    atomic_add(&room.stats->dropped_sum, dropped);
    atomic_add(&room.stats->n_heads, 1ull);
}

template <RowType type, int n_embd, int n_batch> PYSA_KERNEL(n_decode_threads) weigh_kernel(const Call call) {
    using Shared = WeighShared<n_embd, n_batch>;
    const Shape & shape = call.shape;
    const int kv = block_y(), n_gqa = shape.n_head / shape.n_head_kv;
    const KvHead kv_head = call.kv_heads[kv];
    const int t = call.step->n_past;
    Shared & shared = *reinterpret_cast<Shared *>(PYSA_DYNAMIC_SHARED);
    if (thread_index() < n_gqa) {
        const int g = thread_index();
        shared.heads[g] = call.heads[kv * n_gqa + g];
        shared.lines[g] = call.decode.lines[kv * n_gqa + g];
        shared.dropped[g] = 0.0f;
    }

    const Chunks chunks(shape, t);
    const int n_chunks = chunks.n_near + (kv_head.v_far ? chunks.n_far : 0);
    const int n_splits = grid_x() < n_chunks ? grid_x() : n_chunks > 0 ? n_chunks : 1;
    const int split = block_x();
    if (split >= n_splits) return;
    sync_block();

    const int begin = int(int64_t(split) * n_chunks / n_splits), end = int(int64_t(split + 1) * n_chunks / n_splits);
    unsigned long long n_read = 0;
    for (int g0 = 0; g0 < n_gqa; g0 += n_batch) {
        float sums[n_batch][n_piece];
        PYSA_UNROLL
        for (int g = 0; g < n_batch; ++g)
            for (int i = 0; i < n_piece; ++i) sums[g][i] = 0.0f;
        for (int c = begin; c < end; ++c) {
            const Chunk chunk = chunks.at(c);
            const char * base = chunk.is_far ? kv_head.v_far : kv_head.v_near;
            const bool is_ring = !chunk.is_far && kv_head.v_is_ring;
            const char * cur = is_ring ? call.v_cur + kv * call.v_cur_head : nullptr;
            const ChunkRows rows(shape, chunk, base, row_bytes(type, n_embd), is_ring, t, cur, call.v_cur_row);
            const int n = prepare_chunk<n_batch>(call, chunks, chunk, kv, n_gqa, g0, shared);
            weigh_rows<type, n_embd, n_batch>(rows, n, shared.weights, shared.rows, sums);
            if (chunk.is_far && g0 == 0) n_read += n;
        }
        const int n_heads = n_gqa - g0 < n_batch ? n_gqa - g0 : n_batch;
        const int64_t head = (int64_t(kv) * n_most_splits + split) * n_gqa + g0;
        leave_sums<type, n_embd, n_batch>(sums, n_heads, call.decode.sums + head * n_embd, shared);
    }
    if (thread_index() == 0 && n_read > 0) atomic_add(&call.decode.stats->n_values_read, n_read);
    if (thread_index() < n_gqa)
        call.decode.dropped[int64_t(split) * shape.n_head + kv * n_gqa + thread_index()] =
            shared.dropped[thread_index()];
    if (is_last_block(call.decode.arrived + 2 * kv + 1, n_splits, &shared.flag))
        add_up(call, chunks, kv, n_gqa, n_splits);
}

}  // namespace PYSA_GPU_FLAVOUR
}  // namespace pysa::gpu
