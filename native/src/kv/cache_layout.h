// What a plan asks the cache to keep: per layer and KV head, whether K and V keep every row or only the window.
// Plain data, no tensors. Used by the split cache, the attention ops and the byte formula.
#pragma once

#include <cstdint>
#include <vector>

#include "pysa/hparams.h"
#include "pysa/sharing_plan.h"

namespace pysa {

// K and V rows of one KV head: either all positions ("full") or the window only ("ring").
struct KvHeadLayout {
    bool k_full = true;
    bool v_full = true;
    int32_t k_index = 0;  // head index inside the layer's full or ring tensor
    int32_t v_index = 0;
};

struct LayerLayout {
    std::vector<KvHeadLayout> kv_heads;
    int32_t n_k_full = 0, n_k_ring = 0;  // KV heads
    int32_t n_v_full = 0, n_v_ring = 0;
    bool needs_q = true;  // some head scores something itself
    bool needs_k = true;  // some KV head stores K rows
};

struct CacheLayout {
    std::vector<LayerLayout> layers;
    int32_t n_sink = 0;
    int32_t n_recent = 0;
    int32_t n_slack = 0;  // window rows beyond the need, so that as many tokens can be truncated for free

    int64_t window_rows() const { return n_recent == 0 ? 0 : int64_t(n_sink) + n_recent + n_slack; }
    bool has_ring() const;
};

CacheLayout make_cache_layout(const SharingPlan & plan, const HParams & hp, int32_t n_slack);

struct CacheBytes {
    int64_t keys = 0, values = 0;                // full rows
    int64_t window_keys = 0, window_values = 0;  // ring rows
    int64_t total() const { return keys + values + window_keys + window_values; }
};

// DESIGN: bytes(n) = sum over layers of n * full rows + min(n, window) * ring rows. row_*: bytes of one head's row.
CacheBytes cache_bytes(const CacheLayout & layout, int64_t n, int64_t row_k, int64_t row_v);

}  // namespace pysa
