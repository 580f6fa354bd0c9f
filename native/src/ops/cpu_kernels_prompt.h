// Kernels for prompts; part of cpu_kernels_core.h. Queries lie side by side, so a row's element is broadcast and nothing need be
// summed across lanes.
#pragma once

#include "ops/cpu_vec.h"

namespace pysa {
namespace {

constexpr int n_vecs = n_lanes / lanes;  // of a row of a tile

template <int n_v, int n_r> inline void score_tile(const float * const * queries, float * const * scores,
                                                   const float * rows, int64_t n_rows, int64_t stride, int64_t n_embd) {
    for (int64_t r = 0; r < n_rows; r += n_r) {
        Vec acc[n_r][n_v] = {};
        const float * row = rows + r * stride;
        for (int64_t d = 0; d < n_embd; ++d) {
            Vec q[n_v];
            for (int v = 0; v < n_v; ++v) q[v] = load<Vec>(queries[v / n_vecs] + d * n_lanes + v % n_vecs * lanes);
            for (int j = 0; j < n_r; ++j)
                for (int v = 0; v < n_v; ++v) acc[j][v] += row[j * stride + d] * q[v];
        }
        for (int j = 0; j < n_r; ++j)
            for (int v = 0; v < n_v; ++v) store(scores[v / n_vecs] + (r + j) * n_lanes + v % n_vecs * lanes, acc[j][v]);
    }
}

inline void score_tiles(const float * const * queries, float * const * scores, int64_t n_heads, const float * rows,
                        int64_t n_rows, int64_t stride, int64_t n_embd) {
#if defined(__ARM_NEON)
    constexpr int n_r = 4;
#else
    constexpr int n_r = lanes >= 16 ? 8 : lanes >= 8 ? 4 : 2;
#endif
    int64_t h = 0;
    if (lanes >= 16)
        for (; h + 2 <= n_heads; h += 2)
            score_tile<2 * n_vecs, n_r>(queries + h, scores + h, rows, n_rows, stride, n_embd);
    for (; h < n_heads; ++h) score_tile<n_vecs, n_r>(queries + h, scores + h, rows, n_rows, stride, n_embd);
}

inline void mask_tile(float * tile, int64_t n_rows, int32_t first, const int32_t * begin, const int32_t * end) {
    for (int v = 0; v < n_lanes; v += lanes) {
        const Int from = load<Int>(begin + v), to = load<Int>(end + v);
        for (int64_t r = 0; r < n_rows; ++r) {
            const Int pos = int32_t(first + r) - Int{};
            float * at = tile + r * n_lanes + v;
            store(at, ((pos >= from) & (pos < to)) ? load<Vec>(at) : all(minus_infinity));
        }
    }
}

inline void softmax_tile(float * tile, int64_t n_rows, const float * floor, uint16_t * weights, float * part) {
    for (int v = 0; v < n_lanes; v += lanes) {
        Vec most = floor ? load<Vec>(floor + v) : all(minus_infinity);
        for (int64_t r = 0; r < n_rows; ++r) most = max(load<Vec>(tile + r * n_lanes + v), most);
        store(part + v, most);
        const Vec reference = most == minus_infinity ? Vec{} : most;  // nothing seen: all weights are 0
        Vec total = {};
        for (int64_t r = 0; r < n_rows; ++r) {
            float * at = tile + r * n_lanes + v;
            Vec e = exp(load<Vec>(at) - reference);
            if (weights) {
                uint16_t * to = weights + r * n_lanes + v;
                floats_to_halves(e, to);
                e = halves_to_floats(to);
            }
            store(at, e);
            total += e;
        }
        store(part + n_lanes + v, total);
    }
}

inline void merge_tile(float * seen, const float * part, float bias, float * decay, float * factor) {
    for (int v = 0; v < n_lanes; v += lanes) {
        const Vec m0 = load<Vec>(seen + v), m1 = load<Vec>(part + v) + bias;
        const Vec most = max(m0, m1), reference = most == minus_infinity ? Vec{} : most;
        const Vec d = exp(m0 - reference), f = exp(m1 - reference);
        store(seen + v, most);
        store(seen + n_lanes + v, load<Vec>(seen + n_lanes + v) * d + load<Vec>(part + n_lanes + v) * f);
        store(decay + v, d);
        store(factor + v, f);
    }
}

}  // namespace
}  // namespace pysa
