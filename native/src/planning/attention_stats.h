// What calibration keeps of a model's attention: sums over queries of how alike the distant distributions of any two heads are, how
// alike the weights of any two layers are, and where the mass falls. Fed with queries and keys, layer by layer; the means, the file
// and the choice of texts are pysa/planning/calibration.py's.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "ops/cpu_kernels.h"

namespace pysa {

struct AttentionShape {
    int64_t n_layer = 0, n_head = 0, n_head_kv = 0;
    int64_t n_sink = 0, n_recent = 0;  // the window, in tokens

    int64_t n_heads() const { return n_layer * n_head; }  // of all layers; head h of layer il is il * n_head + h
};

// Sums over the queries of all samples; what to divide by is beside them.
struct AttentionSums {
    int64_t n_queries = 0;  // all queries: divides mass
    int64_t n_distant = 0;  // those with a distance: divides similarity
    std::vector<double>
        similarity;  // [n_heads, n_heads], 1 - Jensen-Shannon divergence in bits; where column >= row, 0 elsewhere
    std::vector<double>
        layer_dots;            // [n_layer, n_layer], products of weights at equal (head, query, position); likewise
    std::vector<double> mass;  // [3, n_head, n_layer], shares of the softmax: sinks, recent, distance
};

// Holds one sample's weights, 4 * n_tokens * n_queries * n_heads bytes: at 16 layers of 32 heads, 16 queries and 4096 tokens 128 MiB.
// The sums change in end_sample() only, and do not depend on n_threads. A call that throws drops the sample.
class AttentionStats {
  public:
    AttentionStats(const AttentionShape & shape, int32_t n_threads);

    const AttentionShape & shape() const { return shape_; }
    const AttentionSums & sums() const { return sums_; }
    void set_sums(AttentionSums sums);

    // Starts with the last n_queries positions of a text of n_tokens; a sample that was not ended is dropped.
    void begin_sample(int64_t n_tokens, int64_t n_queries);
    int64_t n_tokens() const { return n_tokens_; }
    int64_t n_queries() const { return n_queries_; }

    // The next layer: queries [n_embd_head, n_head, n_queries] and keys [n_embd_head, n_tokens, n_head_kv], whose product times
    // kq_scale is the score. ArgumentError where a score that a query sees is not finite.
    void add_layer(const float * queries, const float * keys, int64_t n_embd_head, float kq_scale);

    // Adds the sample, all of whose layers are there, to the sums.
    void end_sample();

    int64_t size_bytes() const;

  private:
    // The positions of query q: [0, sinks) and [distant, t] are its window, [sinks, distant) its distance.
    struct Stretch { int64_t sinks, distant, end; };
    static constexpr int n_parts = 3;  // sinks, recent, distance
    struct Scratch {
        std::vector<float> queries, rows,
            scores;  // [stride, n_queries], [stride, rows of a block], [score_stride, n_queries]
        std::vector<const char *> row_pointers;
    };

    Stretch stretch(int64_t q) const;
    float * weights(int64_t q, int64_t head) const {
        return weights_.get() + (q * shape_.n_heads() + head) * n_tokens_;
    }
    void drop_sample();
    void score_head(const float * queries, const float * keys, int64_t n_embd_head, float kq_scale, int64_t h,
                    Scratch & scratch) const;
    bool weigh_query(const float * scores, int64_t q, int64_t head);
    void add_similarity(int64_t first_row, int64_t first_column);
    void add_layer_dots(int64_t il, int64_t jl);

    const AttentionShape shape_;
    const int32_t n_threads_;
    const CpuKernels & kernels_;
    AttentionSums sums_;

    // The sample: weights of [0, sinks) and [distant, end) as shares of the softmax, of [sinks, distant) as halves of shares of the
    // distance, as the kernel wants them.
    int64_t n_tokens_ = 0, n_queries_ = 0, n_layers_done_ = 0, capacity_ = 0;
    std::unique_ptr<float[]> weights_;  // [n_tokens, n_heads, n_queries]
    std::vector<double> mass_;          // [3, n_heads, n_queries]
    std::vector<double> entropies_;     // [n_heads, n_queries], of the distance, in bits
};

}  // namespace pysa
