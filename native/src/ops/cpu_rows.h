// Building blocks of the fused CPU attention: rows of the split cache as floats, products with them, exponentials.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "ggml-cpu.h"
#include "ggml.h"
#include "kv/ring.h"

namespace pysa {

struct Range {
    int64_t begin = 0, end = 0;
    int64_t size() const { return std::max<int64_t>(0, end - begin); }
};

using ToFloat = void (*)(const void *, float *, int64_t);

// ggml's vectorised conversions where it has them.
inline ToFloat to_float_of(ggml_type type) {
    switch (type) {
        case GGML_TYPE_F32: return [](const void * x, float * y, int64_t n) { std::memcpy(y, x, n * sizeof(float)); };
        case GGML_TYPE_F16:
            return [](const void * x, float * y, int64_t n) {
                ggml_cpu_fp16_to_fp32(static_cast<const ggml_fp16_t *>(x), y, n);
            };
        case GGML_TYPE_BF16:
            return [](const void * x, float * y, int64_t n) {
                ggml_cpu_bf16_to_fp32(static_cast<const ggml_bf16_t *>(x), y, n);
            };
        default: return ggml_get_type_traits(type)->to_float;
    }
}

// Where the row of a position lies: the full tensor, the ring, or the ubatch that the ring has not taken yet.
class Rows {
  public:
    Rows(const ggml_tensor * full, const ggml_tensor * ring, const ggml_tensor * cur, bool is_full, int64_t index,
         int64_t kv_head, const Ring & slots, int64_t n_past)
        : store_(is_full ? full : ring), cur_(cur), is_full_(is_full), slots_(slots), n_past_(n_past) {
        base_ = store_ ? static_cast<const char *>(store_->data) + index * store_->nb[2] : nullptr;
        cur_base_ = cur_ ? static_cast<const char *>(cur_->data) + kv_head * cur_->nb[2] : nullptr;
    }

    const char * row(int64_t pos) const {
        if (is_full_) return base_ + pos * store_->nb[1];
        if (pos >= n_past_) return cur_base_ + (pos - n_past_) * cur_->nb[1];
        return base_ + slots_.row(pos) * store_->nb[1];
    }

    // Rows of positions [begin, begin + n) as float [n_embd_head, n].
    void load(int64_t begin, int64_t n, float * out) const {
        const ggml_tensor * any = store_ ? store_ : cur_;
        const ToFloat to_float = to_float_of(any->type);
        for (int64_t i = 0; i < n; ++i) to_float(row(begin + i), out + i * any->ne[0], any->ne[0]);
    }

  private:
    const ggml_tensor * store_;
    const ggml_tensor * cur_;
    const char * base_ = nullptr;
    const char * cur_base_ = nullptr;
    bool is_full_;
    const Ring & slots_;
    int64_t n_past_;
};

inline float dot(const float * a, const float * b, int64_t n) {
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
    return sum;
}

inline void add_scaled(float * out, float weight, const float * row, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) out[i] += weight * row[i];
}

// Maximum and sum of exponentials of one part of a softmax.
struct Part {
    float max = -std::numeric_limits<float>::infinity();
    float sum = 0.0f;
};

// Turns the scores of `range` into unnormalised weights in [0, 1].
inline Part exponentiate(float * scores, Range range) {
    Part part;
    for (int64_t i = range.begin; i < range.end; ++i) part.max = std::max(part.max, scores[i]);
    for (int64_t i = range.begin; i < range.end; ++i) {
        scores[i] = std::exp(scores[i] - part.max);
        part.sum += scores[i];
    }
    return part;
}

}  // namespace pysa
