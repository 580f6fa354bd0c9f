// Which attention a session gets: the CPU's, a GPU's, or both where the layers are on both.
#pragma once

#include "device/gpu.h"
#include "ops/shared_attn.h"

namespace pysa {

// What the kernels of cuda/attn_call.h are told of a session.
gpu::Shape gpu_attn_shape(const AttnTable & table, const SplitCache & cache, float v_skip);

// gpu.kernels() must support the shape, and all layers' rows be on that GPU that it builds.
std::unique_ptr<SharedAttention> make_fused_gpu_attention(const AttnTable & table, const SplitCache & cache,
                                                          const Gpu & gpu, float v_skip);

// Layers below `first_gpu_layer` by one, the others by the other; no head's source may be on the other side.
std::unique_ptr<SharedAttention> make_placed_attention(int32_t first_gpu_layer, std::unique_ptr<SharedAttention> on_cpu,
                                                       std::unique_ptr<SharedAttention> on_gpu);

}  // namespace pysa
