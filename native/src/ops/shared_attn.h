// The attention of pysa: own scores near, shared scores far, one softmax over both.
// One contract, two implementations: composed (stock ggml ops, any backend, the reference) and fused (CPU custom op).
//
//   P(t) = { j < n_sink } u { t - n_recent < j <= t }     scored by the layer itself
//   D(t) = { n_sink <= j <= t - n_recent }                 score of the source head + bias; empty for a local head
//   o(t) = sum over P u D of softmax(score)(j) * v(j)      v is always the layer's own
//   with g = the share of the mass on P: if g >= skip_gate < 1, D(t) is left out
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "ggml.h"
#include "kv/split_cache.h"
#include "pysa/hparams.h"
#include "pysa/kv_cache.h"
#include "pysa/sharing_plan.h"

namespace pysa {

struct AttnHead {
    HeadKind kind = HeadKind::owner;
    int32_t source_layer = -1;
    int32_t source_head = -1;
    float bias = 0.0f;
    int32_t slot_in = -1;   // where a follower of "scores" finds its source's distant weights
    int32_t slot_out = -1;  // where an owner with followers leaves them

    // Followers of "scores" take their source's weights, local heads have no distance.
    bool scores_far() const { return kind != HeadKind::local && slot_in < 0; }
};

// What one layer's attention does, derived once from plan and hyper-parameters.
struct AttnLayer {
    int32_t il = 0;
    std::vector<AttnHead> heads;      // [n_head]
    std::vector<int32_t> keys_layer;  // [n_head_kv]: layer whose K the distant scores read; -1: none
    bool is_dense = true;             // owners only, no bias, no gate: plain causal attention
};

struct AttnTable {
    HParams hp;
    Distant distant = Distant::scores;
    int32_t n_sink = 0;
    int32_t n_recent = 0;
    float skip_gate = 1.0f;
    std::vector<AttnLayer> layers;
    int32_t n_slots = 0;  // heads whose distant weights are alive at once, at most
};

AttnTable make_attn_table(const SharingPlan & plan, const HParams & hp);

// One ubatch: n_tokens queries at positions n_past, n_past + 1, ...
struct AttnStep {
    int64_t n_past = 0;
    int64_t n_tokens = 0;
    int64_t n_kv() const { return n_past + n_tokens; }
};

// The rows of the ubatch itself, rounded to the cache's types. The ring takes them only after attention has read it.
struct AttnInputs {
    ggml_tensor * q = nullptr;      // f32 [n_embd_head_k, n_head, n_tokens]; null if the layer scores nothing
    ggml_tensor * k_cur = nullptr;  // [n_embd_head_k, n_tokens, n_head_kv]; null if the layer stores no K
    ggml_tensor * v_cur = nullptr;  // [n_embd_head_v, n_tokens, n_head_kv]
};

class SharedAttention {
  public:
    virtual ~SharedAttention() = default;
    virtual const char * name() const = 0;    // composed, fused
    virtual const char * kernel() const = 0;  // what computes it: ggml, or a set of cpu_kernels.h

    // Bytes that a token of a ubatch needs beyond the cache when n_kv positions are visible; bounds the ubatch.
    virtual int64_t bytes_per_token(int64_t n_kv) const = 0;

    // Called before the layers of a step are built: allocates what the step needs. DeviceError if memory is not to be had.
    virtual void begin(ggml_context * ctx, const AttnStep & step) = 0;

    // Adds layer il's attention to the graph. Returns f32 [n_embd_head_v * n_head, n_tokens].
    virtual ggml_tensor * build(ggml_context * ctx, ggml_cgraph * gf, int32_t il, const AttnInputs & inputs) = 0;

    // Called once the graph is allocated: fills masks and indices.
    virtual void set_inputs() = 0;

    // Whether the graph built for step `before` serves step `now` as well: then begin() is called with a null context and
    // build() not at all.
    virtual bool can_reuse(const AttnStep & before, const AttnStep & now) const {
        (void)before;
        (void)now;
        return false;
    }

    // Bytes held between steps.
    virtual int64_t size_bytes() const = 0;

    virtual SkipReport skip_report() const { return {}; }
    virtual void reset_skip_report() {}
};

std::unique_ptr<SharedAttention> make_composed_attention(const AttnTable & table, const SplitCache & cache);
std::unique_ptr<SharedAttention> make_fused_cpu_attention(const AttnTable & table, const SplitCache & cache,
                                                          int n_threads, float v_skip);

}  // namespace pysa
