// The inner loops of the fused CPU attention, one set per instruction set. cpu_kernels_core.h is their one source.
// Rows of the cache come as pointers, so that a ring, a ubatch and a gathered list look alike. n_embd is a multiple of n_pad_embd.
//
// Single tokens: a row at a time against all query heads of its KV head, straight from the cache's type.
// Prompts: tiles of n_lanes queries of one head, side by side ("lanes"), against blocks of rows as float.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "ggml.h"

namespace pysa {

constexpr float minus_infinity = -std::numeric_limits<float>::infinity();
constexpr int64_t n_pad_embd = 32;
constexpr int64_t n_pad_columns =
    16;  // columns and rows beyond those asked for that a kernel may touch: room the caller leaves
constexpr int64_t n_lanes = 16;  // queries of a tile

inline int64_t padded(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

struct CpuKernels {
    const char * name;

    // Rows of any n_embd as float [stride, n_rows], padded with zeros up to stride.
    void (*to_float)(ggml_type type, const char * const * rows, int64_t n_rows, int64_t n_embd, float * out,
                     int64_t stride);

    // -- single tokens

    // out[q][i] = scale * queries[q] . rows[i]; queries [query_stride, n_queries], out [out_stride, n_queries]
    void (*dots)(ggml_type type, const float * queries, int64_t query_stride, int64_t n_queries,
                 const char * const * rows, int64_t n_rows, int64_t n_embd, float scale, float * out,
                 int64_t out_stride);

    // out[q] = decay[q] * out[q] + factor[q] * sum over i of weights[q * query_step + i * row_step] * rows[i]; a null decay is 1.
    // With a list, i goes through its n_rows items instead of 0, 1, ...
    void (*weigh)(ggml_type type, const float * weights, int64_t query_step, int64_t row_step, int64_t n_queries,
                  const char * const * rows, const int32_t * list, int64_t n_rows, int64_t n_embd, const float * decay,
                  const float * factor, float * out, int64_t out_stride);

    // Scores -> weights e^(x - max), in place, and their maximum, which must be finite, and their sum; with `halves`, rounded to
    // f16 and left there too.
    void (*softmax)(float * scores, int64_t n, uint16_t * halves, float * max, float * sum);

    // f16 to float. n is a multiple of n_lanes, or there is room up to it.
    void (*unpack)(const uint16_t * halves, int64_t n, float * out);

    // The largest of budget, budget / 4, ... budget / 256 below which the weights come to no more than `budget`, and what they come
    // to. n <= 256, so that the last one always does.
    float (*limit)(const float * weights, int64_t n, float budget, float * mass_below);

    // Bit i: weights[i] >= limit. n <= 64.
    uint64_t (*mask_from)(const float * weights, int64_t n, float limit);

    // The bits that are set, in order, from `first` on; returns how many. There is room for 64 + n_lanes.
    int64_t (*list_bits)(uint64_t mask, int32_t first, int32_t * out);

    // -- prompts: a tile is [n_lanes, n_rows]

    // scores[h][row][lane] = queries[h][.][lane] . rows[row], for queries [n_lanes, n_embd] and rows [stride, n_rows].
    void (*score_tiles)(const float * const * queries, float * const * scores, int64_t n_heads, const float * rows,
                        int64_t n_rows, int64_t stride, int64_t n_embd);

    // -inf where row `first + i` is not in [begin[lane], end[lane]).
    void (*mask_tile)(float * tile, int64_t n_rows, int32_t first, const int32_t * begin, const int32_t * end);

    // A part: [n_lanes, 2], the maxima of the scores and the sums of e^(score - maximum).
    // Scores -> weights e^(x - maximum), the maximum being the tile's, and floor's at least where that is given. With `weights`,
    // they are rounded to f16 and left there too.
    void (*softmax_tile)(float * tile, int64_t n_rows, const float * floor, uint16_t * weights, float * part);

    // Adds a part, its scores raised by bias, to what a tile has seen. decay [n_lanes]: what earlier weights must be scaled by;
    // factor: what the part's must.
    void (*merge_tile)(float * seen, const float * part, float bias, float * decay, float * factor);

    // -- planning

    // out[i] = entropy in bits of the mean of two distributions over n values: -sum over j of m log2(m), m = row[j] + rows[i][j].
    // Both hold half of every share; rows [stride, n_rows]. Within 2e-6; symmetric in row and rows[i] to the last bit.
    void (*mean_entropies)(const float * row, const float * rows, int64_t stride, int64_t n_rows, int64_t n,
                           double * out);
};

// Null where the compiler does not build for the set.
const CpuKernels * cpu_kernels_avx512();
const CpuKernels * cpu_kernels_avx2();
const CpuKernels * cpu_kernels_neon();
const CpuKernels * cpu_kernels_scalar();

// The sets that this build has and this processor runs, best first.
std::vector<const CpuKernels *> usable_cpu_kernels();

// The best set that this processor runs, or the one PYSA_CPU names (avx512, avx2, neon, scalar). ArgumentError for another name or
// one that this processor or build lacks.
const CpuKernels & cpu_kernels();

}  // namespace pysa
