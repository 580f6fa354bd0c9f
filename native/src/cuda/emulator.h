// Runs kernels on the CPU, for tests: each block's threads are fibers that switch where threads meet. Found and
// reported: a barrier or an operation of the warp that some threads do not reach, misaligned wide accesses, and under
// AddressSanitizer accesses beyond shared or global memory. Shared memory starts as NaN; blocks, warps and lanes run in
// a pseudo-random order, so that a missing barrier gives another result.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace pysa::gpu::emulator {

enum class Meeting : int32_t { none, sync_block, sync_warp, shuffle, shuffle_xor, ballot, mma, load_matrix };

// The thread that is running.
struct Place {
    int thread, n_threads, block_x, block_y, grid_x;
    char * shared;
    size_t shared_bytes;
};
const Place & here();

// All 32 lanes come here; then `finish` is called once, with each lane's data.
void meet_warp(Meeting what, void (*finish)(void * const lanes[32]), void * data);
void meet_block();

// Ends the launch with an error.
[[noreturn]] void fail(const char * text);
void check_aligned(const void * p, size_t n_bytes);
void check_shared(const void * p, size_t n_bytes);

// Copies that are done only when they are waited for, so that a missing wait shows.
void copy16_later(void * to, const void * from);
void commit_copies();
void wait_copies(int n_left);

float half_to_float(uint16_t bits);
uint16_t float_to_half(float x);
void mma_16x8x16(float c[4], const uint32_t a[4], const uint32_t b[2]);
void load_matrix_x4(uint32_t r[4], const void * row, bool is_transposed);

// Returns null or what went wrong, which stays valid until the next run.
const char * run(int grid_x, int grid_y, int n_threads, size_t shared_bytes, const std::function<void()> & kernel);

// Of all runs from now on. With several OS threads blocks run side by side.
void configure(uint64_t seed, int n_os_threads);

}  // namespace pysa::gpu::emulator
