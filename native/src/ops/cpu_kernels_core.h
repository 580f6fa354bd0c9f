// One source for every instruction set: vectors of PYSA_LANES floats in the compiler's own vector types. Included once per set
// by cpu_kernels_*.cpp, which is compiled with that set's flags. Everything here has internal linkage: code for one set must
// never be merged with that of another.
//
// score: 4 queries by lanes/4 rows of dot products at a time, one vector accumulator each; a tree of pairwise sums then turns the
// accumulators into one vector of results. weigh: 4 queries by up to 4 vectors of a row stay in registers over all rows.
#pragma once

#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <limits>

#if defined(__F16C__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#include "ops/cpu_kernels.h"

namespace pysa {
namespace {

constexpr int lanes = PYSA_LANES;  // floats in a vector: what the including file was compiled for

typedef float Vec __attribute__((vector_size(lanes * 4)));
typedef int32_t Int __attribute__((vector_size(lanes * 4)));
typedef int8_t Byte __attribute__((vector_size(lanes)));
typedef uint16_t Half __attribute__((vector_size(lanes * 2)));
typedef uint32_t Word __attribute__((vector_size(lanes * 4)));

struct Core {
    static constexpr int n_rows_tile = lanes / 4;

    template <class V, class T> static V load(const T * p) {
        V v;
        std::memcpy(&v, p, sizeof(V));
        return v;
    }
    template <class V, class T> static void store(T * p, V v) { std::memcpy(p, &v, sizeof(V)); }
    static Vec all(float x) { return x - Vec{}; }

    // Sums of neighbours: of a in the lower half, of b in the upper.
    static Vec pair_sums(Vec a, Vec b) {
        Int even, odd;
        for (int i = 0; i < lanes; ++i) {
            even[i] = 2 * i;
            odd[i] = 2 * i + 1;
        }
        return __builtin_shuffle(a, b, even) + __builtin_shuffle(a, b, odd);
    }

    // The sum of each of `lanes` accumulators, in their order.
    static Vec sums(Vec (&acc)[lanes]) {
        for (int n = lanes; n > 1; n /= 2)
            for (int i = 0; i < n / 2; ++i) acc[i] = pair_sums(acc[2 * i], acc[2 * i + 1]);
        return acc[0];
    }

    static void score(const float * queries, int64_t n_queries, const float * rows, int64_t n_rows, int64_t stride,
                      float scale, float * out, int64_t out_stride) {
        for (int64_t r = 0; r < n_rows; r += n_rows_tile)
            for (int64_t q = 0; q < n_queries; q += 4) {
                Vec acc[lanes] = {};
                for (int64_t d = 0; d < stride; d += lanes) {
                    Vec row[n_rows_tile];
                    for (int j = 0; j < n_rows_tile; ++j) row[j] = load<Vec>(rows + (r + j) * stride + d);
                    for (int i = 0; i < 4; ++i) {
                        const Vec query = load<Vec>(queries + (q + i) * stride + d);
                        for (int j = 0; j < n_rows_tile; ++j) acc[i * n_rows_tile + j] += query * row[j];
                    }
                }
                const Vec result = sums(acc) * scale;
                for (int i = 0; i < 4; ++i)
                    std::memcpy(out + (q + i) * out_stride + r,
                                reinterpret_cast<const float *>(&result) + i * n_rows_tile,
                                n_rows_tile * sizeof(float));
            }
    }

    template <int n_vecs> static void weigh_part(const float * weights, int64_t weights_stride, const float * rows,
                                                 int64_t n_rows, int64_t stride, float * out) {
        Vec acc[4][n_vecs];
        for (int i = 0; i < 4; ++i)
            for (int j = 0; j < n_vecs; ++j) acc[i][j] = load<Vec>(out + i * stride + j * lanes);
        for (int64_t r = 0; r < n_rows; ++r) {
            Vec row[n_vecs];
            for (int j = 0; j < n_vecs; ++j) row[j] = load<Vec>(rows + r * stride + j * lanes);
            for (int i = 0; i < 4; ++i) {
                const float weight = weights[i * weights_stride + r];
                for (int j = 0; j < n_vecs; ++j) acc[i][j] += weight * row[j];
            }
        }
        for (int i = 0; i < 4; ++i)
            for (int j = 0; j < n_vecs; ++j) store(out + i * stride + j * lanes, acc[i][j]);
    }

    static void weigh(const float * weights, int64_t weights_stride, int64_t n_queries, const float * rows,
                      int64_t n_rows, int64_t stride, float * out) {
        constexpr int n_most = lanes >= 16 ? 4 : 2;  // 16 accumulators where there are 32 registers, else 8
        for (int64_t q = 0; q < n_queries; q += 4) {
            const float * w = weights + q * weights_stride;
            int64_t d = 0;
            for (; d + n_most * lanes <= stride; d += n_most * lanes)
                weigh_part<n_most>(w, weights_stride, rows + d, n_rows, stride, out + q * stride + d);
            for (; d < stride; d += lanes)
                weigh_part<1>(w, weights_stride, rows + d, n_rows, stride, out + q * stride + d);
        }
    }

    static float maximum(const float * x, int64_t n) {
        const float lowest = -std::numeric_limits<float>::infinity();
        Vec most = all(lowest);
        int64_t i = 0;
        for (; i + lanes <= n; i += lanes) {
            const Vec v = load<Vec>(x + i);
            most = v > most ? v : most;
        }
        float result = lowest;
        for (int j = 0; j < lanes; ++j) result = most[j] > result ? most[j] : result;
        for (; i < n; ++i) result = x[i] > result ? x[i] : result;
        return result;
    }

    // e^x for x <= 0: 2^k * e^r with |r| <= ln(2)/2 by a polynomial of degree 6; relative error below 2e-7. 0 below -87.
    static Vec exp(Vec x) {
        const Vec shift = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
        const Int is_tiny = x < -87.0f;
        const Vec clamped = is_tiny ? all(-87.0f) : x;
        const Vec k = (clamped * 1.44269504f + shift) - shift;
        const Vec r = (clamped - k * 0.693145752f) - k * 1.42860677e-6f;
        Vec p = all(1.0f / 720.0f);
        for (float c : {1.0f / 120.0f, 1.0f / 24.0f, 1.0f / 6.0f, 0.5f, 1.0f, 1.0f}) p = p * r + c;
        const Int bits = (__builtin_convertvector(k, Int) + 127) << 23;
        Vec power;
        std::memcpy(&power, &bits, sizeof(power));
        return is_tiny ? all(0.0f) : p * power;
    }

    static float exponentiate(float * x, int64_t n, float max) {
        Vec total = {};
        int64_t i = 0;
        for (; i + lanes <= n; i += lanes) {
            const Vec e = exp(load<Vec>(x + i) - max);
            store(x + i, e);
            total += e;
        }
        if (i < n) {
            float tail[lanes];
            for (int j = 0; j < lanes; ++j) tail[j] = j < n - i ? x[i + j] : -std::numeric_limits<float>::infinity();
            const Vec e = exp(load<Vec>(tail) - max);
            std::memcpy(x + i, &e, size_t(n - i) * sizeof(float));
            total += e;
        }
        float sum = 0.0f;
        for (int j = 0; j < lanes; ++j) sum += total[j];
        return sum;
    }

    // -- rows to float -----------------------------------------------------------------------------------------------

    static float half_to_float(uint16_t half) {
#if defined(__F16C__)
        return _cvtsh_ss(half);
#else
        return ggml_fp16_to_fp32(half);
#endif
    }

    static Vec halves_to_floats(const uint16_t * p) {
#if defined(__AVX512F__)
        if constexpr (lanes == 16) {
            const __m512 v = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)));
            return load<Vec>(&v);
        }
#elif defined(__F16C__)
        if constexpr (lanes == 8) {
            const __m256 v = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
            return load<Vec>(&v);
        }
#elif defined(__ARM_NEON)
        if constexpr (lanes == 4) {
            const float32x4_t v = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
            return load<Vec>(&v);
        }
#endif
        Vec v;
        for (int i = 0; i < lanes; ++i) v[i] = half_to_float(p[i]);
        return v;
    }

    static Vec bytes_to_floats(const int8_t * p) {
        return __builtin_convertvector(__builtin_convertvector(load<Byte>(p), Int), Vec);
    }

    static void to_float(ggml_type type, const void * row, float * out, int64_t n) {
        const auto * bytes = static_cast<const uint8_t *>(row);
        const auto * halves = static_cast<const uint16_t *>(row);
        const int64_t n_whole = n / lanes * lanes;
        switch (type) {
            case GGML_TYPE_F32: std::memcpy(out, row, size_t(n) * sizeof(float)); return;
            case GGML_TYPE_F16:
                for (int64_t i = 0; i < n_whole; i += lanes) store(out + i, halves_to_floats(halves + i));
                for (int64_t i = n_whole; i < n; ++i) out[i] = half_to_float(halves[i]);
                return;
            case GGML_TYPE_BF16:
                for (int64_t i = 0; i < n_whole; i += lanes)
                    store(out + i, __builtin_convertvector(load<Half>(halves + i), Word) << 16);
                for (int64_t i = n_whole; i < n; ++i) {
                    const uint32_t bits = uint32_t(halves[i]) << 16;
                    std::memcpy(out + i, &bits, sizeof(bits));
                }
                return;
            case GGML_TYPE_Q8_0:  // blocks of an f16 scale and 32 signed bytes
                for (; n > 0; n -= 32, bytes += 34, out += 32) {
                    const float d = half_to_float(load<uint16_t>(bytes));
                    for (int i = 0; i < 32; i += lanes)
                        store(out + i, bytes_to_floats(reinterpret_cast<const int8_t *>(bytes) + 2 + i) * d);
                }
                return;
            case GGML_TYPE_Q4_0:  // blocks of an f16 scale and 16 bytes: elements 0-15 in the low nibbles, 16-31 in the high
                for (; n > 0; n -= 32, bytes += 18, out += 32) {
                    const float d = half_to_float(load<uint16_t>(bytes));
                    int8_t values[32];
                    for (int i = 0; i < 16; ++i) {
                        values[i] = int8_t((bytes[2 + i] & 15) - 8);
                        values[16 + i] = int8_t((bytes[2 + i] >> 4) - 8);
                    }
                    for (int i = 0; i < 32; i += lanes) store(out + i, bytes_to_floats(values + i) * d);
                }
                return;
            default: ggml_get_type_traits(type)->to_float(row, out, n); return;
        }
    }

    static CpuKernels kernels(const char * name) { return {name, &to_float, &score, &weigh, &maximum, &exponentiate}; }
};

}  // namespace
}  // namespace pysa
