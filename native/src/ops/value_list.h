// The value rows of a chunk that are worth reading: a bit per row, so that heads join their lists by OR.
#pragma once

#include <algorithm>
#include <cstdint>

#include "ops/cpu_kernels.h"

namespace pysa {

struct ValueList {
    static constexpr int64_t n_most = 256;  // rows
    static constexpr int64_t n_words = n_most / 64;

    uint64_t words[n_words] = {};
    float dropped = 0;  // share of the head's distant mass that is not in the list, at most

    // All of n rows but those below the highest limit at which what is lost stays within `budget`. scale makes a weight, of which all
    // come to `sum`, the share of the distant mass that `budget` is in.
    static ValueList choose(const CpuKernels & kernels, const float * weights, int64_t n, float sum, float scale,
                            float budget) {
        ValueList list;
        list.dropped = sum * scale;
        if (list.dropped <= budget) return list;
        const float limit = kernels.limit(weights, n, budget / scale, &list.dropped);
        list.dropped *= scale;
        for (int64_t i = 0; i < n_words; ++i) {
            const int64_t n_bits = std::clamp<int64_t>(n - i * 64, 0, 64);
            list.words[i] = list.dropped > 0.0f ? kernels.mask_from(weights + i * 64, n_bits, limit)
                            : n_bits == 64      ? ~uint64_t(0)
                                                : (uint64_t(1) << n_bits) - 1;
        }
        return list;
    }

    void join(const ValueList & other) {
        for (int64_t i = 0; i < n_words; ++i) words[i] |= other.words[i];
    }

    int64_t count() const {
        int64_t n = 0;
        for (const uint64_t word : words) n += __builtin_popcountll(word);
        return n;
    }

    // The rows in order; returns how many. There is room for n_most + n_lanes.
    int64_t write(const CpuKernels & kernels, int32_t * out) const {
        int64_t n = 0;
        for (int64_t i = 0; i < n_words; ++i) n += kernels.list_bits(words[i], int32_t(i * 64), out + n);
        return n;
    }
};

}  // namespace pysa
