// The inner loops of the fused CPU attention, one set per instruction set. cpu_kernels_core.h is their one source.
// Rows are float, each padded with zeros to `stride` (a multiple of 16 floats); counts of queries and rows are arbitrary.
#pragma once

#include <cstdint>

#include "ggml.h"

namespace pysa {

// Columns that a kernel may write beyond those asked for, and queries it may read and write beyond: room the caller leaves.
constexpr int64_t n_pad_columns = 4;
constexpr int64_t n_pad_queries = 4;
constexpr int64_t n_pad_embd = 16;

inline int64_t padded(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

struct CpuKernels {
    const char * name;

    // n values of one cache row to float.
    void (*to_float)(ggml_type type, const void * row, float * out, int64_t n);

    // out[q][i] = scale * queries[q] . rows[i]
    void (*score)(const float * queries, int64_t n_queries, const float * rows, int64_t n_rows, int64_t stride,
                  float scale, float * out, int64_t out_stride);

    // out[q] += sum over i of weights[q][i] * rows[i]
    void (*weigh)(const float * weights, int64_t weights_stride, int64_t n_queries, const float * rows, int64_t n_rows,
                  int64_t stride, float * out);

    // The largest of n values, -inf for none.
    float (*maximum)(const float * x, int64_t n);

    // x[i] = e^(x[i] - max), their sum returned. x[i] <= max.
    float (*exponentiate)(float * x, int64_t n, float max);
};

// Null where the compiler does not build for the set.
const CpuKernels * cpu_kernels_avx512();
const CpuKernels * cpu_kernels_avx2();
const CpuKernels * cpu_kernels_neon();
const CpuKernels * cpu_kernels_scalar();

// The best set that this processor runs, or the one PYSA_CPU names (avx512, avx2, neon, scalar). ArgumentError for another name or
// one that this processor or build lacks.
const CpuKernels & cpu_kernels();

}  // namespace pysa
