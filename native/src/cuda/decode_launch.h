// The kernels of one token by type; each is compiled in a file of its own (decode_*.cu), for nvcc is slow.
#pragma once

#include "cuda/attn_call.h"
#include "cuda/device.h"

namespace pysa::gpu {
inline namespace PYSA_GPU_FLAVOUR {

// n_blocks: of a KV head. Return null, or what went wrong.
template <RowType type_k> const char * launch_score(const Call & call, int n_blocks, void * stream);
template <RowType type_v> const char * launch_weigh(const Call & call, int n_blocks, void * stream);

}  // namespace PYSA_GPU_FLAVOUR
}  // namespace pysa::gpu
