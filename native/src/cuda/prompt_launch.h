// The prompt kernels by head size: one file each, so that they compile side by side.
#pragma once

#include "cuda/attn_call.h"
#include "cuda/device.h"

namespace pysa::gpu {
inline namespace PYSA_GPU_FLAVOUR {

const char * launch_prompt_32(const Call & call, int64_t n_tokens, void * stream);
const char * launch_prompt_64(const Call & call, int64_t n_tokens, void * stream);
const char * launch_prompt_96(const Call & call, int64_t n_tokens, void * stream);
const char * launch_prompt_128(const Call & call, int64_t n_tokens, void * stream);
const char * launch_prompt_256(const Call & call, int64_t n_tokens, void * stream);

inline const char * launch_prompt(const Call & call, int64_t n_tokens, void * stream) {
    switch (call.shape.n_embd_k) {
        case 32: return launch_prompt_32(call, n_tokens, stream);
        case 64: return launch_prompt_64(call, n_tokens, stream);
        case 96: return launch_prompt_96(call, n_tokens, stream);
        case 128: return launch_prompt_128(call, n_tokens, stream);
        case 256: return launch_prompt_256(call, n_tokens, stream);
        default: return "no prompt kernel for this head size";
    }
}

}  // namespace PYSA_GPU_FLAVOUR
}  // namespace pysa::gpu
