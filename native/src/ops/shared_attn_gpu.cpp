// Fused attention on a GPU: nodes of our own in the graph (device/proxy_backend.h), which start the kernels of cuda/attn_call.h.
// Here is what they are told: tables of the layers, room to work in, and the step, all in one piece of device memory.
#include "ops/shared_attn_gpu.h"

#include <algorithm>

#include "device/device_memory.h"
#include "device/proxy_backend.h"
#include "ops/attn_node.h"
#include "pysa/error.h"

namespace pysa {

namespace {

constexpr size_t n_align = 256;
constexpr size_t n_kept_prompt = 16 << 20;  // bytes: more of a prompt's room is given back before single tokens

size_t aligned(size_t n) { return (n + n_align - 1) / n_align * n_align; }

gpu::RowType row_type(ggml_type type) {
    switch (type) {
        case GGML_TYPE_F32: return gpu::RowType::f32;
        case GGML_TYPE_BF16: return gpu::RowType::bf16;
        case GGML_TYPE_Q8_0: return gpu::RowType::q8_0;
        case GGML_TYPE_Q4_0: return gpu::RowType::q4_0;
        default: return gpu::RowType::f16;
    }
}

gpu::Kind kind_of(HeadKind kind) {
    return kind == HeadKind::owner      ? gpu::Kind::owner
           : kind == HeadKind::follower ? gpu::Kind::follower
                                        : gpu::Kind::local;
}

class FusedGpuAttention final : public SharedAttention {
  public:
    FusedGpuAttention(const AttnTable & table, const SplitCache & cache, const Gpu & gpu, float v_skip)
        : table_(table), cache_(cache), gpu_(gpu), kernels_(*gpu.kernels()),
          shape_(gpu_attn_shape(table, cache, v_skip)), nodes_(table.layers.size()) {
        for (size_t il = 0; il < nodes_.size(); ++il) {
            nodes_[il].self = this;
            nodes_[il].il = int32_t(il);
        }
    }

    const char * name() const override { return "fused"; }
    const char * kernel() const override { return kernels_.name; }

    int64_t bytes_per_token(int64_t n_kv) const override {
        gpu::PromptRoom room;
        const int64_t two = int64_t(kernels_.place_prompt(shape_, n_kv, 2, nullptr, room));
        return two / 2;
    }

    void begin(ggml_context *, const AttnStep & step) override {
        step_ = step;
        make_room();
        const gpu::Step now = {int32_t(step.n_past), int32_t(step.n_tokens)};
        memory_.set(step_at_, &now, sizeof(now));
    }

    // The kernels are told everything when they start; only the shapes of their results are in the graph.
    bool can_reuse(const AttnStep & before, const AttnStep & now) const override {
        return before.n_tokens == now.n_tokens;
    }

    ggml_tensor * build(ggml_context * ctx, ggml_cgraph *, int32_t il, const AttnInputs & inputs) override {
        Node & node = nodes_[il];
        ggml_tensor * args[AttnNodeInputs::n_most];
        const int n_args = node.inputs.pack(inputs, args);
        return add_gpu_node(ctx, int64_t(table_.hp.n_embd_head_v) * table_.hp.n_head, step_.n_tokens, args, n_args,
                            &node);
    }

    void set_inputs() override {}

    int64_t size_bytes() const override { return int64_t(memory_.size()); }

    SkipReport skip_report() const override {
        const gpu::SkipStats sums = stats();
        SkipReport report;
        report.n_values = int64_t(sums.n_values);
        report.n_values_read = int64_t(sums.n_values_read);
        report.dropped_mass_max = double(sums.dropped_max);
        report.dropped_mass_mean = sums.n_heads ? double(sums.dropped_sum) / double(sums.n_heads) : 0.0;
        return report;
    }

    void reset_skip_report() override {
        if (memory_.data()) memory_.clear(stats_at(), sizeof(gpu::SkipStats));
    }

  private:
    struct Node final : GpuNode {
        const char * launch(ggml_tensor * dst, void * stream) override { return self->launch(*this, dst, stream); }

        FusedGpuAttention * self = nullptr;
        int32_t il = 0;
        AttnNodeInputs inputs;
    };

    const char * launch(const Node & node, ggml_tensor * dst, void * stream) const {
        gpu::Call call = {};
        call.shape = shape_;
        call.heads = reinterpret_cast<const gpu::Head *>(memory_.data() + heads_at_) + node.il * table_.hp.n_head;
        call.kv_heads =
            reinterpret_cast<const gpu::KvHead *>(memory_.data() + kv_heads_at_) + node.il * table_.hp.n_head_kv;
        call.step = reinterpret_cast<const gpu::Step *>(memory_.data() + step_at_);
        const AttnInputs in = node.inputs.unpack(dst);
        if (in.q) {
            call.q = static_cast<const float *>(in.q->data);
            call.q_head = int64_t(in.q->nb[1]);
            call.q_token = int64_t(in.q->nb[2]);
        }
        if (table_.n_recent > 0) {
            call.k_cur = static_cast<const char *>(in.k_cur->data);
            call.k_cur_row = int64_t(in.k_cur->nb[1]);
            call.k_cur_head = int64_t(in.k_cur->nb[2]);
            call.v_cur = static_cast<const char *>(in.v_cur->data);
            call.v_cur_row = int64_t(in.v_cur->nb[1]);
            call.v_cur_head = int64_t(in.v_cur->nb[2]);
        }
        call.dst = static_cast<float *>(dst->data);
        call.decode = decode_;
        call.prompt = prompt_;
        return step_.n_tokens == 1 ? kernels_.decode(call, step_.n_kv(), stream)
                                   : kernels_.prompt(call, step_.n_tokens, step_.n_kv(), stream);
    }

    size_t stats_at() const { return size_t(reinterpret_cast<char *>(decode_.stats) - memory_.data()); }

    gpu::SkipStats stats() const {
        gpu::SkipStats sums = {};
        if (memory_.data()) memory_.get(stats_at(), &sums, sizeof(sums));
        return sums;
    }

    // Tables and step first, then the room of a token, whose stats are kept, and that of a prompt.
    void make_room() {
        const int64_t n_rows = cache_.n_rows();
        gpu::DecodeRoom decode;
        gpu::PromptRoom prompt;
        const size_t n_decode = kernels_.place_decode(shape_, n_rows, nullptr, decode);
        size_t n_prompt =
            step_.n_tokens == 1 ? 0 : kernels_.place_prompt(shape_, step_.n_kv(), step_.n_tokens, nullptr, prompt);
        const bool is_other_cache = generation_ != cache_.generation();
        const bool is_too_large = n_prompt == 0 && prompt_bytes_ > n_kept_prompt;
        if (memory_.data() && !is_other_cache && n_prompt <= prompt_bytes_ && !is_too_large) {
            place_prompt();
            return;
        }
        const size_t n_layer = table_.layers.size();
        heads_at_ = 0;
        kv_heads_at_ = aligned(n_layer * table_.hp.n_head * sizeof(gpu::Head));
        step_at_ = aligned(kv_heads_at_ + n_layer * table_.hp.n_head_kv * sizeof(gpu::KvHead));
        decode_at_ = aligned(step_at_ + sizeof(gpu::Step));
        prompt_at_ = aligned(decode_at_ + n_decode);
        const gpu::SkipStats kept = stats();
        memory_ = DeviceMemory();                              // the old one first: there may be room for one only
        for (const size_t more : {n_prompt / 4, size_t(0)}) {  // the next ubatch needs more, if there is room
            if (memory_.data()) break;
            prompt_bytes_ = n_prompt + more;
            memory_ = DeviceMemory(gpu_.buffer_type(), prompt_at_ + prompt_bytes_);
        }
        if (!memory_.data()) {
            generation_ = 0;
            throw DeviceError(gpu_.name() + ": out of memory: expected " + std::to_string(prompt_at_ + n_prompt) +
                              " bytes for scores; choose a smaller n_ubatch or distant_budget_bytes");
        }
        kernels_.place_decode(shape_, n_rows, memory_.data() + decode_at_, decode_);
        memory_.set(stats_at(), &kept, sizeof(kept));
        place_prompt();
        write_tables();
        generation_ = cache_.generation();
    }

    void place_prompt() {
        if (step_.n_tokens > 1)
            kernels_.place_prompt(shape_, step_.n_kv(), step_.n_tokens, memory_.data() + prompt_at_, prompt_);
    }

    void write_tables() {
        std::vector<gpu::Head> heads;
        std::vector<gpu::KvHead> kv_heads;
        for (const AttnLayer & layer : table_.layers) {
            for (const AttnHead & head : layer.heads)
                heads.push_back({kind_of(head.kind), head.scores_far(), head.slot_in, head.slot_out, head.bias});
            for (int32_t kv = 0; kv < table_.hp.n_head_kv; ++kv) kv_heads.push_back(kv_head(layer, kv));
        }
        memory_.set(heads_at_, heads.data(), heads.size() * sizeof(gpu::Head));
        memory_.set(kv_heads_at_, kv_heads.data(), kv_heads.size() * sizeof(gpu::KvHead));
    }

    gpu::KvHead kv_head(const AttnLayer & layer, int32_t kv) const {
        const auto row_0 = [](const ggml_tensor * tensor, int32_t index) {
            return tensor ? static_cast<const char *>(tensor->data) + index * tensor->nb[2] : nullptr;
        };
        const KvHeadLayout & layout = cache_.layout().layers[layer.il].kv_heads[kv];
        const LayerCache & rows = cache_.layer(layer.il);
        gpu::KvHead head = {};
        if (table_.n_recent > 0) {
            head.k_near = row_0(layout.k_full ? rows.k_full : rows.k_ring, layout.k_index);
            head.v_near = row_0(layout.v_full ? rows.v_full : rows.v_ring, layout.v_index);
        }
        const int32_t source = layer.keys_layer[kv];
        if (source >= 0)
            head.k_far = row_0(cache_.layer(source).k_full, cache_.layout().layers[source].kv_heads[kv].k_index);
        if (layout.v_full) head.v_far = row_0(rows.v_full, layout.v_index);
        head.k_is_ring = !layout.k_full;
        head.v_is_ring = !layout.v_full;
        return head;
    }

    const AttnTable & table_;
    const SplitCache & cache_;
    const Gpu & gpu_;
    const gpu::AttnKernels & kernels_;
    const gpu::Shape shape_;
    AttnStep step_;
    std::vector<Node> nodes_;
    DeviceMemory memory_;
    size_t heads_at_ = 0, kv_heads_at_ = 0, step_at_ = 0, decode_at_ = 0, prompt_at_ = 0, prompt_bytes_ = 0;
    uint64_t generation_ = 0;  // of the cache that the tables are of
    gpu::DecodeRoom decode_ = {};
    gpu::PromptRoom prompt_ = {};
};

}  // namespace

gpu::Shape gpu_attn_shape(const AttnTable & table, const SplitCache & cache, float v_skip) {
    gpu::Shape shape = {};
    shape.type_k = row_type(cache.types().k);
    shape.type_v = row_type(cache.types().v);
    shape.n_embd_k = table.hp.n_embd_head_k;
    shape.n_embd_v = table.hp.n_embd_head_v;
    shape.n_head = table.hp.n_head;
    shape.n_head_kv = table.hp.n_head_kv;
    shape.n_sink = table.n_sink;
    shape.n_recent = table.n_recent;
    shape.ring_rows = int32_t(cache.ring().n_rows);
    shape.n_slots = table.n_slots;
    shape.kq_scale = table.hp.kq_scale;
    shape.skip_gate = table.skip_gate;
    shape.v_skip = v_skip;
    return shape;
}

std::unique_ptr<SharedAttention> make_fused_gpu_attention(const AttnTable & table, const SplitCache & cache,
                                                          const Gpu & gpu, float v_skip) {
    return std::make_unique<FusedGpuAttention>(table, cache, gpu, v_skip);
}

}  // namespace pysa
