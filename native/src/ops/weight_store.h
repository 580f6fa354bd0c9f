// Unnormalised attention weights in [0, 1], in chunks of rows, each with the maximum and the sum of exponentials it belongs to:
// as f16 (T uint16_t) what owners leave for their followers, as float what a head needs itself. Host memory of the fused CPU
// attention.
#pragma once

#include <cstdint>
#include <exception>
#include <string>
#include <vector>

#include "pysa/error.h"

namespace pysa {

// At least n items; a long prompt's room is not kept for single tokens. DeviceError if memory is not to be had.
template <class T> void resize_buffer(std::vector<T> & buffer, int64_t n) {
    if (buffer.capacity() > 4 * size_t(n) + 65536) std::vector<T>().swap(buffer);
    try {
        if (buffer.size() < size_t(n)) buffer.resize(size_t(n));
    } catch (const std::exception &) {
        throw DeviceError("attention: out of memory: expected " + std::to_string(size_t(n) * sizeof(T)) +
                          " bytes for scores; choose a smaller n_ubatch");
    }
}

template <class T> class WeightStore {
  public:
    // slots x tiles x chunks of [n_lanes, n_rows] weights.
    void begin(int64_t n_slots, int64_t n_tiles, int64_t n_chunks, int64_t n_lanes, int64_t n_rows) {
        n_tiles_ = n_tiles;
        n_chunks_ = n_chunks;
        n_lanes_ = n_lanes;
        n_chunk_ = n_lanes * n_rows;
        // An odd number of cache lines: several slots are written side by side, and must not fall into one set of the cache.
        slot_stride_ = n_tiles * n_chunks * n_chunk_ + 64 / int64_t(sizeof(T));
        resize_buffer(weights_, n_slots * slot_stride_);
        resize_buffer(parts_, n_slots * n_tiles * n_chunks * 2 * n_lanes);
    }

    int64_t n_chunks() const { return n_chunks_; }
    int64_t slot_stride() const { return slot_stride_; }

    T * weights(int64_t slot, int64_t tile, int64_t chunk) {
        return &weights_[slot * slot_stride_ + (tile * n_chunks_ + chunk) * n_chunk_];
    }

    // [n_lanes, 2]: maxima, then sums.
    float * part(int64_t slot, int64_t tile, int64_t chunk) {
        return &parts_[((slot * n_tiles_ + tile) * n_chunks_ + chunk) * 2 * n_lanes_];
    }

    int64_t size_bytes() const { return int64_t(weights_.capacity() * sizeof(T) + parts_.capacity() * sizeof(float)); }

  private:
    int64_t n_tiles_ = 0, n_chunks_ = 0, n_lanes_ = 0, n_chunk_ = 0, slot_stride_ = 0;
    std::vector<T> weights_;
    std::vector<float> parts_;
};

}  // namespace pysa
