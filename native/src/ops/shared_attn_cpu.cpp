// Fused attention on the CPU: custom ops of the graph, whose threads take units of work from cpu_decode.h (one token: two nodes a
// layer) or cpu_prompt.h (several: one node).
#include "ops/attn_node.h"
#include "ops/cpu_decode.h"
#include "ops/cpu_kernels.h"
#include "ops/cpu_prompt.h"
#include "ops/shared_attn.h"

namespace pysa {

namespace {

class FusedCpuAttention final : public SharedAttention {
  public:
    FusedCpuAttention(const AttnTable & table, const SplitCache & cache, int n_threads, float v_skip)
        : table_(table), kernels_(cpu_kernels()), decode_(table, cache, kernels_, n_threads, v_skip),
          prompt_(table, cache, kernels_, n_threads), nodes_(table.layers.size()) {
        for (size_t il = 0; il < nodes_.size(); ++il) nodes_[il] = {this, &table.layers[il]};
    }

    const char * name() const override { return "fused"; }
    const char * kernel() const override { return kernels_.name; }

    int64_t bytes_per_token(int64_t n_kv) const override { return prompt_.bytes_per_token(n_kv); }

    void begin(ggml_context *, const AttnStep & step) override {
        step_ = step;
        const bool is_one = step.n_tokens == 1;
        prompt_.begin(is_one ? AttnStep{step.n_past, 0} : step);  // a prompt's room is not kept for single tokens
        if (is_one) decode_.begin(step.n_past);
    }

    // The ops read the step when they run; only the shapes of their results are in the graph.
    bool can_reuse(const AttnStep & before, const AttnStep & now) const override {
        return before.n_tokens == now.n_tokens;
    }

    ggml_tensor * build(ggml_context * ctx, ggml_cgraph *, int32_t il, const AttnInputs & inputs) override {
        Node & node = nodes_[il];
        ggml_tensor * args[AttnNodeInputs::n_most + 1];
        int n_args = node.inputs.pack(inputs, args);
        if (step_.n_tokens == 1) {
            ggml_tensor * scored = ggml_custom_4d(ctx, GGML_TYPE_F32, 1, 1, 1, 1, args, n_args,
                                                  &FusedCpuAttention::score, GGML_N_TASKS_MAX, &node);
            args[n_args++] = scored;
        }
        return ggml_custom_4d(ctx, GGML_TYPE_F32, int64_t(table_.hp.n_embd_head_v) * table_.hp.n_head, step_.n_tokens,
                              1, 1, args, n_args, &FusedCpuAttention::attend, GGML_N_TASKS_MAX, &node);
    }

    void set_inputs() override {}

    int64_t size_bytes() const override { return decode_.size_bytes() + prompt_.size_bytes(); }
    SkipReport skip_report() const override { return decode_.skip_report(); }
    void reset_skip_report() override { decode_.reset_skip_report(); }

  private:
    struct Node {
        FusedCpuAttention * self = nullptr;
        const AttnLayer * layer = nullptr;
        AttnNodeInputs inputs = {};
    };

    static void score(ggml_tensor * dst, int ith, int, void * userdata) {
        const Node & node = *static_cast<const Node *>(userdata);
        node.self->decode_.score(*node.layer, node.inputs.unpack(dst), ith);
    }

    static void attend(ggml_tensor * dst, int ith, int, void * userdata) {
        const Node & node = *static_cast<const Node *>(userdata);
        FusedCpuAttention & self = *node.self;
        if (self.step_.n_tokens == 1) {
            self.decode_.weigh(*node.layer, node.inputs.unpack(dst), dst, ith);
        } else {
            self.prompt_.run(*node.layer, node.inputs.unpack(dst), dst, ith);
        }
    }

    const AttnTable & table_;
    const CpuKernels & kernels_;
    AttnStep step_;
    DecodeAttention decode_;
    PromptAttention prompt_;
    std::vector<Node> nodes_;
};

}  // namespace

std::unique_ptr<SharedAttention> make_fused_cpu_attention(const AttnTable & table, const SplitCache & cache,
                                                          int n_threads, float v_skip) {
    return std::make_unique<FusedCpuAttention>(table, cache, n_threads, v_skip);
}

}  // namespace pysa
