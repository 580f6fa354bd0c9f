// The GPU kernels, run by the emulator, against double-precision references.
#include <cstdio>

#include "gpu_check.h"

int main() {
    const pysa::gpu::AttnKernels & kernels = pysa::gpu::emulated_attn_kernels();
    const int n_failed = pysa::gpu::check::check_decode(kernels) + pysa::gpu::check::check_prompt(kernels);
    std::printf("%s: %d failed\n", kernels.name, n_failed);
    return n_failed > 0;
}
