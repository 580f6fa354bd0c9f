// The prompt kernels by head size, each compiled in a file of its own (prompt_*.cu), side by side.
#pragma once

#include "cuda/attn_call.h"
#include "cuda/device.h"
#include "cuda/head_sizes.h"

namespace pysa::gpu {
inline namespace PYSA_GPU_FLAVOUR {

template <int n_embd> const char * start_prompt(const Call & call, int64_t n_tokens, void * stream);

inline const char * launch_prompt(const Call & call, int64_t n_tokens, void * stream) {
    const auto start = [&](auto n) { return start_prompt<decltype(n)::value>(call, n_tokens, stream); };
    return with_head_size(call.shape.n_embd_k, start, "no prompt kernel for this head size");
}

}  // namespace PYSA_GPU_FLAVOUR
}  // namespace pysa::gpu
