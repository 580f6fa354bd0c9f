// What the kernels are written in: CUDA under nvcc, else an emulator on the CPU that finds races, divergence and stray
// accesses. Kernels use nothing of CUDA directly. They sit in `namespace pysa::gpu { inline namespace PYSA_GPU_FLAVOUR
// {`, so that a program can hold both builds. Blocks are 1-D, grids 2-D; shared memory is dynamic only
// (PYSA_DYNAMIC_SHARED), 128-byte aligned, its size given at launch.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

namespace pysa::gpu {

struct Bytes8 { uint32_t x[2]; };

struct Bytes16 { uint32_t x[4]; };

struct Float2 { float x, y; };

constexpr int n_lanes = 32;  // of a warp

}  // namespace pysa::gpu

#ifdef __CUDACC__
#include "cuda/device_cuda.h"
#else
#include "cuda/device_emulated.h"
#endif

namespace pysa::gpu {
inline namespace PYSA_GPU_FLAVOUR {

PYSA_DEVICE int lane() { return thread_index() % n_lanes; }
PYSA_DEVICE int warp() { return thread_index() / n_lanes; }

PYSA_DEVICE float warp_max(float x) {
    PYSA_UNROLL
    for (int mask = n_lanes / 2; mask > 0; mask /= 2) x = fmaxf(x, shuffle_xor(x, mask));
    return x;
}

PYSA_DEVICE float warp_sum(float x) {
    PYSA_UNROLL
    for (int mask = n_lanes / 2; mask > 0; mask /= 2) x += shuffle_xor(x, mask);
    return x;
}

PYSA_DEVICE float bits_to_float(uint32_t bits) {
    union {
        uint32_t bits;
        float value;
    } both = {bits};
    return both.value;
}

PYSA_DEVICE float bf16_to_float(uint16_t bits) { return bits_to_float(uint32_t(bits) << 16); }

PYSA_DEVICE Float2 half2_to_float2(uint32_t halves) {
    return {half_to_float(uint16_t(halves & 0xffffu)), half_to_float(uint16_t(halves >> 16))};
}

PYSA_DEVICE Float2 bf16x2_to_float2(uint32_t both) {
    return {bits_to_float(both << 16), bits_to_float(both & 0xffff0000u)};
}

}  // namespace PYSA_GPU_FLAVOUR
}  // namespace pysa::gpu
