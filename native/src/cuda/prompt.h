// Attention of several tokens, one launch a layer: flash attention on tensor cores, first over the window, then over
// the distance, where owners leave their weights and followers read them instead of scoring. A block is a KV head and a
// tile of queries: its rows are pairs of a query and a head of the group, so that all share a tile of K and V.
#pragma once

#include "cuda/prompt_softmax.h"

namespace pysa::gpu {
inline namespace PYSA_GPU_FLAVOUR {

// The queries of a warp's rows, scaled, as mma takes them.
template <int n_embd> struct PromptQueries {
    uint32_t fragments[PromptDims<n_embd>::q_in_registers ? n_embd / 16 : 1][4];
    char * tile;  // else in shared memory
};

// Written and read at once.
struct alignas(8) Pair { float x, y; };

PYSA_DEVICE const float * query_of(const Call & call, int token, int head) {
    const char * q = reinterpret_cast<const char *>(call.q);
    return reinterpret_cast<const float *>(q + token * call.q_token + head * call.q_head);
}

template <int n_embd> PYSA_DEVICE void take_queries(PromptQueries<n_embd> & queries, const Call & call,
                                                    const PromptUnit & unit, const PromptRow rows[2]) {
    using Dims = PromptDims<n_embd>;
    const float scale = call.shape.kq_scale * log2_e;
    if constexpr (Dims::q_in_registers) {
        PYSA_UNROLL
        for (int i = 0; i < 2; ++i) {
            const bool is_query = rows[i].token >= 0;
            const float * q = is_query ? query_of(call, rows[i].token, rows[i].head) : nullptr;
            PYSA_UNROLL
            for (int k = 0; k < n_embd / 8; ++k) {
                const Bytes8 both = is_query ? read8(q + k * 8 + lane() % 4 * 2) : Bytes8{};
                queries.fragments[k / 2][k % 2 * 2 + i] =
                    pack_half2(bits_to_float(both.x[0]) * scale, bits_to_float(both.x[1]) * scale);
            }
        }
    } else {
        constexpr int n_pieces = n_embd / 8;
        const int n_gqa = call.shape.n_head / call.shape.n_head_kv;
        for (int index = thread_index(); index < Dims::n_rows * n_pieces; index += Dims::n_threads) {
            const int row = index / n_pieces, piece = index % n_pieces, token = unit.first + row / n_gqa;
            Bytes16 out = {};
            if (token <= unit.last) {
                const float * q = query_of(call, token, unit.kv * n_gqa + row % n_gqa) + piece * 8;
                PYSA_UNROLL
                for (int i = 0; i < 2; ++i) {
                    const Bytes16 in = read16(q + 4 * i);
                    out.x[2 * i] = pack_half2(bits_to_float(in.x[0]) * scale, bits_to_float(in.x[1]) * scale);
                    out.x[2 * i + 1] = pack_half2(bits_to_float(in.x[2]) * scale, bits_to_float(in.x[3]) * scale);
                }
            }
            store16(queries.tile + piece_at<n_embd>(row, piece), out);
        }
    }
}

template <int n_embd>
PYSA_DEVICE void score_tile(float scores[8][4], const PromptQueries<n_embd> & queries, char * keys) {
    using Dims = PromptDims<n_embd>;
    const int of_matrix = lane() % 8, matrix = lane() / 8;
    const int key_at = piece_at<n_embd>(matrix / 2 * 8 + of_matrix, matrix % 2);
    const int query_at = piece_at<n_embd>(warp() * 16 + matrix % 2 * 8 + of_matrix, matrix / 2);
    PYSA_UNROLL
    for (int k = 0; k < n_embd / 16; ++k) {
        uint32_t q[4];
        if constexpr (!Dims::q_in_registers) load_matrix_x4(q, queries.tile + pieces_further<n_embd>(query_at, 2 * k));
        PYSA_UNROLL
        for (int n = 0; n < 8; n += 2) {
            uint32_t b[4];
            load_matrix_x4(b, keys + pieces_further<n_embd>(key_at, 2 * k) + n * 8 * Dims::row_bytes);
            if constexpr (Dims::q_in_registers) {
                mma_16x8x16(scores[n], queries.fragments[k], b);
                mma_16x8x16(scores[n + 1], queries.fragments[k], b + 2);
            } else {
                mma_16x8x16(scores[n], q, b);
                mma_16x8x16(scores[n + 1], q, b + 2);
            }
        }
    }
}

template <int n_embd> PYSA_DEVICE void weigh_tile(float out[][4], const uint32_t weights[4][4], char * values) {
    const int of_matrix = lane() % 8, matrix = lane() / 8;
    const int at = piece_at<n_embd>(matrix % 2 * 8 + of_matrix, matrix / 2);
    PYSA_UNROLL
    for (int k = 0; k < n_tile_rows / 16; ++k) {
        PYSA_UNROLL
        for (int n = 0; n < n_embd / 8; n += 2) {
            uint32_t b[4];
            load_matrix_x4_trans(b, values + pieces_further<n_embd>(at, n) + k * 16 * PromptDims<n_embd>::row_bytes);
            mma_16x8x16(out[n], weights[k], b);
            mma_16x8x16(out[n + 1], weights[k], b + 2);
        }
    }
}

// Adds a part's columns to the softmax of each row. Where `scores` is false nobody scores, and values alone are loaded.
// With two tiles of shared memory, `first` and `second`, one is on its way while the other is worked on.
template <int n_embd> PYSA_DEVICE void attend(PromptPart<n_embd> & part, const PromptQueries<n_embd> & queries,
                                              const PromptRow rows[2], const Call & call, const PromptUnit & unit,
                                              bool is_far, bool scores, char * shared) {
    using Dims = PromptDims<n_embd>;
    constexpr bool overlaps = Dims::n_tiles == 2;
    const auto load = [&](char * to, bool is_key, int tile) {
        load_tile<n_embd>(to, call, unit, is_key, is_far, tile);
    };
    const int n_tiles = (n_columns_of(call.shape, unit, is_far) + n_tile_rows - 1) / n_tile_rows;
    char * first = shared;
    char * second = overlaps ? shared + Dims::tile_bytes : shared;
    if (n_tiles > 0) load(first, scores, 0);
    for (int tile = 0; tile < n_tiles; ++tile) {
        const bool is_last = tile + 1 == n_tiles;
        wait_copies<0>();
        sync_block();
        if (overlaps && (scores || !is_last)) load(second, false, scores ? tile : tile + 1);
        Sight sights[2];
        PYSA_UNROLL
        for (int i = 0; i < 2; ++i) sights[i] = sight_of(rows[i], call, unit, is_far);
        const bool is_seen = ballot(sees_some(sights[0], tile) || sees_some(sights[1], tile));
        uint32_t weights[4][4];
        if (is_seen) {
            float s[8][4];
            PYSA_UNROLL
            for (int i = 0; i < 32; ++i) s[i / 4][i % 4] = scores ? 0.0f : minus_infinity();
            if (scores) score_tile<n_embd>(s, queries, first);
            add_weights<n_embd>(part, weights, s, rows, sights, call, is_far, scores, tile);
        }
        if (scores) {
            if (!overlaps) {
                sync_block();
                load(second, false, tile);
            }
            wait_copies<0>();
            sync_block();
            if (overlaps && !is_last) load(first, true, tile + 1);
        }
        if (is_seen) weigh_tile<n_embd>(part.out, weights, scores ? second : first);
        if (!scores) {
            char * const swapped = first;
            first = second;
            second = swapped;
        }
        if (!overlaps && !is_last) {
            sync_block();
            load(first, scores, tile + 1);
        }
    }
    sync_block();
}

// Whether the gate shuts the distance out for both rows: known before a value is read where nobody in the group scores.
template <int n_embd> PYSA_DEVICE bool is_shut(const PromptRow rows[2], const PromptPart<n_embd> & near,
                                               const Call & call, const PromptUnit & unit) {
    bool shut = true;
    PYSA_UNROLL
    for (int i = 0; i < 2; ++i) {
        const int end = sight_of(rows[i], call, unit, true).end;
        const Head & head = call.heads[rows[i].head];
        float top = minus_infinity(), sum = 0.0f;
        const auto add = [&](float other_top, float other_sum) {
            const float grown = fmaxf(top, other_top);
            if (grown != minus_infinity())
                sum = sum * fast_exp2(top - grown) + other_sum * fast_exp2(other_top - grown);
            top = grown;
        };
        for (int tile = lane() % 4; tile * n_tile_rows < end; tile += 4) {
            const float * part = call.prompt.slot_parts + 2 * slot_row(call.prompt, head.slot_in, tile, rows[i].token);
            add(part[0], part[1]);
        }
        for (int mask = 1; mask < 4; mask *= 2) {
            const float other_top = shuffle_xor(top, mask), other_sum = shuffle_xor(sum, mask);
            add(other_top, other_sum);
        }
        const float bias = head.bias * log2_e, far_sum = sum * fast_exp2(weight_bits);
        if (join_prompt(near.max[i], near.sum[i], top + bias, far_sum, call.shape.skip_gate).far > 0.0f) shut = false;
    }
    return shut;
}

template <int n_embd> PYSA_KERNEL(PromptDims<n_embd>::n_threads, PromptDims<n_embd>::n_blocks_per_sm)
attend_prompt(const Call call) {
    using Dims = PromptDims<n_embd>;
    char * shared = PYSA_DYNAMIC_SHARED;
    const Shape & shape = call.shape;
    const int n_gqa = shape.n_head / shape.n_head_kv, n_queries = Dims::n_rows / n_gqa, n_tokens = call.step->n_tokens;
    PromptUnit unit;
    unit.kv = block_y();
    unit.n_past = call.step->n_past;
    unit.first = (grid_x() - 1 - block_x()) * n_queries;  // those that see most come first
    unit.last = least(unit.first + n_queries, n_tokens) - 1;
    if (unit.last < unit.first) return;

    PromptRow rows[2];
    PYSA_UNROLL
    for (int i = 0; i < 2; ++i) {
        const int row = warp() * 16 + lane() / 4 + 8 * i, token = unit.first + row / n_gqa;
        rows[i].token = token <= unit.last ? token : -1;
        rows[i].head = unit.kv * n_gqa + row % n_gqa;
    }
    bool scores_far = false, all_local = true;
    for (int g = 0; g < n_gqa; ++g) {
        const Head & head = call.heads[unit.kv * n_gqa + g];
        if (head.kind == Kind::local) continue;
        all_local = false;
        if (head.slot_in < 0) scores_far = true;
    }

    PromptQueries<n_embd> queries;
    queries.tile = shared + Dims::n_tiles * Dims::tile_bytes;
    if (call.q) take_queries<n_embd>(queries, call, unit, rows);
    PromptPart<n_embd> part;
    clear(part);
    float near_max[2], near_sum[2];
    const bool is_gated = shape.skip_gate < 1.0f && shape.n_recent > 0;
    const auto out_of = [&](int i) {
        return call.dst + (int64_t(rows[i].token) * shape.n_head + rows[i].head) * n_embd + lane() % 4 * 2;
    };

    // Window, then distance; one call, so that the code is there once.
    bool has_far = false;
    for (int is_far = 0; is_far < 2; ++is_far) {
        if (is_far) {
            if (all_local || n_columns_of(shape, unit, true) == 0) break;
            if (is_gated && !scores_far) {
                uint32_t * any = reinterpret_cast<uint32_t *>(shared);
                if (thread_index() == 0) *any = 0;
                sync_block();
                const bool opens = ballot(!is_shut(rows, part, call, unit));
                if (opens && lane() == 0) *any = 1;
                sync_block();
                const bool is_open = *any;
                sync_block();
                if (!is_open) break;
            }
            has_far = true;
            if (is_gated) {  // the window's sums wait where the result will be
                PYSA_UNROLL
                for (int i = 0; i < 2; ++i) {
                    near_max[i] = part.max[i];
                    near_sum[i] = part.sum[i];
                    if (rows[i].token < 0) continue;
                    PYSA_UNROLL
                    for (int n = 0; n < n_embd / 8; ++n)
                        *reinterpret_cast<Pair *>(out_of(i) + n * 8) = {part.out[n][2 * i], part.out[n][2 * i + 1]};
                }
                clear(part);
            }
        }
        attend<n_embd>(part, queries, rows, call, unit, is_far, !is_far || scores_far, shared);
    }

    PYSA_UNROLL
    for (int i = 0; i < 2; ++i) {
        if (rows[i].token < 0) continue;
        const bool joins = is_gated && has_far;
        PromptJoin join = {0.0f, 1.0f / part.sum[i]};
        if (joins) join = join_prompt(near_max[i], near_sum[i], part.max[i], part.sum[i], shape.skip_gate);
        PYSA_UNROLL
        for (int n = 0; n < n_embd / 8; ++n) {
            Pair * to = reinterpret_cast<Pair *>(out_of(i) + n * 8);
            const Pair near = joins ? *to : Pair{0.0f, 0.0f};
            *to = {near.x * join.near + part.out[n][2 * i] * join.far,
                   near.y * join.near + part.out[n][2 * i + 1] * join.far};
        }
    }
}

template <int n_embd> const char * start_prompt(const Call & call, int64_t n_tokens, void * stream) {
    using Dims = PromptDims<n_embd>;
    const int64_t n_queries = Dims::n_rows / call.shape.n_gqa();
    return PYSA_LAUNCH(attend_prompt<n_embd>, int((n_tokens + n_queries - 1) / n_queries), call.shape.n_head_kv,
                       Dims::n_threads, size_t(Dims::shared_bytes), stream, call);
}

}  // namespace PYSA_GPU_FLAVOUR
}  // namespace pysa::gpu
