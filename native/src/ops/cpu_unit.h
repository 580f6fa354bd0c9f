// One unit of work of the fused CPU attention: one KV head and a tile of queries, so that each K and V row is read and converted
// once for all of them. A "line" is one query of one head of the group.
// Stages: score the window, score the distance (or take the source's weights), one softmax, weigh the values.
#pragma once

#include <cstdint>

#include "ops/cpu_kernels.h"
#include "ops/cpu_rows.h"
#include "ops/distant_store.h"
#include "ops/shared_attn.h"

namespace pysa {

// What the units of one step have in common.
struct UnitShape {
    static constexpr int64_t n_tile = 8;    // queries
    static constexpr int64_t n_block = 64;  // rows converted at a time

    UnitShape() = default;
    UnitShape(const HParams & hp, const AttnStep & step);

    int64_t n_lines = 0;    // of a tile, padded for the kernels
    int64_t n_columns = 0;  // of a line, likewise
    int64_t stride_k = 0;   // floats of a key row, padded
    int64_t stride_v = 0;
    int64_t n_floats() const {
        return n_lines * (stride_k + 2 * n_columns + stride_v) +
               (n_block + n_pad_columns) * std::max(stride_k, stride_v);
    }
};

class AttnUnit {
  public:
    // scratch: shape.n_floats() floats of the calling thread.
    AttnUnit(const AttnTable & table, const SplitCache & cache, const CpuKernels & kernels, const AttnStep & step,
             const UnitShape & shape, DistantStore & shared, float * scratch);

    // Attention of KV head kv over queries [first, first + n_queries) of the ubatch, into dst f32 [n_embd_head_v * n_head, n_tokens].
    void run(const AttnLayer & layer, const AttnInputs & inputs, int32_t kv, int64_t first, int64_t n_queries,
             ggml_tensor * dst);

  private:
    void take_queries(const ggml_tensor * q);
    void score(const Rows & keys, Range range, float * columns);
    void score_distant(const AttnLayer & layer);
    void softmax(const AttnLayer & layer);
    Part exponentiate(float * columns, int64_t n) const;
    Part window_part(int64_t t, float * columns) const;
    Part distant_part(const AttnHead & head, int64_t iq, float * columns, int64_t n_far);
    void weigh(const Rows & values, Range range, const float * columns);

    const AttnTable & table_;
    const SplitCache & cache_;
    const CpuKernels & kernels_;
    const AttnStep step_;
    const UnitShape shape_;
    DistantStore & shared_;
    const int64_t n_gqa_;
    float * queries_;  // [stride_k, n_lines]
    float * window_;   // [n_columns, n_lines]: the sinks, then positions from recent_.begin on
    float * distant_;  // [n_columns, n_lines]: positions from far_.begin on
    float * out_;      // [stride_v, n_lines]
    float * rows_;     // [stride, n_block]
    int32_t kv_ = 0;
    int64_t first_ = 0, n_queries_ = 0;
    Range sinks_, recent_, far_;  // positions that some query of the tile needs
};

}  // namespace pysa
