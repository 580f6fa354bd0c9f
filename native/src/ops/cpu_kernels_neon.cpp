#include "ops/cpu_kernels.h"

#if defined(__ARM_NEON) && defined(__aarch64__)
#define PYSA_LANES 4
#include "ops/cpu_kernels_core.h"

const pysa::CpuKernels * pysa::cpu_kernels_neon() {
    static const CpuKernels kernels = make_kernels("neon");
    return &kernels;
}
#else
const pysa::CpuKernels * pysa::cpu_kernels_neon() { return nullptr; }
#endif
