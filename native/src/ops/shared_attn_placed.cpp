// Attention of a model that is partly on a GPU: each layer by the implementation of its side.
#include <algorithm>
#include <cstring>
#include <string>

#include "ops/shared_attn_gpu.h"

namespace pysa {

namespace {

class PlacedAttention final : public SharedAttention {
  public:
    PlacedAttention(int32_t first_gpu_layer, std::unique_ptr<SharedAttention> on_cpu,
                    std::unique_ptr<SharedAttention> on_gpu)
        : first_gpu_layer_(first_gpu_layer), cpu_(std::move(on_cpu)), gpu_(std::move(on_gpu)),
          kernel_(std::string(gpu_->kernel()) + "+" + cpu_->kernel()) {}

    const char * name() const override {
        return std::strcmp(cpu_->name(), gpu_->name()) == 0 ? cpu_->name() : "composed";
    }
    const char * kernel() const override { return kernel_.c_str(); }

    int64_t bytes_per_token(int64_t n_kv) const override {
        return std::max(cpu_->bytes_per_token(n_kv), gpu_->bytes_per_token(n_kv));
    }

    void begin(ggml_context * ctx, const AttnStep & step) override {
        cpu_->begin(ctx, step);
        gpu_->begin(ctx, step);
    }

    ggml_tensor * build(ggml_context * ctx, ggml_cgraph * gf, int32_t il, const AttnInputs & inputs) override {
        return (il < first_gpu_layer_ ? cpu_ : gpu_)->build(ctx, gf, il, inputs);
    }

    void set_inputs() override {
        cpu_->set_inputs();
        gpu_->set_inputs();
    }

    bool can_reuse(const AttnStep & before, const AttnStep & now) const override {
        return cpu_->can_reuse(before, now) && gpu_->can_reuse(before, now);
    }

    int64_t size_bytes() const override { return cpu_->size_bytes() + gpu_->size_bytes(); }

    SkipReport skip_report() const override {
        const SkipReport a = cpu_->skip_report(), b = gpu_->skip_report();
        SkipReport sum;
        sum.n_values = a.n_values + b.n_values;
        sum.n_values_read = a.n_values_read + b.n_values_read;
        sum.dropped_mass_max = std::max(a.dropped_mass_max, b.dropped_mass_max);
        sum.dropped_mass_mean =
            sum.n_values == 0 ? 0.0
                              : (a.dropped_mass_mean * double(a.n_values) + b.dropped_mass_mean * double(b.n_values)) /
                                    double(sum.n_values);
        return sum;
    }

    void reset_skip_report() override {
        cpu_->reset_skip_report();
        gpu_->reset_skip_report();
    }

  private:
    const int32_t first_gpu_layer_;
    std::unique_ptr<SharedAttention> cpu_, gpu_;
    const std::string kernel_;
};

}  // namespace

std::unique_ptr<SharedAttention> make_placed_attention(int32_t first_gpu_layer, std::unique_ptr<SharedAttention> on_cpu,
                                                       std::unique_ptr<SharedAttention> on_gpu) {
    return std::make_unique<PlacedAttention>(first_gpu_layer, std::move(on_cpu), std::move(on_gpu));
}

}  // namespace pysa
