#include "cuda/emulator.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "cuda/fiber.h"

namespace pysa::gpu::emulator {

namespace {

constexpr int n_lanes = 32;
constexpr const char * names[] = {"its end",     "sync_block", "sync_warp", "shuffle",
                                  "shuffle_xor", "ballot",     "mma",       "load_matrix"};

struct Copy {
    void * to;
    const void * from;
    int group;
};

struct Thread {
    Fiber fiber;
    Place place;
    Meeting at;  // none: at its end
    void (*finish)(void * const[n_lanes]);
    void * data;
    std::vector<Copy> copies;
    int n_groups;
};

uint64_t seed = 1;
int n_os_threads = 1;

// Runs the blocks of a launch, one after the other, on one OS thread.
class Runner {
  public:
    explicit Runner(const std::function<void()> & kernel, int n_threads, size_t shared_bytes)
        : kernel_(kernel), threads_(pool()), n_threads_(n_threads), shared_bytes_(shared_bytes), random_(seed) {
        while (int(threads_.size()) < n_threads) threads_.emplace_back();
    }

    void run_block(int x, int y, int grid_x);
    const std::string & error() const { return error_; }

    Thread & now() { return *now_; }
    void leave(Meeting at, void (*finish)(void * const[n_lanes]), void * data) {
        now_->at = at;
        now_->finish = finish;
        now_->data = data;
        now_->fiber.switch_to(own_, false);
    }
    [[noreturn]] void leave_with(const char * text) {
        set_error(now_->place, text);
        now_->fiber.switch_to(own_, true);
        std::abort();
    }

  private:
    static void entry();
    // Stacks are kept from launch to launch.
    static std::deque<Thread> & pool() {
        static thread_local std::deque<Thread> threads;
        return threads;
    }
    void set_error(const Place & place, const std::string & text) {
        error_ = "block (" + std::to_string(place.block_x) + ", " + std::to_string(place.block_y) + "), thread " +
                 std::to_string(place.thread) + ": " + text;
    }
    Meeting run_warp(int first);
    bool meet(int first, int n);

    const std::function<void()> & kernel_;
    std::deque<Thread> & threads_;
    int n_threads_;
    size_t shared_bytes_;
    std::mt19937_64 random_;
    Fiber own_;
    Thread * now_ = nullptr;
    std::string error_;
};

thread_local Runner * runner = nullptr;

void Runner::entry() {
    runner->now_->fiber.started(runner->own_);
    runner->kernel_();
    Thread & self = *runner->now_;
    self.at = Meeting::none;
    self.finish = nullptr;
    if (!self.copies.empty()) runner->set_error(self.place, "it ends without waiting for its copies");
    self.fiber.switch_to(runner->own_, true);
    std::abort();
}

// Whether n threads from `first` on are all at the same place.
bool Runner::meet(int first, int n) {
    const Thread & a = threads_[first];
    for (int i = first + 1; i < first + n; ++i) {
        const Thread & b = threads_[i];
        if (a.at == b.at && a.finish == b.finish) continue;
        set_error(b.place, std::string("it is at ") + names[int(b.at)] + " where thread " +
                               std::to_string(a.place.thread) + " is at " + names[int(a.at)]);
        return false;
    }
    return true;
}

// Until all lanes are at a barrier of the block or at their end.
Meeting Runner::run_warp(int first) {
    int order[n_lanes];
    std::iota(order, order + n_lanes, first);
    for (;;) {
        if (random_() % 4 == 0) std::shuffle(order, order + n_lanes, random_);
        for (const int i : order) {
            now_ = &threads_[i];
            own_.switch_to(now_->fiber, false);
            if (!error_.empty()) return Meeting::none;
        }
        if (!meet(first, n_lanes)) return Meeting::none;
        const Thread & lead = threads_[first];
        if (lead.at <= Meeting::sync_block) return lead.at;
        if (!lead.finish) continue;
        void * data[n_lanes];
        for (int i = 0; i < n_lanes; ++i) data[i] = threads_[first + i].data;
        lead.finish(data);
    }
}

void Runner::run_block(int x, int y, int grid_x) {
    void * memory = nullptr;
    if (posix_memalign(&memory, 128, std::max<size_t>(shared_bytes_, 1)) != 0) throw std::bad_alloc();
    const std::unique_ptr<void, void (*)(void *)> shared(memory, std::free);
    std::memset(memory, 0xff, shared_bytes_);
    for (int i = 0; i < n_threads_; ++i) {
        Thread & thread = threads_[i];
        thread.fiber.prepare(entry);
        thread.place = {i, n_threads_, x, y, grid_x, static_cast<char *>(memory), shared_bytes_};
        thread.copies.clear();
        thread.n_groups = 0;
    }
    std::vector<int> warps(n_threads_ / n_lanes);
    std::iota(warps.begin(), warps.end(), 0);
    runner = this;
    do {
        std::shuffle(warps.begin(), warps.end(), random_);
        for (const int w : warps) {
            run_warp(w * n_lanes);
            if (!error_.empty()) return;
        }
        if (!meet(0, n_threads_)) return;
    } while (threads_[0].at == Meeting::sync_block);
}

float half_value(uint16_t bits) {
    const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
    const float size = exponent == 0    ? std::ldexp(float(mantissa), -24)
                       : exponent == 31 ? (mantissa ? NAN : INFINITY)
                                        : std::ldexp(float(mantissa + 1024), exponent - 25);
    return bits & 0x8000 ? -size : size;
}

struct MatrixOperands {
    float * c;
    const uint32_t *a, *b;
};

// Fragments as PTX lays them out: lane = 4 group + pair holds rows `group` and `group + 8`, columns 2 pair, 2 pair + 1
// and + 8.
void multiply(void * const lanes[n_lanes]) {
    float a[16][16], b[8][16];
    for (int lane = 0; lane < n_lanes; ++lane) {
        const MatrixOperands & own = *static_cast<MatrixOperands *>(lanes[lane]);
        const int group = lane / 4, pair = lane % 4;
        for (int i = 0; i < 8; ++i)
            a[group + 8 * (i / 2 % 2)][2 * pair + i % 2 + 8 * (i / 4)] =
                half_to_float(uint16_t(own.a[i / 2] >> 16 * (i % 2)));
        for (int i = 0; i < 4; ++i)
            b[group][2 * pair + i % 2 + 8 * (i / 2)] = half_to_float(uint16_t(own.b[i / 2] >> 16 * (i % 2)));
    }
    for (int lane = 0; lane < n_lanes; ++lane) {
        const MatrixOperands & own = *static_cast<MatrixOperands *>(lanes[lane]);
        for (int i = 0; i < 4; ++i) {
            const float * row = a[lane / 4 + 8 * (i / 2)];
            const float * column = b[2 * (lane % 4) + i % 2];
            float sum = 0.0f;
            for (int k = 0; k < 16; ++k) sum += row[k] * column[k];
            own.c[i] += sum;
        }
    }
}

struct MatrixLoad {
    uint32_t * r;
    const char * row;
    bool is_transposed;
};

void load_matrices(void * const lanes[n_lanes]) {
    for (int m = 0; m < 4; ++m) {
        uint16_t all[8][8];
        for (int i = 0; i < 8; ++i) std::memcpy(all[i], static_cast<MatrixLoad *>(lanes[8 * m + i])->row, 16);
        for (int lane = 0; lane < n_lanes; ++lane) {
            const MatrixLoad & own = *static_cast<MatrixLoad *>(lanes[lane]);
            const int i = lane / 4, j = 2 * (lane % 4);
            own.r[m] = own.is_transposed ? all[j][i] | uint32_t(all[j + 1][i]) << 16
                                         : all[i][j] | uint32_t(all[i][j + 1]) << 16;
        }
    }
}

}  // namespace

const Place & here() { return runner->now().place; }

void meet_warp(Meeting what, void (*finish)(void * const[n_lanes]), void * data) { runner->leave(what, finish, data); }

void meet_block() { runner->leave(Meeting::sync_block, nullptr, nullptr); }

void fail(const char * text) { runner->leave_with(text); }

void check_aligned(const void * p, size_t n_bytes) {
    if (reinterpret_cast<uintptr_t>(p) % n_bytes != 0) fail("misaligned access");
}

void check_shared(const void * p, size_t n_bytes) {
    const char * own = here().shared;
    const char * q = static_cast<const char *>(p);
    if (q < own || q + n_bytes > own + here().shared_bytes)
        fail("an address outside shared memory where one in it must be");
}

void copy16_later(void * to, const void * from) {
    check_aligned(to, 16);
    check_aligned(from, 16);
    check_shared(to, 16);
    Thread & self = runner->now();
    self.copies.push_back({to, from, self.n_groups});
}

void commit_copies() { ++runner->now().n_groups; }

void wait_copies(int n_left) {
    Thread & self = runner->now();
    auto copy = self.copies.begin();
    for (; copy != self.copies.end() && copy->group < self.n_groups - n_left; ++copy)
        std::memcpy(copy->to, copy->from, 16);
    self.copies.erase(self.copies.begin(), copy);
}

float half_to_float(uint16_t bits) {
    static const std::vector<float> values = [] {
        std::vector<float> all(65536);
        for (int i = 0; i < 65536; ++i) all[i] = half_value(uint16_t(i));
        return all;
    }();
    return values[bits];
}

uint16_t float_to_half(float x) {
    const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
    const float size = std::fabs(x);
    if (std::isnan(x)) return 0x7fff;
    if (size >= 65520.0f) return sign | 0x7c00;
    if (size < 0x1p-14f) return sign | uint16_t(std::nearbyint(std::ldexp(size, 24)));
    uint32_t bits;
    std::memcpy(&bits, &size, 4);
    bits += 0xfff + (bits >> 13 & 1);
    return sign | uint16_t((bits - (112u << 23)) >> 13);
}

void mma_16x8x16(float c[4], const uint32_t a[4], const uint32_t b[2]) {
    MatrixOperands own = {c, a, b};
    meet_warp(Meeting::mma, multiply, &own);
}

void load_matrix_x4(uint32_t r[4], const void * row, bool is_transposed) {
    check_aligned(row, 16);
    check_shared(row, 16);
    MatrixLoad own = {r, static_cast<const char *>(row), is_transposed};
    meet_warp(Meeting::load_matrix, load_matrices, &own);
}

void configure(uint64_t new_seed, int new_n_os_threads) {
    seed = new_seed;
    n_os_threads = new_n_os_threads;
}

const char * run(int grid_x, int grid_y, int n_threads, size_t shared_bytes, const std::function<void()> & kernel) {
    static thread_local std::string kept;
    if (grid_x <= 0 || grid_y <= 0 || grid_y > 65535) return "a grid of no size, or too large";
    if (n_threads <= 0 || n_threads > 1024 || n_threads % n_lanes != 0)
        return "n_threads: expected whole warps, 1024 at most";
    if (shared_bytes > 227 * 1024) return "more shared memory than any card has";
    std::vector<int64_t> blocks(int64_t(grid_x) * grid_y);
    std::iota(blocks.begin(), blocks.end(), 0);
    std::shuffle(blocks.begin(), blocks.end(), std::mt19937_64(seed));
    std::atomic<size_t> next{0};
    std::mutex mutex;
    std::string error;
    const auto work = [&] {
        Runner own(kernel, n_threads, shared_bytes);
        for (size_t i; (i = next++) < blocks.size() && own.error().empty();)
            own.run_block(int(blocks[i] % grid_x), int(blocks[i] / grid_x), grid_x);
        const std::lock_guard lock(mutex);
        if (error.empty()) error = own.error();
    };
    std::vector<std::thread> others;
    for (int i = 1; i < n_os_threads; ++i) others.emplace_back(work);
    work();
    for (std::thread & other : others) other.join();
    kept = error;
    return kept.empty() ? nullptr : kept.c_str();
}

}  // namespace pysa::gpu::emulator
