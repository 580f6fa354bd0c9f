// What owners keep for their followers during a ubatch: unnormalised distant weights in [0, 1] as f16, with the maximum and the sum
// of exponentials they belong to. Host memory of the fused CPU attention.
#pragma once

#include <cstdint>
#include <exception>
#include <string>
#include <vector>

#include "ggml-cpu.h"
#include "ops/cpu_rows.h"
#include "pysa/error.h"

namespace pysa {

// At least n items; a long prompt's room is not kept for single tokens. DeviceError if memory is not to be had.
template <class T> void resize_buffer(std::vector<T> & buffer, int64_t n) {
    if (buffer.capacity() > 4 * size_t(n) + 4096) std::vector<T>().swap(buffer);
    try {
        if (buffer.size() < size_t(n)) buffer.resize(size_t(n));
    } catch (const std::exception &) {
        throw DeviceError("attention: out of memory: expected " + std::to_string(size_t(n) * sizeof(T)) +
                          " bytes for scores; choose a smaller n_ubatch");
    }
}

class DistantStore {
  public:
    void begin(int64_t n_slots, int64_t n_tokens, int64_t n_columns) {
        n_tokens_ = n_tokens;
        n_columns_ = n_columns;
        resize_buffer(weights_, n_slots * n_tokens * n_columns);
        resize_buffer(parts_, n_slots * n_tokens);
    }

    void put(int64_t slot, int64_t token, const float * weights, int64_t n, Part part) {
        const int64_t at = slot * n_tokens_ + token;
        ggml_cpu_fp32_to_fp16(weights, weights_.data() + at * n_columns_, n);
        parts_[at] = part;
    }

    Part get(int64_t slot, int64_t token, float * weights, int64_t n) const {
        const int64_t at = slot * n_tokens_ + token;
        ggml_cpu_fp16_to_fp32(weights_.data() + at * n_columns_, weights, n);
        return parts_[at];
    }

    int64_t size_bytes() const {
        return int64_t(weights_.capacity() * sizeof(ggml_fp16_t) + parts_.capacity() * sizeof(Part));
    }

  private:
    int64_t n_tokens_ = 0;
    int64_t n_columns_ = 0;
    std::vector<ggml_fp16_t> weights_;  // [n_columns, n_tokens, n_slots]
    std::vector<Part> parts_;           // [n_tokens, n_slots]
};

}  // namespace pysa
