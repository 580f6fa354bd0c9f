// Fused attention on the CPU: one custom op per layer, its units of work (cpu_unit.h) dealt out to the graph's threads.
#include <algorithm>

#include "ops/cpu_kernels.h"
#include "ops/cpu_unit.h"
#include "ops/distant_store.h"
#include "ops/shared_attn.h"

namespace pysa {

namespace {

class FusedCpuAttention final : public SharedAttention {
  public:
    FusedCpuAttention(const AttnTable & table, const SplitCache & cache, int n_threads)
        : table_(table), cache_(cache), kernels_(cpu_kernels()), n_threads_(n_threads), userdata_(table.layers.size()) {
        for (size_t il = 0; il < userdata_.size(); ++il) userdata_[il] = {this, int32_t(il), false, false};
    }

    const char * name() const override { return "fused"; }
    const char * kernel() const override { return kernels_.name; }

    int64_t bytes_per_token(int64_t n_kv) const override {
        return table_.n_slots * n_kv * int64_t(sizeof(ggml_fp16_t));
    }

    void begin(ggml_context *, const AttnStep & step) override {
        step_ = step;
        shape_ = UnitShape(table_.hp, step);
        resize_buffer(scratch_, shape_.n_floats() * n_threads_);
        shared_.begin(table_.n_slots, step.n_tokens, shape_.n_columns);
    }

    ggml_tensor * build(ggml_context * ctx, ggml_cgraph *, int32_t il, const AttnInputs & inputs) override {
        const HParams & hp = table_.hp;
        std::vector<ggml_tensor *> args;
        for (ggml_tensor * input : {inputs.v_cur, inputs.k_cur, inputs.q})
            if (input) args.push_back(input);
        userdata_[il].has_q = inputs.q != nullptr;
        userdata_[il].has_k = inputs.k_cur != nullptr;
        return ggml_custom_4d(ctx, GGML_TYPE_F32, int64_t(hp.n_embd_head_v) * hp.n_head, step_.n_tokens, 1, 1,
                              args.data(), int(args.size()), &FusedCpuAttention::run, GGML_N_TASKS_MAX, &userdata_[il]);
    }

    void set_inputs() override {}

    int64_t size_bytes() const override { return int64_t(scratch_.capacity() * sizeof(float)) + shared_.size_bytes(); }

  private:
    struct UserData {
        FusedCpuAttention * self = nullptr;
        int32_t il = 0;
        bool has_q = false, has_k = false;
    };

    static void run(ggml_tensor * dst, int ith, int nth, void * userdata) {
        const UserData & data = *static_cast<const UserData *>(userdata);
        AttnInputs inputs;
        int i = 0;
        inputs.v_cur = dst->src[i++];
        if (data.has_k) inputs.k_cur = dst->src[i++];
        if (data.has_q) inputs.q = dst->src[i++];
        data.self->run_layer(data.self->table_.layers[data.il], inputs, dst, ith, nth);
    }

    void run_layer(const AttnLayer & layer, const AttnInputs & inputs, ggml_tensor * dst, int ith, int nth) {
        AttnUnit unit(table_, cache_, kernels_, step_, shape_, shared_, scratch_.data() + ith * shape_.n_floats());
        const int64_t n_tiles = (step_.n_tokens + UnitShape::n_tile - 1) / UnitShape::n_tile;
        for (int64_t i = ith; i < n_tiles * table_.hp.n_head_kv; i += nth) {
            const int64_t first = i % n_tiles * UnitShape::n_tile;
            unit.run(layer, inputs, int32_t(i / n_tiles), first, std::min(UnitShape::n_tile, step_.n_tokens - first),
                     dst);
        }
    }

    const AttnTable & table_;
    const SplitCache & cache_;
    const CpuKernels & kernels_;
    const int n_threads_;
    AttnStep step_;
    UnitShape shape_;
    std::vector<UserData> userdata_;
    std::vector<float> scratch_;
    DistantStore shared_;
};

}  // namespace

std::unique_ptr<SharedAttention> make_fused_cpu_attention(const AttnTable & table, const SplitCache & cache,
                                                          int n_threads) {
    return std::make_unique<FusedCpuAttention>(table, cache, n_threads);
}

}  // namespace pysa
