// device.h for nvcc: sm_75 and later.
#pragma once

#include <cuda_runtime.h>

#define PYSA_GPU_FLAVOUR on_cuda
#define PYSA_INLINE __device__ __forceinline__  // of members
#define PYSA_DEVICE static PYSA_INLINE
#define PYSA_BOTH __host__ __device__ inline  // for the kernels and for those who launch them
#define PYSA_KERNEL(...) \
    static __global__ void __launch_bounds__(__VA_ARGS__)  // n_threads, and how many blocks at least
#define PYSA_UNROLL _Pragma("unroll")
#define PYSA_NO_UNROLL _Pragma("unroll 1")
#define PYSA_DYNAMIC_SHARED (pysa::gpu::on_cuda::dynamic_shared())

namespace pysa::gpu {
inline namespace on_cuda {

PYSA_DEVICE char * dynamic_shared() {
    extern __shared__ __align__(128) char pysa_dynamic_shared[];
    return pysa_dynamic_shared;
}

PYSA_DEVICE int thread_index() { return int(threadIdx.x); }
PYSA_DEVICE int n_threads() { return int(blockDim.x); }
PYSA_DEVICE int block_x() { return int(blockIdx.x); }
PYSA_DEVICE int block_y() { return int(blockIdx.y); }
PYSA_DEVICE int grid_x() { return int(gridDim.x); }

PYSA_DEVICE void sync_block() { __syncthreads(); }
PYSA_DEVICE void sync_warp() { __syncwarp(); }
PYSA_DEVICE void thread_fence() { __threadfence(); }

PYSA_DEVICE float shuffle_xor(float x, int mask) { return __shfl_xor_sync(~0u, x, mask); }
PYSA_DEVICE uint32_t shuffle_xor(uint32_t x, int mask) { return __shfl_xor_sync(~0u, x, mask); }
PYSA_DEVICE float shuffle(float x, int from) { return __shfl_sync(~0u, x, from); }
PYSA_DEVICE uint32_t shuffle(uint32_t x, int from) { return __shfl_sync(~0u, x, from); }
PYSA_DEVICE uint32_t ballot(bool x) { return __ballot_sync(~0u, x); }
PYSA_DEVICE int count_bits(uint32_t x) { return __popc(x); }

PYSA_DEVICE uint32_t atomic_add(uint32_t * to, uint32_t x) { return atomicAdd(to, x); }
PYSA_DEVICE void atomic_add(unsigned long long * to, unsigned long long x) { atomicAdd(to, x); }
PYSA_DEVICE void atomic_add(float * to, float x) { atomicAdd(to, x); }
// Of numbers that are not negative: their bits are ordered as they are.
PYSA_DEVICE void atomic_max(float * to, float x) { atomicMax(reinterpret_cast<int *>(to), __float_as_int(x)); }

PYSA_DEVICE float half_to_float(uint16_t bits) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
}

PYSA_DEVICE uint16_t float_to_half(float x) {
    uint16_t bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}

PYSA_DEVICE uint32_t pack_half2(float low, float high) {
#if __CUDA_ARCH__ >= 800
    uint32_t both;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
#else
    return float_to_half(low) | uint32_t(float_to_half(high)) << 16;
#endif
}

// 2^x within a few units in the last place; results below 2^-126 are 0.
PYSA_DEVICE float fast_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Loads of 2, 4, 8 and 16 bytes, aligned as they are wide.
PYSA_DEVICE uint16_t load2(const void * from) { return *static_cast<const uint16_t *>(from); }
PYSA_DEVICE uint32_t load4(const void * from) { return *static_cast<const uint32_t *>(from); }
PYSA_DEVICE Bytes8 load8(const void * from) {
    const uint2 v = *static_cast<const uint2 *>(from);
    return {{v.x, v.y}};
}
PYSA_DEVICE Bytes16 load16(const void * from) {
    const uint4 v = *static_cast<const uint4 *>(from);
    return {{v.x, v.y, v.z, v.w}};
}
PYSA_DEVICE void store4(void * to, uint32_t x) { *static_cast<uint32_t *>(to) = x; }
PYSA_DEVICE void store8(void * to, Bytes8 x) { *static_cast<uint2 *>(to) = make_uint2(x.x[0], x.x[1]); }
PYSA_DEVICE void store16(void * to, Bytes16 x) {
    *static_cast<uint4 *>(to) = make_uint4(x.x[0], x.x[1], x.x[2], x.x[3]);
}

// The same of global memory that the kernel does not write: by the read-only path, not kept in L1.
PYSA_DEVICE uint16_t read2(const void * from) { return __ldg(static_cast<const uint16_t *>(from)); }
PYSA_DEVICE uint32_t read4(const void * from) { return __ldg(static_cast<const uint32_t *>(from)); }
PYSA_DEVICE Bytes8 read8(const void * from) {
    const uint2 v = __ldg(static_cast<const uint2 *>(from));
    return {{v.x, v.y}};
}
PYSA_DEVICE Bytes16 read16(const void * from) {
    Bytes16 v;
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(v.x[0]), "=r"(v.x[1]), "=r"(v.x[2]), "=r"(v.x[3])
        : "l"(from));
    return v;
}

// The same of global memory that other blocks of this launch have written: not from L1.
PYSA_DEVICE float fresh_float(const float * from) { return __ldcg(from); }
PYSA_DEVICE Bytes8 fresh8(const void * from) {
    const uint2 v = __ldcg(static_cast<const uint2 *>(from));
    return {{v.x, v.y}};
}
PYSA_DEVICE Bytes16 fresh16(const void * from) {
    const uint4 v = __ldcg(static_cast<const uint4 *>(from));
    return {{v.x, v.y, v.z, v.w}};
}

PYSA_DEVICE uint32_t shared_address(const void * p) { return uint32_t(__cvta_generic_to_shared(p)); }

// c += a b of f16 with f32 sums, as PTX has mma.m16n8k16: a [16, 16] row by row, b [16, 8] column by column.
PYSA_DEVICE void mma_16x8x16(float c[4], const uint32_t a[4], const uint32_t b[2]) {
#if __CUDA_ARCH__ >= 800
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
        "%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    PYSA_UNROLL
    for (int i = 0; i < 2; ++i)
        asm volatile(
            "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[2 * i]), "r"(a[2 * i + 1]), "r"(b[i]));
#endif
}

// Four 8x8 matrices of 16-bit values from shared memory: lane 8 i + r gives the address of row r of matrix i.
PYSA_DEVICE void load_matrix_x4(uint32_t r[4], const void * row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
PYSA_DEVICE void load_matrix_x4_trans(uint32_t r[4], const void * row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// From global to shared memory, 16 bytes, both aligned; there once the thread has waited for it.
PYSA_DEVICE void copy16_async(void * to, const void * from) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
#else
    store16(to, read16(from));
#endif
}
PYSA_DEVICE void commit_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Until all but the n_left groups committed last are there.
template <int n_left> PYSA_DEVICE void wait_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(n_left) : "memory");
#endif
}

// Of the current device; at least 1.
inline int n_processors() {
    int device = 0, n = 0;
    if (cudaGetDevice(&device) != cudaSuccess) return 1;
    return cudaDeviceGetAttribute(&n, cudaDevAttrMultiProcessorCount, device) == cudaSuccess && n > 0 ? n : 1;
}

// Returns null, or what went wrong.
template <class... Params, class... Args> const char * launch(void (*kernel)(Params...), int grid_x, int grid_y,
                                                              int n_threads, size_t shared_bytes, void * stream,
                                                              Args... args) {
    if (shared_bytes > 48 * 1024) {
        const cudaError_t code = cudaFuncSetAttribute(reinterpret_cast<const void *>(kernel),
                                                      cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes));
        if (code != cudaSuccess) return cudaGetErrorString(code);
    }
    kernel<<<dim3(grid_x, grid_y), n_threads, shared_bytes, static_cast<cudaStream_t>(stream)>>>(args...);
    const cudaError_t code = cudaGetLastError();
    return code == cudaSuccess ? nullptr : cudaGetErrorString(code);
}

}  // namespace on_cuda
}  // namespace pysa::gpu

#define PYSA_LAUNCH(...) pysa::gpu::on_cuda::launch(__VA_ARGS__)
