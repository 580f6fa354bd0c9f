// The kernel that compares attention distributions; part of cpu_kernels_core.h.
#pragma once

#include "ops/cpu_vec.h"

namespace pysa {
namespace {

// x log2(x) for 0 <= x <= 1: log2 by the exponent and a polynomial of degree 8 in the mantissa - 1.5, absolute error below 2e-7.
// The logarithm of 0 comes out as a finite number, so that 0 gives 0; what subnormals give wrong is below 1e-35.
inline Vec x_log2_x(Vec x) {
    const Int bits = (Int)x;
    const Vec exponent = __builtin_convertvector((bits >> 23) - 127, Vec);
    const Vec t = (Vec)((bits & 0x007fffff) | 0x3f800000) - 1.5f;
    Vec p = all(-0.0090889018f);
    for (float c : {0.0147788133f, -0.0205787551f, 0.0374628976f, -0.0712997466f, 0.142526373f, -0.320596844f,
                    0.961795986f, 0.584962487f})
        p = p * t + c;
    return x * (exponent + p);
}

inline void mean_entropies(const float * row, const float * rows, int64_t stride, int64_t n_rows, int64_t n,
                           double * out) {
    constexpr int n_together = 4;        // rows: as many sums as hide each other's latency
    constexpr int64_t n_in_float = 256;  // columns summed before a double takes over
    for (int64_t r = 0; r < n_rows; r += n_together) {
        const float * other[n_together];  // always four: a row's result must not depend on how many there are
        for (int64_t i = 0; i < n_together; ++i) other[i] = rows + (r + i < n_rows ? r + i : r) * stride;
        double total[n_together] = {};
        for (int64_t begin = 0; begin < n; begin += n_in_float) {
            const int64_t end = begin + n_in_float < n ? begin + n_in_float : n;
            Vec acc[n_together] = {};
            int64_t j = begin;
            for (; j + lanes <= end; j += lanes) {
                const Vec x = load<Vec>(row + j);
                for (int i = 0; i < n_together; ++i) acc[i] -= x_log2_x(x + load<Vec>(other[i] + j));
            }
            for (int i = 0; i < n_together; ++i) {
                float tail[lanes] = {};
                for (int64_t k = j; k < end; ++k) tail[k - j] = row[k] + other[i][k];
                if (j < end) acc[i] -= x_log2_x(load<Vec>(tail));
                total[i] += double(sum(acc[i]));
            }
        }
        for (int64_t i = 0; i < n_together && r + i < n_rows; ++i) out[r + i] = total[i];
    }
}

}  // namespace
}  // namespace pysa
