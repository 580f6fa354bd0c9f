// The graph of one ubatch: embedding, layers, output. Table-driven: what an architecture adds or omits is decided by which
// tensors are there. The attention itself is one call to ops/shared_attn.h.
#pragma once

#include <cstdint>
#include <vector>

#include "ggml.h"
#include "graph/arch_table.h"
#include "ops/shared_attn.h"

namespace pysa {

struct StepGraph {
    ggml_cgraph * gf = nullptr;
    ggml_tensor * logits = nullptr;  // f32 [n_vocab, n_out]; null if n_out is 0
};

// What shapes the graph of a step, attention aside.
struct StepShape {
    int64_t n_tokens = 0;
    int64_t n_out = 0;
    int64_t n_sink_rows = 0, n_tail_rows = 0;  // of the ring, that are written
    uint64_t cache_generation = 0;             // the cache's tensors are part of the graph
    bool operator==(const StepShape & other) const {
        return n_tokens == other.n_tokens && n_out == other.n_out && n_sink_rows == other.n_sink_rows &&
               n_tail_rows == other.n_tail_rows && cache_generation == other.cache_generation;
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
size_t step_graph_nodes(const HParams & hp);

class StepGraphBuilder {
  public:
    StepGraphBuilder(const HParams & hp, const ModelWeights & weights, const SplitCache & cache,
                     SharedAttention & attention)
        : hp_(hp), weights_(weights), cache_(cache), attention_(attention) {}

    // n_out: the last n_out tokens of the ubatch get logits.
    StepGraph build(ggml_context * ctx, const AttnStep & step, int64_t n_out);

    // No logits; `probe` says from which layer on, and takes the tensors.
    StepGraph build_probe(ggml_context * ctx, const AttnStep & step, StepProbe & probe);
    // Logits of n_out rows of StepProbe::hidden, which `hidden` is for; no attention, no set_inputs().
    StepGraph build_logits(ggml_context * ctx, int64_t n_out, ggml_tensor *& hidden) const;

    // Whether the graph built last serves this step too. If so, reuse() takes the place of building and allocating it.
    bool can_reuse(const AttnStep & step, int64_t n_out) const;
    void reuse(const AttnStep & step);

    // Before each run, of a graph that is allocated or reused: an input's memory may serve later nodes as well.
    void set_inputs(const int32_t * tokens);

  private:
    StepShape shape(const AttnStep & step, int64_t n_out) const;
    StepGraph begin(ggml_context * ctx, const AttnStep & step, int64_t n_out);
    ggml_tensor * input_rows(ggml_context * ctx, int64_t n) const;
    ggml_tensor * probe_input(ggml_context * ctx, StepProbe & probe, int32_t il) const;
    ggml_tensor * query(ggml_context * ctx, const LayerWeights & w, ggml_tensor * x) const;
    // The layer's output for input x; null if it is not wanted.
    ggml_tensor * layer(ggml_context * ctx, ggml_cgraph * gf, int32_t il, ggml_tensor * x, const LayerOut & wanted);
    ggml_tensor * logits(ggml_context * ctx, ggml_cgraph * gf, ggml_tensor * x) const;
    void set_values(ggml_tensor * tensor, int64_t first);
    ggml_tensor * input(ggml_context * ctx, ggml_type type, int64_t n);
    ggml_tensor * norm(ggml_context * ctx, ggml_tensor * x, ggml_tensor * weight) const;
    ggml_tensor * linear(ggml_context * ctx, ggml_tensor * w, ggml_tensor * b, ggml_tensor * x) const;
    ggml_tensor * rope(ggml_context * ctx, ggml_tensor * x) const;
    ggml_tensor * attention_block(ggml_context * ctx, ggml_cgraph * gf, int32_t il, ggml_tensor * x,
                                  const LayerOut & wanted);
    ggml_tensor * ffn_block(ggml_context * ctx, const LayerWeights & w, ggml_tensor * x) const;
    void write_rows(ggml_context * ctx, ggml_cgraph * gf, int32_t il, bool is_key, bool to_full,
                    ggml_tensor * cur) const;

    const HParams & hp_;
    const ModelWeights & weights_;
    const SplitCache & cache_;
    SharedAttention & attention_;
    AttnStep step_;
    StepShape shape_;
    StepProbe * probe_ = nullptr;        // while build_probe() runs
    ggml_tensor * tokens_ = nullptr;     // i32 [n_tokens]
    ggml_tensor * positions_ = nullptr;  // i32 [n_tokens]
    ggml_tensor * out_ids_ = nullptr;    // i32 [n_out]
    ggml_tensor * full_rows_ = nullptr;  // i64 [n_tokens]
    ggml_tensor * sink_rows_ = nullptr;  // i64: ring rows of the ubatch's first tokens, where they are sinks
    ggml_tensor * tail_rows_ = nullptr;  // i64: ring rows of the last tokens, as many as the ring holds
    std::vector<int32_t> ids_;           // what inputs are filled from, kept to avoid allocations
    std::vector<int64_t> rows_;
};

}  // namespace pysa
