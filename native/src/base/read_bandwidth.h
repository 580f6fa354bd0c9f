// How fast memory can be read here: what attention over a long cache is measured against.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pysa {

// 1e9 bytes per second, the best of `repeats` passes: others on the machine can only slow a pass down. The threads read a
// buffer of `n_bytes`, which should be many times the caches' size, each its own share from front to end.
// ArgumentError: n_threads not in 1..512, repeats below 1, or less than 64 KiB a thread. DeviceError: no memory, no threads.
double read_bandwidth(int32_t n_threads, int64_t n_bytes, int32_t repeats);

}  // namespace pysa
