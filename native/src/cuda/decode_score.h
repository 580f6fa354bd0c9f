// First kernel of one token: a block scores a chunk of keys for all query heads of a KV head, reading each row once;
// the last block of a KV head makes one softmax of the parts. Results do not depend on the order of blocks.
#pragma once

#include "cuda/decode_chunks.h"

namespace pysa::gpu {
inline namespace PYSA_GPU_FLAVOUR {

// Sums over n_over neighbouring lanes, each of n values: afterwards lane i of them holds values [i, i + 1) * n / n_over
// in front.
template <int n, int n_over> PYSA_DEVICE void scatter_sums(float (&values)[n]) {
    static_assert(n >= n_over, "each lane is left with a value at least");
    PYSA_UNROLL
    for (int mask = n_over / 2, n_left = n / 2; mask > 0; mask /= 2, n_left /= 2) {
        const bool is_upper = lane() & mask;
        PYSA_UNROLL
        for (int i = 0; i < n / 2; ++i) {
            if (i >= n_left) continue;
            const float kept = is_upper ? values[i + n_left] : values[i];
            values[i] = kept + shuffle_xor(is_upper ? values[i] : values[i + n_left], mask);
        }
    }
}

struct Part { float max, sum; };

PYSA_DEVICE Part join(Part a, Part b) {
    const float max = fmaxf(a.max, b.max);
    if (max == -INFINITY) return {max, 0.0f};
    return {max, a.sum * expf(a.max - max) + b.sum * expf(b.max - max)};
}

// Of n chunks' parts, by a warp.
PYSA_DEVICE Part total(const float * parts, int n) {
    constexpr int n_unroll = 8;
    Part all = {-INFINITY, 0.0f};
    for (int i0 = lane(); i0 < n; i0 += n_lanes * n_unroll) {
        Part own[n_unroll];
        PYSA_UNROLL
        for (int u = 0; u < n_unroll; ++u) {
            own[u] = {-INFINITY, 0.0f};
            const int i = i0 + u * n_lanes;
            if (i >= n) continue;
            const Bytes8 bits = fresh8(parts + 2 * i);
            own[u] = {bits_to_float(bits.x[0]), bits_to_float(bits.x[1])};
        }
        PYSA_UNROLL
        for (int u = 0; u < n_unroll; ++u) all = join(all, own[u]);
    }
    PYSA_UNROLL
    for (int mask = n_lanes / 2; mask > 0; mask /= 2) {
        const Part other = {shuffle_xor(all.max, mask), shuffle_xor(all.sum, mask)};
        all = lane() & mask ? join(other, all) : join(all, other);
    }
    return all;
}

// As join_parts() of ops/softmax_parts.h.
PYSA_DEVICE Line close_line(Part near, Part far, float bias, float skip_gate) {
    const float max = fmaxf(near.max, far.max + bias);
    const float near_share = near.sum > 0 ? expf(near.max - max) : 0.0f;
    float far_share = far.sum > 0 ? expf(far.max + bias - max) : 0.0f;
    const float near_mass = near.sum * near_share;
    if (skip_gate < 1.0f && near_mass / (near_mass + far.sum * far_share) >= skip_gate) far_share = 0.0f;
    const float inverse_sum = 1.0f / (near_mass + far.sum * far_share);
    return {far.max, far.sum, near_share * inverse_sum, near.max, far_share * inverse_sum};
}

// Of a KV head's heads, once all their parts are there.
PYSA_DEVICE void close_softmax(const Call & call, const Chunks & chunks, int kv, int n_gqa) {
    for (int h = kv * n_gqa + warp(); h < (kv + 1) * n_gqa; h += n_decode_warps) {
        const Head head = call.heads[h];
        const Part near = total(near_part(call.decode, h, 0), chunks.n_near);
        const bool has_far = head.kind != Kind::local;
        const Part far = total(far_part(call.decode, head, h, 0), has_far ? chunks.n_far : 0);
        if (lane() == 0) call.decode.lines[h] = close_line(near, far, head.bias, call.shape.skip_gate);
    }
}

// A chunk's scores of a head to weights, by a warp.
PYSA_DEVICE void leave_weights(const float * scores, int n, uint16_t * weights, float * part) {
    const int first = 4 * lane();
    const Bytes16 bits = load16(scores + first);
    float s[4];
    PYSA_UNROLL
    for (int i = 0; i < 4; ++i) s[i] = first + i < n ? bits_to_float(bits.x[i]) : -INFINITY;
    const float max = warp_max(fmaxf(fmaxf(s[0], s[1]), fmaxf(s[2], s[3])));
    const Bytes8 rounded = {
        {pack_half2(expf(s[0] - max), expf(s[1] - max)), pack_half2(expf(s[2] - max), expf(s[3] - max))}};
    const Float2 low = half2_to_float2(rounded.x[0]), high = half2_to_float2(rounded.x[1]);
    const float sum = warp_sum(low.x + low.y + high.x + high.y);
    store8(weights + first, rounded);
    if (lane() == 0) {
        part[0] = max;
        part[1] = sum;
    }
}

// scores [n_chunk, n_batch] of the heads from `queries` on; those beyond n_heads stay 0. Rows are of a warp's own
// quarter.
template <RowType type, int n_embd, int n_batch>
PYSA_DEVICE void score_rows(const ChunkRows & rows, int n_rows, const char * queries, int64_t q_head, int n_heads,
                            float kq_scale, float * scores) {
    using Format = RowFormat<type, n_embd>;
    constexpr int n_over = lanes_per_row(n_embd), n_at_once = n_lanes / n_over;
    constexpr int n_unroll = n_over < 8 || n_batch > 4 || (type == RowType::f32 && n_over < n_lanes) ? 4 : 8;
    static_assert(n_unroll * n_at_once <= n_lanes, "a warp has a row for each of its lanes");
    constexpr int n_left = n_unroll * n_batch / n_over;
    const int own = lane() % n_over;
    const bool is_idle = own >= n_embd / n_piece;
    const int piece = is_idle ? 0 : own;
    float q[n_batch][n_piece];
    PYSA_UNROLL
    for (int g = 0; g < n_batch; ++g) {
        PYSA_UNROLL
        for (int i = 0; i < n_piece; ++i) q[g][i] = 0.0f;
        if (g >= n_heads || is_idle) continue;
        PYSA_UNROLL
        for (int run = 0; run < 2; ++run) {
            const Bytes16 bits = load16(queries + g * q_head + Format::first(piece, run) * 4);
            PYSA_UNROLL
            for (int i = 0; i < 4; ++i) q[g][4 * run + i] = bits_to_float(bits.x[i]) * kq_scale;
        }
    }
    const int first = warp() * n_lanes + lane() / n_over;
    for (int i0 = 0; i0 < n_lanes; i0 += n_unroll * n_at_once) {
        if (warp() * n_lanes + i0 >= n_rows) break;
        typename Format::Raw raw[n_unroll];
        PYSA_UNROLL
        for (int u = 0; u < n_unroll; ++u) {
            const int i = first + i0 + u * n_at_once;
            raw[u] = Format::load(rows.at(i < n_rows ? i : n_rows - 1), piece);
        }
        float sums[n_unroll * n_batch];
        PYSA_UNROLL
        for (int u = 0; u < n_unroll; ++u) {
            float k[n_piece];
            const float scale = Format::unpack(raw[u], k);
            PYSA_UNROLL
            for (int g = 0; g < n_batch; ++g) {
                float sum = 0.0f;
                PYSA_UNROLL
                for (int i = 0; i < n_piece; ++i) sum = fmaf(q[g][i], k[i], sum);
                sums[g * n_unroll + u] = sum * scale;
            }
        }
        scatter_sums<n_unroll * n_batch, n_over>(sums);
        PYSA_UNROLL
        for (int i = 0; i < n_left; ++i) {
            const int at = own * n_left + i;
            scores[at / n_unroll * n_chunk + first + i0 + at % n_unroll * n_at_once] = sums[i];
        }
    }
}

template <RowType type, int n_embd, int n_batch> PYSA_KERNEL(n_decode_threads) score_kernel(const Call call) {
    const Shape & shape = call.shape;
    const int kv = block_y(), n_gqa = shape.n_head / shape.n_head_kv;
    const KvHead kv_head = call.kv_heads[kv];
    const int t = call.step->n_past;
    const Chunks chunks(shape, t);
    const int n_scored = chunks.n_near + (kv_head.k_far ? chunks.n_far : 0);
    const int n_active = n_scored > 0 ? n_scored : 1;  // the lines are made even where nothing is scored
    if (block_x() >= n_active) return;

    char * shared = PYSA_DYNAMIC_SHARED;
    float * scores = reinterpret_cast<float *>(shared);  // [n_chunk, n_batch]
    uint32_t * flag = reinterpret_cast<uint32_t *>(scores + n_chunk * n_batch);
    if (n_scored > 0) {
        const Chunk chunk = chunks.at(block_x());
        const char * base = chunk.is_far ? kv_head.k_far : kv_head.k_near;
        const bool is_ring = !chunk.is_far && kv_head.k_is_ring;
        const char * cur = is_ring ? call.k_cur + kv * call.k_cur_head : nullptr;
        const ChunkRows rows(shape, chunk, base, row_bytes(type, n_embd), is_ring, t, cur, call.k_cur_row);
        for (int g0 = 0; g0 < n_gqa; g0 += n_batch) {
            const int h0 = kv * n_gqa + g0;
            const int n_heads = n_gqa - g0 < n_batch ? n_gqa - g0 : n_batch;
            const char * queries = reinterpret_cast<const char *>(call.q) + h0 * call.q_head;
            score_rows<type, n_embd, n_batch>(rows, chunk.n, queries, call.q_head, n_heads, shape.kq_scale, scores);
            sync_block();
            for (int g = warp(); g < n_heads; g += n_decode_warps) {
                const int h = h0 + g;
                const DecodeRoom & room = call.decode;
                const Head head = call.heads[h];
                if (!chunk.is_far) {
                    leave_weights(scores + g * n_chunk, chunk.n, near_weights(room, h, chunk.index),
                                  near_part(room, h, chunk.index));
                } else if (head.scores_far) {
                    leave_weights(scores + g * n_chunk, chunk.n, far_weights(room, head, h, chunk.index),
                                  far_part(room, head, h, chunk.index));
                }
            }
            sync_block();
        }
    }
    if (is_last_block(call.decode.arrived + 2 * kv, n_active, flag)) close_softmax(call, chunks, kv, n_gqa);
}

template <int n_batch> size_t score_shared_bytes() { return sizeof(float) * n_chunk * n_batch + 16; }

}  // namespace PYSA_GPU_FLAVOUR
}  // namespace pysa::gpu
