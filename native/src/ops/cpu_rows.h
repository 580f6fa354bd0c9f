// Where the fused CPU attention finds its rows in the split cache.
#pragma once

#include <algorithm>
#include <cstdint>

#include "ggml.h"
#include "kv/ring.h"
#include "kv/split_cache.h"
#include "ops/cpu_kernels.h"
#include "ops/shared_attn.h"

namespace pysa {

constexpr int64_t n_block_rows = 64;  // rows that a kernel call takes

struct Range {
    int64_t begin = 0, end = 0;
    int64_t size() const { return std::max<int64_t>(0, end - begin); }
};

// Rows of one KV head by position: in the full tensor, in the ring, or in the ubatch that the ring has not taken yet.
class Rows {
  public:
    Rows(const ggml_tensor * full, const ggml_tensor * ring, const ggml_tensor * cur, bool is_full, int64_t index,
         int64_t kv_head, const Ring & slots, int64_t n_past)
        : store_(is_full ? full : ring), cur_(cur), is_full_(is_full), slots_(slots), n_past_(n_past) {
        base_ = store_ ? static_cast<const char *>(store_->data) + index * store_->nb[2] : nullptr;
        cur_base_ = cur_ ? static_cast<const char *>(cur_->data) + kv_head * cur_->nb[2] : nullptr;
    }

    static Rows keys(const SplitCache & cache, int32_t il, int32_t kv, const ggml_tensor * cur, int64_t n_past) {
        const LayerCache & t = cache.layer(il);
        const KvHeadLayout & head = cache.layout().layers[il].kv_heads[kv];
        return Rows(t.k_full, t.k_ring, cur, head.k_full, head.k_index, kv, cache.ring(), n_past);
    }
    static Rows values(const SplitCache & cache, int32_t il, int32_t kv, const ggml_tensor * cur, int64_t n_past) {
        const LayerCache & t = cache.layer(il);
        const KvHeadLayout & head = cache.layout().layers[il].kv_heads[kv];
        return Rows(t.v_full, t.v_ring, cur, head.v_full, head.v_index, kv, cache.ring(), n_past);
    }

    ggml_type type() const { return any()->type; }
    int64_t n_embd() const { return any()->ne[0]; }

    // Rows of positions [begin, begin + n).
    void find(int64_t begin, int64_t n, const char ** out) const {
        int64_t i = 0;
        if (is_full_) {
            for (; i < n; ++i) out[i] = base_ + (begin + i) * store_->nb[1];
            return;
        }
        const int64_t n_held = std::clamp<int64_t>(n_past_ - begin, 0, n);
        int64_t row = n_held > 0 ? slots_.row(begin) : 0;
        for (; i < n_held; ++i) {
            out[i] = base_ + row * store_->nb[1];
            if (++row == slots_.n_rows) row = slots_.n_sink;
        }
        for (; i < n; ++i) out[i] = cur_base_ + (begin + i - n_past_) * cur_->nb[1];
    }

    // The same as float [stride, n], each row padded with zeros.
    void load(const CpuKernels & kernels, int64_t begin, int64_t n, int64_t stride, float * out) const {
        const char * rows[n_block_rows];
        find(begin, n, rows);
        kernels.to_float(type(), rows, n, n_embd(), out, stride);
    }

  private:
    const ggml_tensor * any() const { return store_ ? store_ : cur_; }

    const ggml_tensor * store_;
    const ggml_tensor * cur_;
    const char * base_ = nullptr;
    const char * cur_base_ = nullptr;
    bool is_full_;
    const Ring & slots_;
    int64_t n_past_;
};

}  // namespace pysa
