// device.h for any other compiler: the emulator.
#pragma once

#include <algorithm>
#include <cstring>

#include "cuda/emulator.h"

#define PYSA_GPU_FLAVOUR emulated
#define PYSA_INLINE inline
#define PYSA_DEVICE [[maybe_unused]] static inline
#define PYSA_BOTH inline
#define PYSA_KERNEL(...) [[maybe_unused]] static void
#define PYSA_UNROLL
#define PYSA_NO_UNROLL
#define PYSA_DYNAMIC_SHARED (pysa::gpu::emulator::here().shared)

namespace pysa::gpu {
inline namespace emulated {

PYSA_DEVICE int thread_index() { return emulator::here().thread; }
PYSA_DEVICE int n_threads() { return emulator::here().n_threads; }
PYSA_DEVICE int block_x() { return emulator::here().block_x; }
PYSA_DEVICE int block_y() { return emulator::here().block_y; }
PYSA_DEVICE int grid_x() { return emulator::here().grid_x; }

PYSA_DEVICE void sync_block() { emulator::meet_block(); }
PYSA_DEVICE void sync_warp() { emulator::meet_warp(emulator::Meeting::sync_warp, nullptr, nullptr); }
PYSA_DEVICE void thread_fence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

template <class T> struct Exchange {
    T value, result;
    int lane;  // where the result comes from
};

template <class T> void exchange(void * const lanes[32]) {
    for (int i = 0; i < 32; ++i) {
        Exchange<T> & own = *static_cast<Exchange<T> *>(lanes[i]);
        own.result = static_cast<const Exchange<T> *>(lanes[own.lane & 31])->value;
    }
}

template <class T> T exchange_with(emulator::Meeting what, T x, int lane) {
    Exchange<T> data = {x, x, lane};
    emulator::meet_warp(what, exchange<T>, &data);
    return data.result;
}

template <class T> T shuffle_xor(T x, int mask) {
    return exchange_with(emulator::Meeting::shuffle_xor, x, (thread_index() % 32) ^ mask);
}
template <class T> T shuffle(T x, int from) { return exchange_with(emulator::Meeting::shuffle, x, from); }

PYSA_DEVICE uint32_t ballot(bool x) {
    uint32_t bits = x;
    emulator::meet_warp(
        emulator::Meeting::ballot,
        [](void * const lanes[32]) {
            uint32_t all = 0;
            for (int i = 0; i < 32; ++i) all |= *static_cast<const uint32_t *>(lanes[i]) << i;
            for (int i = 0; i < 32; ++i) *static_cast<uint32_t *>(lanes[i]) = all;
        },
        &bits);
    return bits;
}
PYSA_DEVICE int count_bits(uint32_t x) { return __builtin_popcount(x); }

PYSA_DEVICE uint32_t atomic_add(uint32_t * to, uint32_t x) { return __atomic_fetch_add(to, x, __ATOMIC_RELAXED); }
PYSA_DEVICE void atomic_add(unsigned long long * to, unsigned long long x) {
    __atomic_fetch_add(to, x, __ATOMIC_RELAXED);
}

template <class F> void atomic_change(float * to, F && change) {
    float before, after;
    __atomic_load(to, &before, __ATOMIC_RELAXED);
    do after = change(before);
    while (!__atomic_compare_exchange(to, &before, &after, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
}
PYSA_DEVICE void atomic_add(float * to, float x) {
    atomic_change(to, [x](float y) { return x + y; });
}
PYSA_DEVICE void atomic_max(float * to, float x) {
    atomic_change(to, [x](float y) { return std::max(x, y); });
}

PYSA_DEVICE float half_to_float(uint16_t bits) { return emulator::half_to_float(bits); }
PYSA_DEVICE uint16_t float_to_half(float x) { return emulator::float_to_half(x); }
PYSA_DEVICE uint32_t pack_half2(float low, float high) {
    return float_to_half(low) | uint32_t(float_to_half(high)) << 16;
}

PYSA_DEVICE float fast_exp2(float x) { return exp2f(x); }

template <class T> T load_as(const void * from) {
    emulator::check_aligned(from, sizeof(T));
    T x;
    std::memcpy(&x, from, sizeof(T));
    return x;
}
template <class T> void store_as(void * to, T x) {
    emulator::check_aligned(to, sizeof(T));
    std::memcpy(to, &x, sizeof(T));
}

PYSA_DEVICE uint16_t load2(const void * from) { return load_as<uint16_t>(from); }
PYSA_DEVICE uint32_t load4(const void * from) { return load_as<uint32_t>(from); }
PYSA_DEVICE Bytes8 load8(const void * from) { return load_as<Bytes8>(from); }
PYSA_DEVICE Bytes16 load16(const void * from) { return load_as<Bytes16>(from); }
PYSA_DEVICE uint16_t read2(const void * from) { return load_as<uint16_t>(from); }
PYSA_DEVICE uint32_t read4(const void * from) { return load_as<uint32_t>(from); }
PYSA_DEVICE Bytes8 read8(const void * from) { return load_as<Bytes8>(from); }
PYSA_DEVICE Bytes16 read16(const void * from) { return load_as<Bytes16>(from); }
PYSA_DEVICE float fresh_float(const float * from) { return *from; }
PYSA_DEVICE Bytes8 fresh8(const void * from) { return load_as<Bytes8>(from); }
PYSA_DEVICE Bytes16 fresh16(const void * from) { return load_as<Bytes16>(from); }
PYSA_DEVICE void store4(void * to, uint32_t x) { store_as(to, x); }
PYSA_DEVICE void store8(void * to, Bytes8 x) { store_as(to, x); }
PYSA_DEVICE void store16(void * to, Bytes16 x) { store_as(to, x); }

PYSA_DEVICE void mma_16x8x16(float c[4], const uint32_t a[4], const uint32_t b[2]) { emulator::mma_16x8x16(c, a, b); }
PYSA_DEVICE void load_matrix_x4(uint32_t r[4], const void * row) { emulator::load_matrix_x4(r, row, false); }
PYSA_DEVICE void load_matrix_x4_trans(uint32_t r[4], const void * row) { emulator::load_matrix_x4(r, row, true); }

PYSA_DEVICE void copy16_async(void * to, const void * from) { emulator::copy16_later(to, from); }
PYSA_DEVICE void commit_copies() { emulator::commit_copies(); }
template <int n_left> void wait_copies() { emulator::wait_copies(n_left); }

inline int n_processors() { return 3; }

template <class... Params, class... Args> const char * launch(void (*kernel)(Params...), int grid_x, int grid_y,
                                                              int n_threads, size_t shared_bytes, void *,
                                                              Args... args) {
    return emulator::run(grid_x, grid_y, n_threads, shared_bytes, [=] { kernel(args...); });
}

}  // namespace emulated
}  // namespace pysa::gpu

#define PYSA_LAUNCH(...) pysa::gpu::emulated::launch(__VA_ARGS__)
