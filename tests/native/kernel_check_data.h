// What the checks of kernel_check_*.cpp share: tolerances, and data with poison wherever a kernel must not look or write.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernel_check.h"

constexpr float minus_infinity = -std::numeric_limits<float>::infinity();
constexpr int64_t row_counts[] = {1, 2, 5, 17, 63, 64};

// Tolerances, with u = 2^-24 for a rounding to nearest.
constexpr double u = 1.0 / 16777216.0;
// A sum of n products in any order, fused or not, is within n * u * (the sum of their absolute values); 3 for scale and decay.
inline double sum_limit(int64_t n, double absolutes) { return double(n + 3) * u * absolutes; }
// e^x: cpu_vec.h's own bound, relative; or 0, where e^x < e^-87 = 1.65e-38. Where e^x is 0, exactly that.
inline double exp_limit(double e) { return e < 1.66e-38 ? e : 3e-7 * e; }
// The same rounded to f16: 11 bits, or half of the smallest subnormal.
inline double half_limit(double e) { return exp_limit(e) + e / 2048 + std::ldexp(1.0, -25); }

// A signalling NaN: whoever adds it in shows, and whoever writes it back after arithmetic has made it a quiet one.
inline void fill_poison(std::vector<float> & v) {
    const uint32_t poison = 0x7fa0dead;
    for (float & x : v) std::memcpy(&x, &poison, sizeof(x));
}
inline void fill_poison(std::vector<uint16_t> & v) {
    for (uint16_t & x : v) x = 0x7dad;
}

// n rows of `width` values, `stride` apart; poison between them and in `n_after` values after the last.
template <class T> struct Poisoned {
    Poisoned(int64_t width, int64_t n, int64_t stride, int64_t n_after = 32)
        : width(width), n(n), stride(stride), at(size_t((n - 1) * stride + width + n_after)) {
        fill_poison(at);
    }
    explicit Poisoned(int64_t n) : Poisoned(n, 1, n + 32) {}
    T * row(int64_t i) { return &at[size_t(i * stride)]; }
    T * data() { return at.data(); }

    // Throws if anything changed outside the first width + n_pad columns of the first n + n_pad_rows rows.
    void check(const std::string & where, int64_t n_pad = 0, int64_t n_pad_rows = 0) const {
        std::vector<T> poison(at.size());
        fill_poison(poison);
        for (int64_t i = 0; i < int64_t(at.size()); ++i) {
            if (i / stride < n + n_pad_rows && i % stride < width + n_pad) continue;
            if (std::memcmp(&at[size_t(i)], &poison[size_t(i)], sizeof(T)) != 0)
                throw std::runtime_error(where + ": row " + std::to_string(i / stride) + ", column " +
                                         std::to_string(i % stride) + ": expected it untouched, got " +
                                         std::to_string(at[size_t(i)]));
        }
    }

    int64_t width, n, stride;
    std::vector<T> at;
};

// Reproducible on every platform, which the standard library's distributions are not.
struct Random {
    std::mt19937 bits{20240712};
    float operator()(float low, float high) { return low + (high - low) * float(bits() >> 8) / 16777216.0f; }
    void fill(Poisoned<float> & v, float low, float high) {
        for (int64_t i = 0; i < v.n; ++i)
            for (int64_t j = 0; j < v.width; ++j) v.row(i)[j] = (*this)(low, high);
    }
};

// Rows of a cache type: what is stored, 0xff (NaN in every type) between the rows, and what ggml says it stands for.
struct CacheRows {
    CacheRows(ggml_type type, int64_t n_embd, int64_t n, Random & random)
        : n_embd(n_embd), values(size_t(n * n_embd)), pointers(size_t(n)) {
        const size_t size = ggml_row_size(type, n_embd), stride = size + 20;  // no multiple of a vector
        bytes.assign(stride * size_t(n), char(0xff));
        for (int64_t i = 0; i < n; ++i) {
            char * row = &bytes[stride * size_t(i)];
            float * decoded = &values[size_t(i * n_embd)];
            for (int64_t d = 0; d < n_embd; ++d) decoded[d] = random(-2.0f, 2.0f);
            ggml_quantize_chunk(type, decoded, row, 0, 1, n_embd, nullptr);
            if (type != GGML_TYPE_F32) ggml_get_type_traits(type)->to_float(row, decoded, n_embd);
            pointers[size_t(n - 1 - i)] = row;  // a gathered list has no order
        }
    }
    const float * row(int64_t i) const { return &values[size_t((int64_t(pointers.size()) - 1 - i) * n_embd)]; }

    int64_t n_embd;
    std::vector<char> bytes;
    std::vector<float> values;
    std::vector<const char *> pointers;
};

// The case at hand, and how it fails.
struct Check {
    explicit Check(const pysa::CpuKernels & kernels) : kernels(kernels) {}

    void begin(const std::string & kernel, const std::string & detail = "") {
        where = std::string(kernels.name) + ": " + kernel + " " + detail;
    }

    void near(const char * what, int64_t i, int64_t j, double expected, double got, double limit) const {
        if (got == expected || std::abs(got - expected) <= limit) return;  // the first for infinities
        char text[160];
        std::snprintf(text, sizeof(text), ": %s [%lld, %lld]: expected %.9g within %.2g, got %.9g", what, (long long)j,
                      (long long)i, expected, limit, got);
        throw std::runtime_error(where + text);
    }

    const pysa::CpuKernels & kernels;
    Random random;
    std::string where;
};
