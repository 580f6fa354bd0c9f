#include "base/read_bandwidth.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <future>
#include <memory>
#include <string>
#include <system_error>
#include <vector>

#include "base/huge_pages.h"
#include "pysa/error.h"

namespace pysa {

namespace {

constexpr int64_t min_share_bytes = 64 << 10;
constexpr int64_t max_bytes = int64_t(1) << 46;
constexpr size_t page_bytes = 2 << 20;  // a huge page
constexpr size_t line_words = 8;        // a cache line

struct FreeMemory {
    void operator()(uint64_t * words) const { std::free(words); }
};
using Words = std::unique_ptr<uint64_t, FreeMemory>;

Words allocate(size_t n_bytes) {
    const size_t rounded = (n_bytes + page_bytes - 1) / page_bytes * page_bytes;
    Words words(static_cast<uint64_t *>(std::aligned_alloc(page_bytes, rounded)));
    if (!words) {
        throw DeviceError("read_bandwidth: not enough memory: expected " + std::to_string(n_bytes) +
                          " bytes; measure with a smaller n_bytes");
    }
    prefer_huge_pages(words.get(), rounded);  // with small ones the translation of addresses would be measured too
    return words;
}

// One accumulator per word of a line, so that no addition waits for the one before.
uint64_t sum(const uint64_t * words, size_t n) {
    uint64_t sums[line_words] = {};
    for (size_t i = 0; i < n; i += line_words) {
        for (size_t k = 0; k < line_words; ++k) sums[k] += words[i + k];
    }
    uint64_t total = 0;
    for (const uint64_t part : sums) total += part;
    return total;
}

// Seconds until `work(i)` has returned in all threads. A future waits for its thread also where a later one cannot start.
template <class Work> double timed(int32_t n_threads, const Work & work) {
    using Clock = std::chrono::steady_clock;
    const Clock::time_point start = Clock::now();
    std::vector<std::future<uint64_t>> running;
    running.reserve(size_t(n_threads));
    for (int32_t i = 0; i < n_threads; ++i) running.push_back(std::async(std::launch::async, work, size_t(i)));
    for (std::future<uint64_t> & thread : running) thread.get();
    return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace

double read_bandwidth(int32_t n_threads, int64_t n_bytes, int32_t repeats) {
    if (n_threads < 1 || n_threads > 512)
        throw ArgumentError("n_threads: expected 1..512, got " + std::to_string(n_threads));
    if (n_bytes < min_share_bytes * n_threads || n_bytes > max_bytes) {
        throw ArgumentError("n_bytes: expected " + std::to_string(min_share_bytes * n_threads) + ".." +
                            std::to_string(max_bytes) + ", got " + std::to_string(n_bytes));
    }
    if (repeats < 1) throw ArgumentError("repeats: expected 1 or more, got " + std::to_string(repeats));

    const size_t n_share = size_t(n_bytes) / sizeof(uint64_t) / size_t(n_threads) / line_words * line_words;
    const size_t n_read = n_share * sizeof(uint64_t) * size_t(n_threads);
    const Words words = allocate(n_read);
    const auto fill = [&](size_t i) -> uint64_t {  // by the threads, so that a page is near one
        std::fill_n(words.get() + i * n_share, n_share, i);
        return 0;
    };
    const auto read = [&](size_t i) { return sum(words.get() + i * n_share, n_share); };
    try {
        timed(n_threads, fill);
        double best_s = timed(n_threads, read);
        for (int32_t pass = 1; pass < repeats; ++pass) best_s = std::min(best_s, timed(n_threads, read));
        return double(n_read) / best_s / 1e9;
    } catch (const std::system_error & error) {
        throw DeviceError("read_bandwidth: cannot start " + std::to_string(n_threads) + " threads: " + error.what());
    }
}

}  // namespace pysa
