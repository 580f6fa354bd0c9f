// The graph of one step: embedding, layers, output. Table-driven: what an architecture adds or omits is decided by which
// tensors are there. A step may be of several sessions: they share every product with a weight, and each has its own
// attention, one call to ops/shared_attn.h.
#pragma once

#include <cstdint>
#include <vector>

#include "ggml.h"
#include "graph/arch_table.h"
#include "ops/shared_attn.h"

namespace pysa {

struct StepGraph {
    ggml_cgraph * gf = nullptr;
    ggml_tensor * out = nullptr;  // f32 [n_vocab or n_embd, n_out]; null if n_out is 0
    std::vector<bool> on_gpu;     // of each node: whether it goes with weights or rows on a GPU
};

// What of the last tokens is wanted: scores of the next token, or what the scores are made from.
enum class StepOut { logits, embeddings };

// One session's part of a step.
struct StepLane {
    const SplitCache * cache = nullptr;
    SharedAttention * attention = nullptr;
    AttnStep step;
    int64_t n_out = 0;  // its last n_out tokens are wanted
};

// What shapes the graph of a lane, attention aside.
struct LaneShape {
    const SplitCache * cache = nullptr;
    int64_t n_tokens = 0;
    int64_t n_out = 0;
    int64_t n_sink_rows = 0, n_tail_rows = 0;  // of the ring, that are written
    uint64_t cache_generation = 0;             // the cache's tensors are part of the graph
    bool operator==(const LaneShape & other) const {
        return cache == other.cache && n_tokens == other.n_tokens && n_out == other.n_out &&
               n_sink_rows == other.n_sink_rows && n_tail_rows == other.n_tail_rows &&
               cache_generation == other.cache_generation;
    }
};

// What of a layer's output the layers after it, or the logits, ask for.
struct LayerOut {
    bool any = true;              // false: its keys and values only
    ggml_tensor * ids = nullptr;  // i32: these tokens; null: all
};

// A step that begins at a later layer and shows what it computes on the way: for planning/trial.h.
struct StepProbe {
    int32_t first_layer = 0;
    std::vector<int32_t>
        sources;  // layers before it whose distant weights later layers read: scored again, nothing else
    bool shows_queries = false;
    // Of the graph built last, null where there is none:
    std::vector<ggml_tensor *> given;    // [n_layer] f32 [n_embd, n_tokens]: inputs of layers, for the caller to set
    std::vector<ggml_tensor *> inputs;   // [n_layer] the same of the layers that are evaluated, to be read
    std::vector<ggml_tensor *> queries;  // [n_layer] f32 [n_embd_head_k, n_head, n_tokens]
    ggml_tensor * hidden = nullptr;      // f32 [n_embd, n_tokens]: the last layer's output, before the output's norm
};

// Upper bound of a step's nodes, and of its leafs, for sizing contexts and the scheduler.
size_t step_graph_nodes(const HParams & hp, size_t n_lanes = 1);

class StepGraphBuilder {
  public:
    StepGraphBuilder(const HParams & hp, const ModelWeights & weights) : hp_(hp), weights_(weights) {}

    // The lanes' tokens follow one another, and so do the rows wanted of them.
    StepGraph build(ggml_context * ctx, const std::vector<StepLane> & lanes, StepOut out);

    // No logits; `probe` says from which layer on, and takes the tensors.
    StepGraph build_probe(ggml_context * ctx, const StepLane & lane, StepProbe & probe);
    // Logits of n_out rows of StepProbe::hidden, which `hidden` is for; no attention, no set_inputs().
    StepGraph build_logits(ggml_context * ctx, int64_t n_out, ggml_tensor *& hidden);

    // Whether the graph built last serves this step too. If so, reuse() takes the place of building and allocating it.
    bool can_reuse(const std::vector<StepLane> & lanes, StepOut out) const;
    void reuse(const std::vector<StepLane> & lanes);

    // Before each run, of a graph that is allocated or reused: an input's memory may serve later nodes as well.
    // `tokens` has those of all lanes, one after the other.
    void set_inputs(const int32_t * tokens);

  private:
    // A lane, and its part of the graph.
    struct Lane {
        StepLane given;
        LaneShape shape;
        int64_t first_token = 0;            // in the step
        ggml_tensor * full_rows = nullptr;  // i64 [n_tokens]
        ggml_tensor * sink_rows = nullptr;  // i64: ring rows of the first tokens, where they are sinks
        ggml_tensor * tail_rows = nullptr;  // i64: ring rows of the last tokens, as many as the ring holds
    };
    // A layer's new rows: of all lanes, then of one.
    struct Rows {
        ggml_tensor * q = nullptr;  // f32 [n_embd_head_k, n_head, n_tokens]; null if the layer scores nothing
        ggml_tensor * k = nullptr;  // f32 [n_embd_head_k, n_tokens, n_head_kv]; null if the layer stores no K
        ggml_tensor * v = nullptr;  // f32 [n_embd_head_v, n_tokens, n_head_kv]
    };

    static LaneShape shape(const StepLane & lane);
    StepGraph begin(ggml_context * ctx, const std::vector<StepLane> & lanes);
    Rows rows_of(ggml_context * ctx, const Lane & lane, const Rows & all) const;
    ggml_tensor * input_rows(ggml_context * ctx, int64_t n) const;
    ggml_tensor * probe_input(ggml_context * ctx, StepProbe & probe, int32_t il) const;
    ggml_tensor * query(ggml_context * ctx, const LayerWeights & w, ggml_tensor * x) const;  // with RoPE
    // The layer's output for input x; null if it is not wanted.
    ggml_tensor * layer(ggml_context * ctx, ggml_cgraph * gf, int32_t il, ggml_tensor * x, const LayerOut & wanted);
    ggml_tensor * result(ggml_context * ctx, StepGraph & graph, ggml_tensor * x, StepOut out);
    void set_lane_values(ggml_tensor * tensor, int64_t LaneShape::* count, int64_t (*first)(const Lane &));
    template <class Row> void set_rows(ggml_tensor * tensor, Row row);
    ggml_tensor * input(ggml_context * ctx, ggml_type type, int64_t n);
    ggml_tensor * norm(ggml_context * ctx, ggml_tensor * x, ggml_tensor * weight) const;
    ggml_tensor * linear(ggml_context * ctx, ggml_tensor * w, ggml_tensor * b, ggml_tensor * x) const;
    ggml_tensor * rope(ggml_context * ctx, ggml_tensor * x, bool on_gpu) const;
    ggml_tensor * embed(ggml_context * ctx);
    void set_embeddings(const int32_t * tokens);
    // Nodes added to the graph since the last mark go where `on_gpu` says.
    void mark(ggml_cgraph * gf, bool on_gpu);
    ggml_tensor * attention_block(ggml_context * ctx, ggml_cgraph * gf, int32_t il, ggml_tensor * x,
                                  const LayerOut & wanted);
    ggml_tensor * attend(ggml_context * ctx, ggml_cgraph * gf, int32_t il, const Lane & lane, const Rows & rows,
                         bool wanted);
    ggml_tensor * ffn_block(ggml_context * ctx, const LayerWeights & w, ggml_tensor * x) const;
    void write_rows(ggml_context * ctx, ggml_cgraph * gf, int32_t il, const Lane & lane, bool is_key, bool to_full,
                    ggml_tensor * cur) const;

    const HParams & hp_;
    const ModelWeights & weights_;
    std::vector<Lane> lanes_;
    StepOut out_ = StepOut::logits;
    int64_t n_tokens_ = 0, n_out_ = 0;   // of all lanes
    StepProbe * probe_ = nullptr;        // while build_probe() runs
    ggml_tensor * tokens_ = nullptr;     // i32 [n_tokens]
    ggml_tensor * embd_ = nullptr;       // f32 [n_embd, n_tokens]: instead of tokens_ where the first layer is on a GPU
    ggml_tensor * positions_ = nullptr;  // i32 [n_tokens]
    ggml_tensor * out_ids_ = nullptr;    // i32 [n_out]
    std::vector<int32_t> ids_;           // what inputs are filled from, kept to avoid allocations
    std::vector<int64_t> rows_;
    std::vector<float> embd_rows_;
    std::vector<bool> on_gpu_;
};

}  // namespace pysa
