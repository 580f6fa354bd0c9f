// Vectors of PYSA_LANES floats in the compiler's own vector types, and the row types of the cache unpacked into them.
// Part of cpu_kernels_core.h: included once per instruction set, compiled with that set's flags. Internal linkage throughout: code
// for one set must never be merged with that of another.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__F16C__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#include "ops/cpu_kernels.h"

namespace pysa {
namespace {

constexpr int lanes = PYSA_LANES;  // floats in a vector: what the including file was compiled for
constexpr int n_block = 32;        // elements of a row unpacked at a time: a block of the quantised types
constexpr int n_unpacked = n_block / lanes;
constexpr int n_ahead = 8192;  // bytes that dots asks for before it needs them, as its sums leave the memory idle

typedef float Vec __attribute__((vector_size(lanes * 4)));
typedef int32_t Int __attribute__((vector_size(lanes * 4)));
typedef int8_t Byte __attribute__((vector_size(lanes)));
typedef uint16_t Pairs __attribute__((vector_size(lanes)));  // pairs of bytes: there is no shift of single ones
typedef uint16_t Half __attribute__((vector_size(lanes * 2)));
typedef uint32_t Word __attribute__((vector_size(lanes * 4)));

template <class V, class T> inline V load(const T * p) {
    V v;
    std::memcpy(&v, p, sizeof(V));
    return v;
}
template <class V, class T> inline void store(T * p, V v) { std::memcpy(p, &v, sizeof(V)); }
inline Vec all(float x) { return x - Vec{}; }
inline Vec max(Vec a, Vec b) { return a > b ? a : b; }

// Lane i of the result is lane i ^ n.
template <int n, int... i> inline Vec swapped(Vec v, std::integer_sequence<int, i...>) {
#if defined(__clang__)
    return __builtin_shufflevector(v, v, (i ^ n)...);
#else
    return __builtin_shuffle(v, Int{(i ^ n)...});
#endif
}

template <int n = lanes / 2> inline float sum(Vec v) {
    v += swapped<n>(v, std::make_integer_sequence<int, lanes>());
    if constexpr (n > 1) return sum<n / 2>(v);
    return v[0];
}

template <int n = lanes / 2> inline float highest(Vec v) {
    v = max(swapped<n>(v, std::make_integer_sequence<int, lanes>()), v);
    if constexpr (n > 1) return highest<n / 2>(v);
    return v[0];
}

// Lane i of the result: lane i of a plus lane i ^ n of a where bit n of i is clear, the same of b where it is set.
template <int n, int... i> inline Vec fold(Vec a, Vec b, std::integer_sequence<int, i...>) {
#if defined(__clang__)
    return __builtin_shufflevector(a, b, ((i & n) ? lanes + i : i)...) +
           __builtin_shufflevector(a, b, ((i & n) ? lanes + (i ^ n) : (i ^ n))...);
#else
    return __builtin_shuffle(a, b, Int{((i & n) ? lanes + i : i)...}) +
           __builtin_shuffle(a, b, Int{((i & n) ? lanes + (i ^ n) : (i ^ n))...});
#endif
}

// The sum of each of `lanes` accumulators, in their order.
template <int n = lanes / 2> inline Vec sums(Vec (&acc)[lanes]) {
    for (int i = 0; i < n; ++i) acc[i] = fold<n>(acc[i], acc[i + n], std::make_integer_sequence<int, lanes>());
    if constexpr (n > 1) return sums<n / 2>(acc);
    return acc[0];
}

// e^x for x <= 0: 2^k * e^r with |r| <= ln(2)/2 by a polynomial of degree 6; relative error below 3e-7. 0 below -87.
inline Vec exp(Vec x) {
    const auto polynomial = [](Vec r) {
        Vec p = all(1.0f / 720.0f);
        for (float c : {1.0f / 120.0f, 1.0f / 24.0f, 1.0f / 6.0f, 0.5f, 1.0f, 1.0f}) p = p * r + c;
        return p;
    };
#if defined(__AVX512F__)
    if constexpr (lanes == 16) {  // the scaling underflows to 0 by itself
        const Vec low = max(x, all(-104.0f));
        const Vec k = (Vec)_mm512_roundscale_ps((__m512)(low * 1.44269504f), _MM_FROUND_TO_NEAREST_INT);
        const Vec r = (low - k * 0.693145752f) - k * 1.42860677e-6f;
        return (Vec)_mm512_scalef_ps((__m512)polynomial(r), (__m512)k);
    }
#endif
    const Vec shift = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    const Int is_tiny = x < -87.0f;
    const Vec low = is_tiny ? all(-87.0f) : x;
    const Vec k = (low * 1.44269504f + shift) - shift;
    const Vec r = (low - k * 0.693145752f) - k * 1.42860677e-6f;
    const Int bits = (__builtin_convertvector(k, Int) + 127) << 23;
    Vec power;
    std::memcpy(&power, &bits, sizeof(power));
    return is_tiny ? all(0.0f) : polynomial(r) * power;
}

inline float half_to_float(uint16_t half) {
#if defined(__F16C__)
    return _cvtsh_ss(half);
#else
    return ggml_fp16_to_fp32(half);
#endif
}

inline Vec halves_to_floats(const uint16_t * p) {
#if defined(__AVX512F__)
    if constexpr (lanes == 16) return (Vec)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)));
#elif defined(__F16C__)
    if constexpr (lanes == 8) return (Vec)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
#elif defined(__ARM_NEON)
    if constexpr (lanes == 4) return (Vec)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
#endif
    Vec v;
    for (int i = 0; i < lanes; ++i) v[i] = half_to_float(p[i]);
    return v;
}

inline void floats_to_halves(Vec v, uint16_t * p) {
#if defined(__AVX512F__)
    if constexpr (lanes == 16) return store(p, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
    if constexpr (lanes == 8) return store(p, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__ARM_NEON)
    if constexpr (lanes == 4) return store(p, vcvt_f16_f32((float32x4_t)v));
#endif
    for (int i = 0; i < lanes; ++i) p[i] = ggml_fp32_to_fp16(v[i]);
}

inline Vec bytes_to_floats(Byte v) {
#if defined(__AVX512F__)
    if constexpr (lanes == 16) return (Vec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32((__m128i)v));
#elif defined(__AVX2__)
    if constexpr (lanes == 8)
        return (Vec)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(&v))));
#endif
    return __builtin_convertvector(__builtin_convertvector(v, Int), Vec);
}

// -- rows: elements [32 * block, 32 * block + 32) as floats, and single ones of types without blocks ------------------------------------------------------------

struct RowF32 {
    static constexpr int n_bytes = 128;  // of a block
    static void unpack(const char * row, int64_t block, Vec (&out)[n_unpacked]) {
        for (int i = 0; i < n_unpacked; ++i) out[i] = load<Vec>(row + (block * n_block + i * lanes) * 4);
    }
    static float element(const char * row, int64_t d) { return load<float>(row + d * 4); }
};

struct RowF16 {
    static constexpr int n_bytes = 64;  // of a block
    static void unpack(const char * row, int64_t block, Vec (&out)[n_unpacked]) {
        const auto * halves = reinterpret_cast<const uint16_t *>(row) + block * n_block;
        for (int i = 0; i < n_unpacked; ++i) out[i] = halves_to_floats(halves + i * lanes);
    }
    static float element(const char * row, int64_t d) { return half_to_float(load<uint16_t>(row + d * 2)); }
};

struct RowBF16 {
    static constexpr int n_bytes = 64;  // of a block
    static void unpack(const char * row, int64_t block, Vec (&out)[n_unpacked]) {
        const char * halves = row + block * n_block * 2;
        for (int i = 0; i < n_unpacked; ++i) {
            const Word bits = __builtin_convertvector(load<Half>(halves + i * lanes * 2), Word) << 16;
            out[i] = load<Vec>(&bits);
        }
    }
    static float element(const char * row, int64_t d) {
        const uint32_t bits = uint32_t(load<uint16_t>(row + d * 2)) << 16;
        return load<float>(&bits);
    }
};

struct RowQ8 {                          // an f16 scale and 32 signed bytes
    static constexpr int n_bytes = 34;  // of a block
    static void unpack(const char * row, int64_t block, Vec (&out)[n_unpacked]) {
        const char * bytes = row + block * 34;
        const float scale = half_to_float(load<uint16_t>(bytes));
        for (int i = 0; i < n_unpacked; ++i) out[i] = bytes_to_floats(load<Byte>(bytes + 2 + i * lanes)) * scale;
    }
    static float element(const char *, int64_t) { return 0.0f; }  // rows are whole blocks
};

struct RowQ4 {  // an f16 scale and 16 bytes: elements 0-15 in the low nibbles, 16-31 in the high, each plus 8
    static constexpr int n_bytes = 18;  // of a block
    static void unpack(const char * row, int64_t block, Vec (&out)[n_unpacked]) {
        const char * bytes = row + block * 18;
        const float scale = half_to_float(load<uint16_t>(bytes));
        for (int i = 0; i < n_unpacked / 2; ++i) {
            const Pairs pairs = load<Pairs>(bytes + 2 + i * lanes);
            out[i] = bytes_to_floats((Byte)(pairs & 0x0f0f) - 8) * scale;
            out[i + n_unpacked / 2] = bytes_to_floats((Byte)(pairs >> 4 & 0x0f0f) - 8) * scale;
        }
    }
    static float element(const char *, int64_t) { return 0.0f; }  // rows are whole blocks
};

// Calls f with the row type of a ggml type. Others never get here: parse_cache_types knows these five.
template <class F> inline void with_row_type(ggml_type type, F && f) {
    switch (type) {
        case GGML_TYPE_F32: return f(RowF32());
        case GGML_TYPE_F16: return f(RowF16());
        case GGML_TYPE_BF16: return f(RowBF16());
        case GGML_TYPE_Q8_0: return f(RowQ8());
        default: return f(RowQ4());
    }
}

}  // namespace
}  // namespace pysa
