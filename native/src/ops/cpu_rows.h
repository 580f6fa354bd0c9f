// Where the fused CPU attention finds its rows in the split cache, and what it keeps of a part of a softmax.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "ggml.h"
#include "kv/ring.h"
#include "ops/cpu_kernels.h"

namespace pysa {

struct Range {
    int64_t begin = 0, end = 0;
    int64_t size() const { return std::max<int64_t>(0, end - begin); }
};

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

    // Rows of positions [begin, begin + n) as float [stride, n]; what lies beyond a row's own size stays as it is.
    void load(const CpuKernels & kernels, int64_t begin, int64_t n, int64_t stride, float * out) const {
        const ggml_tensor * any = store_ ? store_ : cur_;
        for (int64_t i = 0; i < n; ++i) kernels.to_float(any->type, row(begin + i), out + i * stride, any->ne[0]);
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

// Maximum and sum of exponentials of one part of a softmax.
struct Part {
    float max = -std::numeric_limits<float>::infinity();
    float sum = 0.0f;
};

}  // namespace pysa
