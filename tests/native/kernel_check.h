// Holds the CPU attention's kernels against plain loops in double. Called by kernel_check_main.cpp and pysa._oracle.
#pragma once

#include "ops/cpu_kernels.h"

// Each checks its kernels of a set on random data; std::runtime_error with where, expected and got at the first that is wrong.
void check_token_kernels(const pysa::CpuKernels & kernels);
void check_prompt_kernels(const pysa::CpuKernels & kernels);
void check_planning_kernels(const pysa::CpuKernels & kernels);

inline void check_kernels(const pysa::CpuKernels & kernels) {
    check_token_kernels(kernels);
    check_prompt_kernels(kernels);
    check_planning_kernels(kernels);
}
