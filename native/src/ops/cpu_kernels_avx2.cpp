#include "ops/cpu_kernels.h"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define PYSA_LANES 8
#include "ops/cpu_kernels_core.h"

const pysa::CpuKernels * pysa::cpu_kernels_avx2() {
    static const CpuKernels kernels = make_kernels("avx2");
    return &kernels;
}
#else
const pysa::CpuKernels * pysa::cpu_kernels_avx2() { return nullptr; }
#endif
