#include "ops/cpu_kernels.h"

#include <cstdlib>
#include <string>

#include "pysa/error.h"

namespace pysa {

namespace {

bool processor_has([[maybe_unused]] const std::string & name) {
#if defined(__x86_64__) || defined(__i386__)
    if (name == "avx512")
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    if (name == "avx2") return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
    return true;
}

}  // namespace

std::vector<const CpuKernels *> usable_cpu_kernels() {
    std::vector<const CpuKernels *> usable;
    for (const CpuKernels * kernels :
         {cpu_kernels_avx512(), cpu_kernels_avx2(), cpu_kernels_neon(), cpu_kernels_scalar()})
        if (kernels && processor_has(kernels->name)) usable.push_back(kernels);
    return usable;
}

const CpuKernels & cpu_kernels() {
    const std::vector<const CpuKernels *> usable = usable_cpu_kernels();
    const char * wanted = std::getenv("PYSA_CPU");
    if (!wanted || !*wanted) return *usable.front();
    std::string names;
    for (const CpuKernels * kernels : usable) {
        if (std::string(kernels->name) == wanted) return *kernels;
        names += (names.empty() ? "" : ", ") + std::string(kernels->name);
    }
    throw ArgumentError("PYSA_CPU: expected one of " + names + " on this machine, got \"" + wanted + "\"");
}

}  // namespace pysa
