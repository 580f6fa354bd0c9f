#include "ops/cpu_kernels.h"

#if defined(__AVX512F__) && defined(__AVX512BW__)
#define PYSA_LANES 16
#include "ops/cpu_kernels_core.h"

const pysa::CpuKernels * pysa::cpu_kernels_avx512() {
    static const CpuKernels kernels = make_kernels("avx512");
    return &kernels;
}
#else
const pysa::CpuKernels * pysa::cpu_kernels_avx512() { return nullptr; }
#endif
