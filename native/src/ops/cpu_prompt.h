// Fused CPU attention of several tokens: one graph node a layer. A unit of work is a KV head and a tile of n_lanes queries, against
// blocks of rows: scores, online softmax, values, so that a block is converted once for all query heads of its group and nothing
// of the context's length is kept; only owners with followers leave their distant weights behind.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "ops/cpu_kernels.h"
#include "ops/cpu_rows.h"
#include "ops/shared_attn.h"
#include "ops/weight_store.h"

namespace pysa {

class PromptAttention {
  public:
    PromptAttention(const AttnTable & table, const SplitCache & cache, const CpuKernels & kernels, int n_threads);

    // Before the layers of a ubatch.
    void begin(const AttnStep & step);

    // Called by every thread of a graph node. dst f32 [n_embd_head_v * n_head, n_tokens]
    void run(const AttnLayer & layer, const AttnInputs & inputs, ggml_tensor * dst, int ith);

    // What begin() allocates for a token more.
    int64_t bytes_per_token(int64_t n_kv) const;
    int64_t size_bytes() const;

  private:
    // One part of a head's softmax: what a tile of queries has seen of it so far.
    struct Part {
        std::vector<float> seen;  // [n_lanes, 2, n_gqa]: maxima and sums
        std::vector<float> out;   // [stride_v, n_lanes, n_gqa]
        void clear();
    };

    struct Scratch {
        std::vector<float> queries;                 // [n_lanes, n_embd_head_k, n_gqa], scaled
        std::vector<float> tiles;                   // [n_lanes, rows of a block, n_gqa]
        std::vector<float> rows;                    // [stride, rows of a block]
        std::vector<const float *> scored_queries;  // of the heads that score a block themselves
        std::vector<float *> scored_tiles;
        Part near, far;
    };

    // Positions that some query of the tile sees, and the stretch of them that each query does.
    struct View {
        Range rows;
        int32_t begin[n_lanes] = {}, end[n_lanes] = {};
    };

    struct Unit {
        const AttnLayer & layer;
        const AttnInputs & inputs;
        int64_t kv = 0;
        int64_t tile = 0;
        int64_t n_queries = 0;
        int64_t t0 = 0;  // position of the first query
    };

    View view(const Unit & unit, int64_t begin, int64_t before, int64_t end, int64_t behind) const;
    void run_unit(const Unit & unit, ggml_tensor * dst, Scratch & scratch);
    void take_queries(const Unit & unit, Scratch & scratch) const;
    bool is_gated(const Unit & unit, const Scratch & scratch);
    void attend(const Unit & unit, const View & view, bool is_far, Part & part, Scratch & scratch);
    void merge(const Unit & unit, ggml_tensor * dst, const Scratch & scratch) const;

    const AttnTable & table_;
    const SplitCache & cache_;
    const CpuKernels & kernels_;
    const int64_t n_gqa_, stride_k_, stride_v_;
    AttnStep step_;
    int64_t n_tiles_ = 0;
    WeightStore<uint16_t> shared_;
    std::vector<Scratch> scratch_;                       // [n_threads]
    std::unique_ptr<std::atomic<int64_t>[]> next_unit_;  // [n_layer]
};

}  // namespace pysa
