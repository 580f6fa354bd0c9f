// Positions to window rows: the first n_sink positions keep their row for ever, the rest share a ring.
// Plain bookkeeping: it never touches a tensor. Until the ring is full, row == position.
#pragma once

#include <algorithm>
#include <cstdint>

namespace pysa {

struct Ring {
    int64_t n_sink = 0;
    int64_t n_recent = 0;
    int64_t n_rows = 0;     // n_sink + n_recent + slack; 0: no window at all
    int64_t n_written = 0;  // one past the highest position written since the ring's rows were last restored

    int64_t n_ring() const { return n_rows - n_sink; }

    int64_t row(int64_t pos) const { return pos < n_sink ? pos : n_sink + (pos - n_sink) % n_ring(); }

    // The oldest position outside the sinks that a query at `pos` scores itself.
    int64_t oldest_needed(int64_t pos) const { return std::max(n_sink, pos - n_recent + 1); }

    // The oldest position outside the sinks whose row has not been overwritten.
    int64_t oldest_held() const { return std::max(n_sink, n_written - n_ring()); }

    // Whether the next query may be at `pos`: every older row of its window is still there.
    bool can_continue_at(int64_t pos) const {
        return n_rows == 0 || pos <= n_sink || oldest_needed(pos) >= oldest_held() || oldest_needed(pos) >= pos;
    }

    // Whether writing positions [pos, pos + n) overwrites a row that a query at `pos` still needs.
    bool overwrites_window(int64_t pos, int64_t n) const {
        return n_rows > 0 && pos > 0 && std::max(n_written, pos + n) - n_ring() > oldest_needed(pos);
    }
};

}  // namespace pysa
