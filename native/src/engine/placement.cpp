#include "engine/placement.h"

#include <algorithm>
#include <vector>

#include "graph/weights.h"
#include "kv/cache_layout.h"
#include "kv/cache_types.h"
#include "pysa/error.h"

namespace pysa {

namespace {

// Bytes of each layer's tensors, the output's last.
std::vector<int64_t> weight_bytes(const GgufFile & file, const HParams & hp) {
    std::vector<int64_t> bytes(size_t(hp.n_layer) + 1, 0);
    ModelWeights places;  // of the specs; nothing is loaded
    for (const TensorSpec & spec : tensor_specs(find_arch(hp.arch), hp, places)) {
        const GgufTensor * tensor = find_tensor(file, spec);
        if (tensor && spec.il >= 0) bytes[size_t(spec.il)] += int64_t(tensor->size_bytes);
    }
    return bytes;
}

// Of a step: activations, and the scores that are kept while it runs.
int64_t step_bytes(const HParams & hp, const SharingPlan & plan, int64_t n_ctx, int64_t n_ubatch) {
    const int64_t n = std::min<int64_t>(n_ubatch, n_ctx), n_slots = make_attn_table(plan, hp).n_slots;
    const int64_t one_token = 4 * n_ctx * (hp.n_head + n_slots);
    const int64_t shared = std::min<int64_t>(SessionParams().distant_budget_bytes, n_slots * n * n_ctx * 17 / 8);
    return activation_bytes(hp, n) + one_token + shared;
}

}  // namespace

int64_t activation_bytes(const HParams & hp, int64_t n_tokens) {
    const int64_t n_q = int64_t(hp.n_head) * hp.n_embd_head_k;
    const int64_t widest = std::max<int64_t>(4 * hp.n_embd + 4 * n_q, 3 * hp.n_embd + 4 * int64_t(hp.n_ff));
    return 6 * n_tokens * widest + 8 * int64_t(hp.n_vocab);
}

Placement place_layers(const GgufFile & file, const HParams & hp, const SharingPlan & plan,
                       const ModelParams & params) {
    if (params.n_gpu_layers < -1)
        throw ArgumentError("n_gpu_layers: expected -1 (as many as fit) or more, got " +
                            std::to_string(params.n_gpu_layers));
    if (params.n_ctx < 0 || params.n_ctx > INT32_MAX)
        throw ArgumentError("n_ctx: expected 0 (the model's own) to 2147483647, got " + std::to_string(params.n_ctx));
    Placement placement;
    placement.n_layer = hp.n_layer;
    if (params.n_gpu_layers == 0) return placement;
    placement.gpu = Gpu::find(params.device);
    if (!placement.gpu) return placement;
    if (params.n_gpu_layers > 0) {
        placement.n_gpu_layers = std::min(params.n_gpu_layers, hp.n_layer + 1);
        return placement;
    }
    const int64_t n_ctx = params.n_ctx > 0 ? params.n_ctx : hp.n_ctx_train;
    const CacheTypes types = parse_cache_types(params.type_k, params.type_v, hp);
    const CacheLayout layout = make_cache_layout(plan, hp, 0);
    const std::vector<int64_t> weights = weight_bytes(file, hp);
    int64_t room = Gpu::room(placement.gpu->buffer_type()) - step_bytes(hp, plan, n_ctx, params.n_ubatch);
    int64_t n_largest = 0;  // bytes of a layer's cache: while it grows it is there twice
    for (int32_t il = hp.n_layer; il >= 0; --il) {
        room -= weights[size_t(il)];
        if (il < hp.n_layer && params.kv_offload) {
            CacheLayout one = layout;
            one.layers = {layout.layers[size_t(il)]};
            const int64_t n_bytes = cache_bytes(one, n_ctx, int64_t(ggml_row_size(types.k, hp.n_embd_head_k)),
                                                int64_t(ggml_row_size(types.v, hp.n_embd_head_v)))
                                        .total();
            room -= n_bytes;
            n_largest = std::max(n_largest, n_bytes);
        }
        if (room < n_largest) break;
        ++placement.n_gpu_layers;
    }
    if (placement.n_gpu_layers == 0) placement.gpu = nullptr;
    return placement;
}

int32_t attention_cut(const AttnTable & table, int32_t first) {
    const int32_t n_layer = int32_t(table.layers.size());
    int32_t cut = std::min(first, n_layer);
    for (bool moved = true; moved && cut < n_layer;) {
        moved = false;
        for (int32_t il = cut; il < n_layer && !moved; ++il)
            for (const AttnHead & head : table.layers[size_t(il)].heads) {
                if (head.kind != HeadKind::follower || head.source_layer >= cut) continue;
                cut = il + 1;  // this layer stays with its source
                moved = true;
                break;
            }
    }
    return cut;
}

}  // namespace pysa
