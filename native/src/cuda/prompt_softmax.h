// The online softmax of the prompt kernel: from a tile's scores, or from the weights that a source left, to weights for
// the values.
#pragma once

#include "cuda/prompt_tiles.h"

namespace pysa::gpu {
inline namespace PYSA_GPU_FLAVOUR {

constexpr float log2_e = 1.4426950408889634f;
constexpr float weight_bits = 10.0f;  // weights for the values are up to 2^10, lest f16 loses small ones

PYSA_DEVICE float minus_infinity() { return bits_to_float(0xff800000u); }

// A query and a head. A thread has two of its warp's rows: lane / 4 and 8 further.
struct PromptRow {
    int token;  // -1: none
    int head;
};

// What a row sees of a part: columns [0, first_end) and [begin, end).
struct Sight { int first_end, begin, end; };

PYSA_DEVICE Sight sight_of(const PromptRow & row, const Call & call, const PromptUnit & unit, bool is_far) {
    const Shape & shape = call.shape;
    if (row.token < 0) return {0, 0, 0};
    const int t = unit.n_past + row.token;
    if (is_far) {
        const bool is_local = call.heads[row.head].kind == Kind::local;
        return {0, 0, is_local ? 0 : most(0, t - shape.n_recent + 1 - shape.n_sink)};
    }
    const int n_first = near_sinks(shape, unit), begin = near_begin(shape, unit);
    return {least(n_first, t + 1), n_first + most(0, t - shape.n_recent + 1 - begin), n_first + most(0, t + 1 - begin)};
}

PYSA_DEVICE bool sees_some(const Sight & sight, int tile) {
    const int from = tile * n_tile_rows;
    return from < sight.first_end || (from < sight.end && from + n_tile_rows > sight.begin);
}

PYSA_DEVICE bool sees_all(const Sight & sight, int tile) {
    const int from = tile * n_tile_rows, to = from + n_tile_rows;
    return to <= sight.first_end || (to <= sight.end && (from >= sight.begin || sight.begin <= sight.first_end));
}

// One part of the softmax, of a thread's two rows: as far as it has been attended to.
template <int n_embd> struct PromptPart {
    float out[n_embd / 8][4];  // as mma has them
    float max[2];              // of the scores, base 2
    float sum[2];              // of the weights: e^(score - max) 2^weight_bits
};

template <int n_embd> PYSA_DEVICE void clear(PromptPart<n_embd> & part) {
    PYSA_UNROLL
    for (int n = 0; n < n_embd / 8; ++n) {
        PYSA_UNROLL
        for (int i = 0; i < 4; ++i) part.out[n][i] = 0.0f;
    }
    PYSA_UNROLL
    for (int i = 0; i < 2; ++i) part.max[i] = minus_infinity(), part.sum[i] = 0.0f;
}

// Where a slot has a row's weights of a tile. Their order is that of the threads' registers: lane % 4 has 16 of them
// one after the other. Maxima are to base 2.
PYSA_DEVICE int64_t slot_row(const PromptRoom & room, int slot, int tile, int token) {
    return (int64_t(slot) * room.n_tiles + tile) * room.n_tokens + token;
}

PYSA_DEVICE void mask_scores(float scores[8][4], const Sight sights[2], int tile) {
    PYSA_UNROLL
    for (int n = 0; n < 8; ++n) {
        PYSA_UNROLL
        for (int i = 0; i < 4; ++i) {
            const int column = tile * n_tile_rows + n * 8 + lane() % 4 * 2 + i % 2;
            const Sight & sight = sights[i / 2];
            const bool sees = column < sight.first_end || (column >= sight.begin && column < sight.end);
            scores[n][i] = sees ? scores[n][i] : minus_infinity();
        }
    }
}

// Packs a tile's weights as mma takes them, 16 columns each, adds them to the sums, and scales what is in `part` to the
// new maxima. Scores of rows that read a slot do not count; with has_scores false all are -inf. All lanes together.
template <int n_embd> PYSA_DEVICE void add_weights(PromptPart<n_embd> & part, uint32_t weights[4][4],
                                                   float scores[8][4], const PromptRow rows[2], const Sight sights[2],
                                                   const Call & call, bool is_far, bool has_scores, int tile) {
    const PromptRoom & room = call.prompt;
    if (has_scores && ballot(!sees_all(sights[0], tile) || !sees_all(sights[1], tile)))
        mask_scores(scores, sights, tile);
    float factor[2], decay[2], top[2];
    int slot_out[2];
    PYSA_UNROLL
    for (int i = 0; i < 2; ++i) {
        const int token = rows[i].token;
        int slot_in = -1;
        float bias = 0.0f;
        slot_out[i] = -1;
        if (is_far && sights[i].end > 0) {
            const Head & head = call.heads[rows[i].head];
            slot_in = head.slot_in;
            bias = head.bias * log2_e;
            if (slot_in < 0) slot_out[i] = head.slot_out;
        }
        top[i] = minus_infinity();
        if (has_scores) {
            PYSA_UNROLL
            for (int n = 0; n < 8; ++n) top[i] = fmaxf(top[i], fmaxf(scores[n][2 * i], scores[n][2 * i + 1]));
            top[i] = fmaxf(top[i], shuffle_xor(top[i], 1));
            top[i] = fmaxf(top[i], shuffle_xor(top[i], 2));
        }
        const bool is_read = slot_in >= 0 && sees_some(sights[i], tile);
        const uint16_t * from = nullptr;
        if (is_read) {
            const int64_t at = slot_row(room, slot_in, tile, token);
            top[i] = room.slot_parts[2 * at];
            from = room.slot_weights + at * n_tile_rows + lane() % 4 * 16;
        }
        const float grown = fmaxf(part.max[i], top[i] + bias);
        const bool by_tile = slot_in >= 0 || slot_out[i] >= 0;  // weights are e^(score - maximum of the tile)
        const float reference = by_tile ? top[i] : grown - bias - weight_bits;
        const float minus_reference = top[i] == minus_infinity() ? 0.0f : -reference;
        decay[i] = part.max[i] == grown ? 1.0f : fast_exp2(part.max[i] - grown);
        factor[i] = !by_tile || top[i] == minus_infinity() ? 1.0f : fast_exp2(top[i] + bias - grown + weight_bits);
        part.max[i] = grown;
        PYSA_UNROLL
        for (int n = 0; n < 8; n += 4) {
            Bytes16 words = {};
            if (is_read) {
                words = read16(from + n * 2);
            } else if (slot_in < 0) {
                PYSA_UNROLL
                for (int j = 0; j < 4; ++j)
                    words.x[j] = pack_half2(fast_exp2(scores[n + j][2 * i] + minus_reference),
                                            fast_exp2(scores[n + j][2 * i + 1] + minus_reference));
            }
            PYSA_UNROLL
            for (int j = 0; j < 4; ++j) weights[(n + j) / 2][i + j % 2 * 2] = words.x[j];
            if (slot_out[i] >= 0)
                store16(room.slot_weights + slot_row(room, slot_out[i], tile, token) * n_tile_rows + lane() % 4 * 16 +
                            n * 2,
                        words);
        }
    }
    float sums[4] = {};  // of the rounded weights: their product with ones
    constexpr uint32_t ones[2] = {0x3c003c00u, 0x3c003c00u};
    PYSA_UNROLL
    for (int k = 0; k < 4; ++k) mma_16x8x16(sums, weights[k], ones);
    PYSA_UNROLL
    for (int i = 0; i < 2; ++i) {
        if (slot_out[i] >= 0 && lane() % 4 == 0) {
            float * to = room.slot_parts + 2 * slot_row(room, slot_out[i], tile, rows[i].token);
            to[0] = top[i];
            to[1] = sums[2 * i];
        }
        part.sum[i] = part.sum[i] * decay[i] + sums[2 * i] * factor[i];
    }
    if (ballot(factor[0] != 1.0f || factor[1] != 1.0f)) {
        PYSA_UNROLL
        for (int k = 0; k < 4; ++k) {
            PYSA_UNROLL
            for (int i = 0; i < 4; ++i) {
                const Float2 both = half2_to_float2(weights[k][i]);
                weights[k][i] = pack_half2(both.x * factor[i % 2], both.y * factor[i % 2]);
            }
        }
    }
    if (ballot(decay[0] != 1.0f || decay[1] != 1.0f)) {
        PYSA_UNROLL
        for (int n = 0; n < n_embd / 8; ++n) {
            PYSA_UNROLL
            for (int i = 0; i < 4; ++i) part.out[n][i] *= decay[i / 2];
        }
    }
}

// The softmax over both parts: what their sums of values must be multiplied by. As join_parts() of ops/softmax_parts.h.
struct PromptJoin { float near, far; };

PYSA_DEVICE PromptJoin join_prompt(float near_max, float near_sum, float far_max, float far_sum, float skip_gate) {
    const float top = fmaxf(near_max, far_max);
    const float near_mass = near_sum > 0.0f ? near_sum * fast_exp2(near_max - top) : 0.0f;
    float far_mass = far_sum > 0.0f ? far_sum * fast_exp2(far_max - top) : 0.0f;
    const float share = near_mass / (near_mass + far_mass);
    if (skip_gate < 1.0f && share >= skip_gate) far_mass = 0.0f;
    const float inverse_sum = 1.0f / (near_mass + far_mass);
    return {near_mass > 0.0f ? fast_exp2(near_max - top) * inverse_sum : 0.0f,
            far_mass > 0.0f ? fast_exp2(far_max - top) * inverse_sum : 0.0f};
}

}  // namespace PYSA_GPU_FLAVOUR
}  // namespace pysa::gpu
