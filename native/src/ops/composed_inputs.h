// What composed attention reads besides q, k and v: which rows the window takes from the cache, and what a query may see.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/shared_attn.h"

namespace pysa {

class ComposedInputs {
  public:
    ComposedInputs(const AttnTable & table, const Ring & ring) : table_(table), ring_(ring) {}

    // Makes the input tensors of a step; set() fills those that the graph uses, once it is allocated.
    void begin(ggml_context * ctx, const AttnStep & step);
    void set() const;

    int64_t n_old() const { return int64_t(old_positions_.size()); }
    int64_t n_window() const { return n_old() + step_.n_tokens; }  // columns: older positions first, then the ubatch

    ggml_tensor * mask_causal = nullptr;  // f32 [n_kv, n_tokens]
    ggml_tensor * mask_window = nullptr;  // f32 [n_window, n_tokens]: P(t)
    ggml_tensor * mask_split = nullptr;   // f32 [n_window + n_kv, n_tokens]: P(t), then D(t)
    ggml_tensor * old_pos = nullptr;      // i32 [n_old, n_head_kv]: rows of the older positions in a full tensor
    ggml_tensor * old_row = nullptr;      // i32 [n_old, n_head_kv]: the same in a ring

  private:
    const AttnTable & table_;
    const Ring & ring_;
    AttnStep step_;
    std::vector<int64_t> old_positions_;  // of the window of some query, before the ubatch
};

}  // namespace pysa
