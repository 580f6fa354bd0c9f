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

// Upper bound of a step's nodes, and of its leafs, for sizing contexts and the scheduler.
size_t step_graph_nodes(const HParams & hp);

class StepGraphBuilder {
  public:
    StepGraphBuilder(const HParams & hp, const ModelWeights & weights, const SplitCache & cache,
                     SharedAttention & attention)
        : hp_(hp), weights_(weights), cache_(cache), attention_(attention) {}

    // n_out: the last n_out tokens of the ubatch get logits.
    StepGraph build(ggml_context * ctx, const AttnStep & step, int64_t n_out);

    // Once the graph is allocated.
    void set_inputs(const int32_t * tokens);

  private:
    ggml_tensor * input(ggml_context * ctx, ggml_type type, int64_t n);
    ggml_tensor * norm(ggml_context * ctx, ggml_tensor * x, ggml_tensor * weight) const;
    ggml_tensor * linear(ggml_context * ctx, ggml_tensor * w, ggml_tensor * b, ggml_tensor * x) const;
    ggml_tensor * rope(ggml_context * ctx, ggml_tensor * x) const;
    ggml_tensor * attention_block(ggml_context * ctx, ggml_cgraph * gf, int32_t il, ggml_tensor * x, bool is_needed);
    ggml_tensor * ffn_block(ggml_context * ctx, const LayerWeights & w, ggml_tensor * x) const;
    void write_rows(ggml_context * ctx, ggml_cgraph * gf, int32_t il, bool is_key, bool to_full,
                    ggml_tensor * cur) const;

    const HParams & hp_;
    const ModelWeights & weights_;
    const SplitCache & cache_;
    SharedAttention & attention_;
    AttnStep step_;
    int64_t n_out_ = 0;
    ggml_tensor * tokens_ = nullptr;     // i32 [n_tokens]
    ggml_tensor * positions_ = nullptr;  // i32 [n_tokens]
    ggml_tensor * out_ids_ = nullptr;    // i32 [n_out]
    ggml_tensor * full_rows_ = nullptr;  // i64 [n_tokens]
    ggml_tensor * sink_rows_ = nullptr;  // i64: ring rows of the ubatch's first tokens, where they are sinks
    ggml_tensor * tail_rows_ = nullptr;  // i64: ring rows of the last tokens, as many as the ring holds
};

}  // namespace pysa
