// What both kernels of one token agree on: which positions make a chunk, where its rows lie, who is the last block to
// be done.
#pragma once

#include "cuda/rows.h"

namespace pysa::gpu {
inline namespace PYSA_GPU_FLAVOUR {

constexpr int n_most_gqa = 64;
constexpr int n_decode_threads = 128;
constexpr int n_decode_warps = n_decode_threads / n_lanes;
static_assert(n_decode_threads == n_chunk, "a thread for each row of a chunk");

// A row takes this many lanes; of 96 values, four of them idle.
PYSA_BOTH constexpr int lanes_per_row(int n_embd) {
    return n_embd <= 32 ? 4 : n_embd <= 64 ? 8 : n_embd <= 128 ? 16 : 32;
}

struct Chunk {
    int is_far;
    int index;     // among the near or the far chunks
    int begin, n;  // positions
};

// The window's chunks come first, then those of the distance, which start at n_sink, so that a position never changes
// its chunk.
struct Chunks {
    int n_near, n_far;
    int n_sinks;     // of the query's window
    int near_begin;  // of the recent part
    int far_begin, far_end;
    int t;

    PYSA_BOTH Chunks(const Shape & shape, int t) : t(t) {
        const bool has_window = shape.n_recent > 0;
        n_sinks = !has_window ? 0 : shape.n_sink < t + 1 ? shape.n_sink : t + 1;
        const int recent = t - shape.n_recent + 1;
        near_begin = has_window && recent > shape.n_sink ? recent : shape.n_sink;
        const int n_recent = has_window && t + 1 > near_begin ? t + 1 - near_begin : 0;
        n_near = count(n_sinks) + count(n_recent);
        far_begin = shape.n_sink;
        far_end = recent > far_begin ? recent : far_begin;
        n_far = count(far_end - far_begin);
    }

    PYSA_BOTH static int count(int n_rows) { return (n_rows + n_chunk - 1) / n_chunk; }

    PYSA_BOTH Chunk at(int i) const {
        if (i >= n_near) {
            const int begin = far_begin + (i - n_near) * n_chunk;
            return {1, i - n_near, begin, least(far_end - begin)};
        }
        const int n_sink_chunks = count(n_sinks);
        const int begin = i < n_sink_chunks ? i * n_chunk : near_begin + (i - n_sink_chunks) * n_chunk;
        return {0, i, begin, least((i < n_sink_chunks ? n_sinks : t + 1) - begin)};
    }

    PYSA_BOTH static int least(int n) { return n < n_chunk ? n : n_chunk; }
};

// Where the rows of a chunk lie: in a store, which may be a ring, and at last among the step's own. A chunk is no
// longer than a ring, so that it wraps at most once.
struct ChunkRows {
    const char * store;
    const char * cur;
    int64_t row_bytes, cur_row;
    int n_before, n_ring;  // after n_before rows the store goes on n_ring rows earlier
    int n_held;            // rows of the store, then those of cur

    PYSA_INLINE ChunkRows(const Shape & shape, const Chunk & chunk, const char * base, int64_t row_bytes, bool is_ring,
                          int n_past, const char * cur_base, int64_t cur_row)
        : cur(cur_base), row_bytes(row_bytes), cur_row(cur_row), n_before(n_chunk), n_held(n_chunk) {
        n_ring = shape.ring_rows - shape.n_sink;
        int row = chunk.begin;
        if (is_ring) {
            if (row >= shape.n_sink) {
                row = shape.n_sink + (row - shape.n_sink) % n_ring;
                n_before = shape.ring_rows - row;
            }
            n_held = n_past - chunk.begin;
        }
        store = base + row * row_bytes;
    }

    PYSA_INLINE const char * at(int i) const {
        if (i >= n_held) return cur + (i - n_held) * cur_row;
        return store + (i < n_before ? i : i - n_ring) * row_bytes;
    }
};

// Whether this block is the last of n to come here; what the others have written before can then be read (fresh_...).
// Calls of a block are apart: `flag` is a word of shared memory that nothing else uses.
PYSA_DEVICE bool is_last_block(uint32_t * arrived, int n, uint32_t * flag) {
    thread_fence();
    sync_block();
    if (thread_index() == 0) {
        *flag = atomic_add(arrived, 1u) + 1 == uint32_t(n);
        if (*flag) *arrived = 0;
    }
    sync_block();
    if (!*flag) return false;
    thread_fence();
    return true;
}

// Where a head's distant weights are: its slot, or -1 for its own place.
PYSA_DEVICE int far_slot(const Head & head) { return head.slot_in >= 0 ? head.slot_in : head.slot_out; }

PYSA_DEVICE float * far_part(const DecodeRoom & room, const Head & head, int h, int chunk) {
    const int slot = far_slot(head);
    return slot >= 0 ? room.slot_parts + 2 * (int64_t(slot) * room.n_far + chunk)
                     : room.far_parts + 2 * (int64_t(h) * room.n_far + chunk);
}

PYSA_DEVICE uint16_t * far_weights(const DecodeRoom & room, const Head & head, int h, int chunk) {
    const int slot = far_slot(head);
    return slot >= 0 ? room.slot_weights + n_chunk * (int64_t(slot) * room.n_far + chunk)
                     : room.far_weights + n_chunk * (int64_t(h) * room.n_far + chunk);
}

PYSA_DEVICE float * near_part(const DecodeRoom & room, int h, int chunk) {
    return room.near_parts + 2 * (int64_t(h) * room.n_near + chunk);
}

PYSA_DEVICE uint16_t * near_weights(const DecodeRoom & room, int h, int chunk) {
    return room.near_weights + n_chunk * (int64_t(h) * room.n_near + chunk);
}

}  // namespace PYSA_GPU_FLAVOUR
}  // namespace pysa::gpu
