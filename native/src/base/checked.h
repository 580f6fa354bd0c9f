// Arithmetic on sizes that come from a file or a caller: false instead of wrapping around.
#pragma once

#include <cstdint>
#include <limits>

namespace pysa {

inline bool checked_add(uint64_t a, uint64_t b, uint64_t & sum) {
    if (a > std::numeric_limits<uint64_t>::max() - b) return false;
    sum = a + b;
    return true;
}

inline bool checked_mul(uint64_t a, uint64_t b, uint64_t & product) {
    if (b != 0 && a > std::numeric_limits<uint64_t>::max() / b) return false;
    product = a * b;
    return true;
}

// The next multiple of `alignment`, a power of two.
inline bool checked_pad(uint64_t a, uint64_t alignment, uint64_t & padded) {
    if (!checked_add(a, alignment - 1, padded)) return false;
    padded &= ~(alignment - 1);
    return true;
}

}  // namespace pysa
