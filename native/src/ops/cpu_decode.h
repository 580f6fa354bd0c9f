// Fused CPU attention of one token. Two graph nodes a layer, because values are chosen by weights of the whole context:
//
//   score   every KV head scores its window, and owners the distance too, chunk by chunk; what followers need is left as f16
//   weigh   the parts are one softmax; the gate is known; owners drop negligible rows, and their followers take the same list; values
//           are added up chunk by chunk
//
// The units of both nodes are a KV head and a stretch of chunks ("split"), dealt out to the threads. The splits depend on the
// position alone, and the last one of a KV head adds them up in order: results do not depend on the threads.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "ops/cpu_kernels.h"
#include "ops/cpu_rows.h"
#include "ops/shared_attn.h"
#include "ops/softmax_parts.h"
#include "ops/value_list.h"
#include "ops/weight_store.h"

namespace pysa {

class DecodeAttention {
  public:
    DecodeAttention(const AttnTable & table, const SplitCache & cache, const CpuKernels & kernels, int n_threads,
                    float v_skip);

    // Before the layers of a token at position t.
    void begin(int64_t t);

    // Called by every thread of a graph node.
    void score(const AttnLayer & layer, const AttnInputs & inputs, int ith);
    void weigh(const AttnLayer & layer, const AttnInputs & inputs, ggml_tensor * dst, int ith);

    int64_t size_bytes() const;
    SkipReport skip_report() const;
    void reset_skip_report();

  private:
    static constexpr int64_t n_chunk = ValueList::n_most;  // rows
    static constexpr int64_t n_most_splits = 16;           // of a KV head

    struct Chunk {
        bool is_far = false;
        int64_t index = 0;  // in its store
        Range rows;         // positions
    };

    // What the chunks of a head come to.
    struct Line {
        SoftmaxPart far;   // without the mass bias
        SoftmaxJoin join;  // with it
    };

    struct Scratch {
        std::vector<float> queries;  // [stride_k, n_gqa]
        std::vector<float> weights;  // [n_chunk, n_gqa]
        std::vector<float> factors;  // [n_gqa]: from weights to shares of the softmax
        std::vector<float> rows;     // [stride, n_chunk]
    };

    struct alignas(64) Tally {
        SkipReport sums;
        int64_t n_heads = 0;
    };

    ValueList & list_of(const AttnHead & head, int64_t h, int64_t chunk);
    const float * part(const AttnHead & head, int64_t h, bool is_far, int64_t chunk);
    Range split(int64_t i) const;
    void score_chunk(const AttnLayer & layer, const Rows & keys, const Chunk & chunk, int64_t kv, const float * queries,
                     int64_t query_stride, Scratch & scratch);
    void close_softmax(const AttnLayer & layer, int64_t kv);
    ValueList choose(const Chunk & chunk, int64_t h);
    void weigh_chunk(const AttnLayer & layer, const Rows & values, const Chunk & chunk, int64_t kv, float * out,
                     Scratch & scratch, Tally & tally);
    void add_up(const AttnLayer & layer, int64_t kv, ggml_tensor * dst, Tally & tally);
    ggml_type find_rows(const Rows & rows, const Chunk & chunk, int64_t stride, const char ** found,
                        Scratch & scratch) const;

    const AttnTable & table_;
    const SplitCache & cache_;
    const CpuKernels & kernels_;
    const float v_skip_;
    const int64_t n_gqa_, stride_k_, stride_v_;
    int64_t t_ = 0;
    int64_t n_splits_ = 1;
    std::vector<Chunk> chunks_;
    WeightStore<float> near_;                          // a slot per head
    WeightStore<float> far_;                           // the same, of heads that score the distance
    WeightStore<uint16_t> shared_;                     // the plan's slots
    std::vector<ValueList> lists_;                     // [chunks of far_, the plan's slots and then one per head]
    std::vector<Line> lines_;                          // [n_head]
    std::vector<float> outs_;                          // [stride_v, n_gqa, n_splits, n_head_kv]
    std::unique_ptr<std::atomic<int32_t>[]> arrived_;  // splits of a KV head that are done; back at 0 after the last
    std::vector<Scratch> scratch_;                     // [n_threads]
    std::vector<Tally> tallies_;
    std::unique_ptr<std::atomic<int64_t>[]> next_unit_;  // [2, n_layer]
};

}  // namespace pysa
