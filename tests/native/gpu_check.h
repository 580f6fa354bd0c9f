// What the checks of the GPU kernels share: rows in the cache's types, rings, numbers. The kernels under test come as a
// table, so that the emulator's are checked on any machine.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "cuda/attn_call.h"
#include "ggml.h"

namespace pysa::gpu::check {

// Each returns how many cases failed, and says which.
int check_decode(const AttnKernels & kernels);
int check_prompt(const AttnKernels & kernels);

inline ggml_type ggml_type_of(RowType type) {
    constexpr ggml_type types[] = {GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0};
    return types[int(type)];
}

class Numbers {
  public:
    explicit Numbers(uint64_t seed) : random_(seed) {}

    // Normal, of this standard deviation.
    std::vector<float> normal(int64_t n, float deviation = 1.0f) {
        std::normal_distribution<float> of(0.0f, deviation);
        std::vector<float> out(n);
        for (float & x : out) x = of(random_);
        return out;
    }

  private:
    std::mt19937_64 random_;
};

// Rows of one KV head in a type of the cache; exact in size, so that AddressSanitizer sees a read beyond them. Rows
// never written are NaN.
class RowStore {
  public:
    RowStore() = default;
    RowStore(RowType type, int n_embd, int64_t n_rows)
        : type_(ggml_type_of(type)), n_embd_(n_embd), row_bytes_(int64_t(ggml_row_size(type_, n_embd))),
          data_(static_cast<char *>(std::aligned_alloc(16, (n_rows * row_bytes_ + 15) / 16 * 16)), std::free) {
        for (int64_t i = 0; i < n_rows; ++i) forget(i);
    }

    int64_t row_bytes() const { return row_bytes_; }
    char * row(int64_t i) { return data_.get() + i * row_bytes_; }
    const char * row(int64_t i) const { return data_.get() + i * row_bytes_; }

    void write(int64_t i, const float * values) {
        const auto round = ggml_get_type_traits(type_)->from_float_ref;
        if (round) {
            round(values, row(i), n_embd_);
        } else {
            std::memcpy(row(i), values, row_bytes_);
        }
    }
    void copy(int64_t i, const RowStore & from, int64_t j) { std::memcpy(row(i), from.row(j), row_bytes_); }
    void forget(int64_t i) { std::memset(row(i), 0xff, row_bytes_); }

    std::vector<float> read(int64_t i) const {
        std::vector<float> out(n_embd_);
        const auto to_float = ggml_get_type_traits(type_)->to_float;
        if (to_float) {
            to_float(row(i), out.data(), n_embd_);
        } else {
            std::memcpy(out.data(), row(i), row_bytes_);
        }
        return out;
    }

  private:
    ggml_type type_ = GGML_TYPE_F32;
    int n_embd_ = 0;
    int64_t row_bytes_ = 0;
    std::unique_ptr<char, void (*)(void *)> data_{nullptr, std::free};
};

}  // namespace pysa::gpu::check
