// Four lanes without any instruction set asked for: every compiler has a way to do them.
#include "ops/cpu_kernels.h"

#define PYSA_LANES 4
#include "ops/cpu_kernels_core.h"

const pysa::CpuKernels * pysa::cpu_kernels_scalar() {
    static const CpuKernels kernels = make_kernels("scalar");
    return &kernels;
}
