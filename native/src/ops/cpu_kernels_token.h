// Kernels for single tokens; part of cpu_kernels_core.h.
//
// dots: 4 queries by lanes/4 rows at a time (2 by lanes/2, 1 by lanes), one accumulator vector each; a tree of folds turns the
// accumulators into one vector of results. weigh: some queries by some vectors of a row stay in registers over all rows.
#pragma once

#include "ops/cpu_vec.h"

namespace pysa {
namespace {

template <class Row, int n_q> inline void dots_of(const float * queries, int64_t query_stride,
                                                  const char * const * rows, int64_t n_rows, int64_t n_embd,
                                                  float scale, float * out, int64_t out_stride) {
    constexpr int n_r = lanes / n_q, n_together = n_r < 4 ? n_r : 4;
    for (int64_t r = 0; r < n_rows; r += n_r) {
        Vec acc[lanes] = {};
        const char * row[n_r];
        for (int j = 0; j < n_r; ++j) row[j] = rows[r + j < n_rows ? r + j : n_rows - 1];
        for (int64_t block = 0; block < n_embd / n_block; ++block) {
            for (int j0 = 0; j0 < n_r; j0 += n_together) {
                Vec x[n_together][n_unpacked];
                for (int j = 0; j < n_together; ++j) {
                    Row::unpack(row[j0 + j], block, x[j]);
                    __builtin_prefetch(row[j0 + j] + block * Row::n_bytes + n_ahead, 0, 2);
                }
                for (int s = 0; s < n_unpacked; ++s)
                    for (int i = 0; i < n_q; ++i) {
                        const Vec q = load<Vec>(queries + i * query_stride + block * n_block + s * lanes);
                        for (int j = 0; j < n_together; ++j) acc[i * n_r + j0 + j] += q * x[j][s];
                    }
            }
        }
        const Vec result = sums(acc) * scale;
        for (int i = 0; i < n_q; ++i)
            std::memcpy(out + i * out_stride + r, reinterpret_cast<const float *>(&result) + i * n_r,
                        n_r * sizeof(float));
    }
}

inline void dots(ggml_type type, const float * queries, int64_t query_stride, int64_t n_queries,
                 const char * const * rows, int64_t n_rows, int64_t n_embd, float scale, float * out,
                 int64_t out_stride) {
    with_row_type(type, [&](auto row_type) {
        using Row = decltype(row_type);
        for (int64_t q = 0; q < n_queries;) {
            const float * from = queries + q * query_stride;
            float * to = out + q * out_stride;
            const int64_t left = n_queries - q;
            if (left >= 4) {
                dots_of<Row, 4>(from, query_stride, rows, n_rows, n_embd, scale, to, out_stride);
            } else if (left >= 2) {
                dots_of<Row, 2>(from, query_stride, rows, n_rows, n_embd, scale, to, out_stride);
            } else {
                dots_of<Row, 1>(from, query_stride, rows, n_rows, n_embd, scale, to, out_stride);
            }
            q += left >= 4 ? 4 : left >= 2 ? 2 : 1;
        }
    });
}

template <class Row, int n_q, int n_b>
inline void weigh_blocks(const float * weights, int64_t query_step, int64_t row_step, const char * const * rows,
                         const int32_t * list, int64_t n_rows, int64_t block, const float * decay, const float * factor,
                         float * out, int64_t out_stride) {
    Vec acc[n_q][n_b * n_unpacked] = {};
    for (int64_t item = 0; item < n_rows; ++item) {
        const int64_t r = list ? list[item] : item;
        Vec x[n_b][n_unpacked];
        for (int b = 0; b < n_b; ++b) Row::unpack(rows[r], block + b, x[b]);
        for (int i = 0; i < n_q; ++i) {
            const float weight = weights[i * query_step + r * row_step];
            for (int b = 0; b < n_b; ++b)
                for (int s = 0; s < n_unpacked; ++s) acc[i][b * n_unpacked + s] += weight * x[b][s];
        }
    }
    for (int i = 0; i < n_q; ++i)
        for (int s = 0; s < n_b * n_unpacked; ++s) {
            float * at = out + i * out_stride + block * n_block + s * lanes;
            store(at, load<Vec>(at) * (decay ? decay[i] : 1.0f) + acc[i][s] * factor[i]);
        }
}

template <class Row, int n_q> inline void weigh_of(const float * weights, int64_t query_step, int64_t row_step,
                                                   const char * const * rows, const int32_t * list, int64_t n_rows,
                                                   int64_t n_embd, const float * decay, const float * factor,
                                                   float * out, int64_t out_stride) {
    constexpr int n_b = lanes >= 16 ? 2 : 1;
    int64_t block = 0;
    for (; block + n_b <= n_embd / n_block; block += n_b)
        weigh_blocks<Row, n_q, n_b>(weights, query_step, row_step, rows, list, n_rows, block, decay, factor, out,
                                    out_stride);
    for (; block < n_embd / n_block; ++block)
        weigh_blocks<Row, n_q, 1>(weights, query_step, row_step, rows, list, n_rows, block, decay, factor, out,
                                  out_stride);
}

inline void weigh(ggml_type type, const float * weights, int64_t query_step, int64_t row_step, int64_t n_queries,
                  const char * const * rows, const int32_t * list, int64_t n_rows, int64_t n_embd, const float * decay,
                  const float * factor, float * out, int64_t out_stride) {
    constexpr int n_most = lanes >= 16 ? 4 : 2;  // as many accumulators as there are registers for
    with_row_type(type, [&](auto row_type) {
        using Row = decltype(row_type);
        for (int64_t q = 0; q < n_queries;) {
            const float * from = weights + q * query_step;
            const float * by = decay ? decay + q : nullptr;
            float * to = out + q * out_stride;
            const int64_t left = n_queries - q;
            if (left >= n_most) {
                weigh_of<Row, n_most>(from, query_step, row_step, rows, list, n_rows, n_embd, by, factor + q, to,
                                      out_stride);
            } else if (left >= 2) {
                weigh_of<Row, 2>(from, query_step, row_step, rows, list, n_rows, n_embd, by, factor + q, to,
                                 out_stride);
            } else {
                weigh_of<Row, 1>(from, query_step, row_step, rows, list, n_rows, n_embd, by, factor + q, to,
                                 out_stride);
            }
            q += left >= n_most ? n_most : left >= 2 ? 2 : 1;
        }
    });
}

inline void softmax(float * scores, int64_t n, uint16_t * halves, float * max_out, float * sum_out) {
    for (int64_t i = n; i < padded(n, lanes); ++i) scores[i] = minus_infinity;
    Vec most = all(minus_infinity);
    for (int64_t i = 0; i < n; i += lanes) most = max(load<Vec>(scores + i), most);
    const float reference = highest(most);
    Vec total = {};
    for (int64_t i = 0; i < n; i += lanes) {
        Vec e = exp(load<Vec>(scores + i) - reference);
        if (halves) {
            floats_to_halves(e, halves + i);
            e = halves_to_floats(halves + i);
        }
        store(scores + i, e);
        total += e;
    }
    *max_out = reference;
    *sum_out = sum(total);
}

inline void unpack(const uint16_t * halves, int64_t n, float * out) {
    for (int64_t i = 0; i < n; i += lanes) store(out + i, halves_to_floats(halves + i));
}

inline float limit(const float * weights, int64_t n, float budget, float * mass_below) {
    constexpr int n_limits = 4;
    Vec below[n_limits] = {};
    float most[n_limits];
    for (int j = 0; j < n_limits; ++j) most[j] = budget / float(1 << 2 * j);
    for (int64_t i = 0; i < n; i += lanes) {
        float tail[lanes];
        for (int k = 0; i + lanes > n && k < lanes; ++k) tail[k] = i + k < n ? weights[i + k] : 0.0f;
        const Vec w = load<Vec>(i + lanes > n ? tail : weights + i);
        for (int j = 0; j < n_limits; ++j) below[j] += w < most[j] ? w : Vec{};
    }
    for (int j = 0; j < n_limits; ++j) {
        *mass_below = sum(below[j]);
        if (*mass_below <= budget) return most[j];
    }
    *mass_below = budget;
    return budget / float(1 << 2 * n_limits);
}

inline uint64_t mask_from(const float * weights, int64_t n, float limit) {
    uint64_t mask = 0;
    int64_t i = 0;
#if defined(__AVX512F__)
    for (; i + lanes <= n; i += lanes) {
        const uint64_t bits = _mm512_cmp_ps_mask((__m512)load<Vec>(weights + i), (__m512)all(limit), _CMP_GE_OQ);
        mask |= bits << i;
    }
#elif defined(__AVX2__)
    for (; i + lanes <= n; i += lanes) {
        const __m256 is_in = _mm256_cmp_ps((__m256)load<Vec>(weights + i), (__m256)all(limit), _CMP_GE_OQ);
        mask |= uint64_t(uint32_t(_mm256_movemask_ps(is_in))) << i;
    }
#endif
    for (; i < n; ++i) mask |= uint64_t(weights[i] >= limit) << i;
    return mask;
}

inline int64_t list_bits(uint64_t mask, int32_t first, int32_t * out) {
    int64_t n = 0;
#if defined(__AVX512F__)
    __m512i index = _mm512_add_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                                     _mm512_set1_epi32(first));
    for (int i = 0; i < 64; i += 16, mask >>= 16) {
        _mm512_storeu_si512(out + n, _mm512_maskz_compress_epi32(__mmask16(mask), index));
        n += __builtin_popcount(uint32_t(mask & 0xffff));
        index = _mm512_add_epi32(index, _mm512_set1_epi32(16));
    }
#else
    for (; mask; mask &= mask - 1) out[n++] = first + int32_t(__builtin_ctzll(mask));
#endif
    return n;
}

}  // namespace
}  // namespace pysa
