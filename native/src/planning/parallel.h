// Independent units of work on some threads, the caller's among them.
#pragma once

#include <atomic>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

namespace pysa {

// Calls work(unit, thread) once for each of n_units; thread < n_threads. Which thread takes a unit is left to chance, so a unit must
// write what no other does. work must not throw. Where a thread cannot start, those there are do it all.
template <class Work> void parallel_for(int32_t n_threads, int64_t n_units, const Work & work) {
    std::atomic<int64_t> next{0};
    const auto take_units = [&](int32_t thread) {
        for (int64_t unit = next++; unit < n_units; unit = next++) work(unit, thread);
    };
    std::vector<std::thread> others;
    others.reserve(size_t(n_threads));
    try {
        for (int32_t i = 1; i < n_threads && i < n_units; ++i) others.emplace_back(take_units, i);
    } catch (const std::system_error &) {
    }
    take_units(0);
    for (std::thread & thread : others) thread.join();
}

}  // namespace pysa
