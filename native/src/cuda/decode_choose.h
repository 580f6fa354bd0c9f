// Which value rows of a chunk are worth reading (v_skip): a bit per row. Heads that score the distance choose, their
// followers take the same list, the group reads what any of its heads wants.
#pragma once

#include "cuda/decode_chunks.h"

namespace pysa::gpu {
inline namespace PYSA_GPU_FLAVOUR {

constexpr int n_list_words = n_chunk / 32;

// By a warp: the rows from the highest limit on at which the weights below it come to no more than `budget`; the limit
// is searched for bit by bit, to 4 bits of mantissa. Rows without weight are never kept. Returns the sum of what is
// left out.
PYSA_DEVICE float choose_of_head(const uint16_t * weights, float budget, uint32_t (&words)[n_list_words]) {
    constexpr int top_bit = 1 << 13, last_bit = 1 << 6;  // weights are 1 at most, that is 0x3c00
    uint16_t bits[n_list_words];
    float w[n_list_words];
    PYSA_UNROLL
    for (int i = 0; i < n_list_words; ++i) bits[i] = load2(weights + i * n_lanes + lane());
    PYSA_UNROLL
    for (int i = 0; i < n_list_words; ++i) w[i] = half_to_float(bits[i]);
    int limit = 0;
    float left_out = 0.0f;
    for (int bit = top_bit; bit >= last_bit; bit /= 2) {
        float sum = 0.0f;
        PYSA_UNROLL
        for (int i = 0; i < n_list_words; ++i) sum += bits[i] < (limit | bit) ? w[i] : 0.0f;
        sum = warp_sum(sum);
        if (sum > budget) continue;
        limit |= bit;
        left_out = sum;
    }
    PYSA_UNROLL
    for (int i = 0; i < n_list_words; ++i) words[i] = ballot(bits[i] != 0 && bits[i] >= limit);
    return left_out;
}

// shared.kept: for each warp, the rows that its heads want. A chunk's part of v_skip is by its number of rows, so that
// the parts add up to v_skip. Lists are left for followers even where the gate is shut.
template <class Shared> PYSA_DEVICE void choose_rows(const Call & call, const Chunks & chunks, const Chunk & chunk,
                                                     int h0, int n_gqa, bool is_first, Shared & shared) {
    const DecodeRoom & room = call.decode;
    const float share = call.shape.v_skip * float(chunk.n) / float(chunks.far_end - chunks.far_begin);
    uint32_t all[n_list_words] = {};
    for (int g = warp(); g < n_gqa; g += n_decode_warps) {
        const Head & head = shared.heads[g];
        const Line & line = shared.lines[g];
        if (head.kind == Kind::local) continue;
        const int slot = far_slot(head);
        uint32_t * list =
            slot >= 0 ? room.slot_lists + n_list_words * (int64_t(slot) * room.n_far + chunk.index) : nullptr;
        uint32_t words[n_list_words] = {};
        if (head.scores_far) {
            const float scale = expf(far_part(room, head, h0 + g, chunk.index)[0] - line.far_max) / line.far_sum;
            const float left_out = choose_of_head(far_weights(room, head, h0 + g, chunk.index), share / scale, words);
            if (is_first && lane() == 0) {
                shared.dropped[g] += left_out * scale;
                for (int i = 0; list && i < n_list_words; ++i) list[i] = words[i];
            }
        } else {
            for (int i = 0; i < n_list_words; ++i) words[i] = list[i];
        }
        if (!(line.far_scale > 0.0f)) continue;
        PYSA_UNROLL
        for (int i = 0; i < n_list_words; ++i) all[i] |= words[i];
    }
    if (lane() < n_list_words) {
        uint32_t own = 0;
        PYSA_UNROLL
        for (int i = 0; i < n_list_words; ++i)
            if (lane() == i) own = all[i];
        shared.kept[warp()][lane()] = own;
    }
}

}  // namespace PYSA_GPU_FLAVOUR
}  // namespace pysa::gpu
