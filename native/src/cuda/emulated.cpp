// All kernels once more, as the emulator runs them; for tests.
#include "cuda/attn_kernels.cu"
#include "cuda/decode_bf16.cu"
#include "cuda/decode_f16.cu"
#include "cuda/decode_f32.cu"
#include "cuda/decode_q4_0.cu"
#include "cuda/decode_q8_0.cu"

namespace pysa::gpu {

const AttnKernels & emulated_attn_kernels() { return emulated::attn_kernels("emulated"); }

}  // namespace pysa::gpu
