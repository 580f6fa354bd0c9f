// Checks every set of CPU kernels that this build has and this processor runs.
#include <cstdio>
#include <exception>

#include "kernel_check.h"

int main() {
    try {
        for (const pysa::CpuKernels * kernels : pysa::usable_cpu_kernels()) {
            check_kernels(*kernels);
            std::printf("%s: ok\n", kernels->name);
        }
    } catch (const std::exception & error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
    return 0;
}
