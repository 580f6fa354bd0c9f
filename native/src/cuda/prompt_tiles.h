// What a block of the prompt kernel works on: its queries, the columns that these see, and tiles of K and V rows in
// shared memory, as f16, placed so that ldmatrix meets no bank twice.
#pragma once

#include "cuda/rows.h"

namespace pysa::gpu {
inline namespace PYSA_GPU_FLAVOUR {

// Of a block. Its rows are pairs of a query and a head of the group, 16 for each warp.
template <int n_embd> struct PromptDims {
    static constexpr int n_warps = n_embd <= 128 ? 8 : 4;
    static constexpr int n_threads = n_warps * n_lanes;
    static constexpr int n_rows = n_warps * 16;
    static constexpr int n_blocks_per_sm =
        n_embd <= 64 || n_embd == 256 ? 2 : 1;                             // so many registers are left to a thread
    static constexpr bool q_in_registers = n_embd == 96 || n_embd == 128;  // else in shared memory
    static constexpr bool is_swizzled = n_embd % 64 == 0;                  // else padded
    static constexpr int row_bytes = 2 * n_embd + (is_swizzled ? 0 : 16);
    static constexpr int tile_bytes = n_tile_rows * row_bytes;
    static constexpr int n_tiles = n_embd <= 128 ? 2 : 1;  // of K and V at once; sm_75 has 64 KiB
    static constexpr int shared_bytes = n_tiles * tile_bytes + (q_in_registers ? 0 : n_rows * row_bytes);
};

struct PromptUnit {
    int kv;
    int first, last;  // queries
    int n_past;       // position of query 0
};

PYSA_DEVICE int least(int a, int b) { return a < b ? a : b; }
PYSA_DEVICE int most(int a, int b) { return a > b ? a : b; }

// Columns of the window: near_sinks() sinks, then positions from near_begin() on; of the distance: from n_sink on.
PYSA_DEVICE int near_sinks(const Shape & shape, const PromptUnit & unit) {
    return least(shape.n_sink, unit.n_past + unit.last + 1);
}
PYSA_DEVICE int near_begin(const Shape & shape, const PromptUnit & unit) {
    return most(shape.n_sink, unit.n_past + unit.first - shape.n_recent + 1);
}
PYSA_DEVICE int n_columns_of(const Shape & shape, const PromptUnit & unit, bool is_far) {
    const int end = unit.n_past + unit.last + 1;
    if (is_far) return most(0, end - shape.n_recent - shape.n_sink);
    return shape.n_recent > 0 ? near_sinks(shape, unit) + most(0, end - near_begin(shape, unit)) : 0;
}

// Where eight values of a row of a tile, or of queries, are.
template <int n_embd> PYSA_DEVICE int piece_at(int row, int piece) {
    using Dims = PromptDims<n_embd>;
    return row * Dims::row_bytes + (Dims::is_swizzled ? piece ^ (row & 7) : piece) * 16;
}

// The same for n pieces further, n even, from piece 0 or 1: mostly known when this is compiled.
template <int n_embd> PYSA_DEVICE int pieces_further(int at, int n) {
    return PromptDims<n_embd>::is_swizzled ? (at ^ n % 8 * 16) + n / 8 * 128 : at + n * 16;
}

// Where a KV head's rows of a part of the softmax lie.
struct TileRows {
    RowType type;
    bool is_ring;
    const char * store;
    int64_t row_bytes;
    const char * cur;  // of a ring: rows that it has not taken yet
    int64_t cur_row;
    int n_past, n_sink, n_ring;
};

PYSA_DEVICE TileRows find_rows(const Call & call, const PromptUnit & unit, bool is_key, bool is_far) {
    const Shape & shape = call.shape;
    const KvHead & head = call.kv_heads[unit.kv];
    TileRows rows;
    rows.type = is_key ? shape.type_k : shape.type_v;
    rows.is_ring = !is_far && (is_key ? head.k_is_ring : head.v_is_ring);
    rows.store = is_far ? (is_key ? head.k_far : head.v_far) : (is_key ? head.k_near : head.v_near);
    rows.row_bytes = row_bytes(rows.type, is_key ? shape.n_embd_k : shape.n_embd_v);
    rows.cur = is_key ? call.k_cur + unit.kv * call.k_cur_head : call.v_cur + unit.kv * call.v_cur_head;
    rows.cur_row = is_key ? call.k_cur_row : call.v_cur_row;
    rows.n_past = unit.n_past;
    rows.n_sink = shape.n_sink;
    rows.n_ring = shape.ring_rows - shape.n_sink;
    return rows;
}

PYSA_DEVICE const char * row_at(const TileRows & rows, int pos) {
    if (!rows.is_ring) return rows.store + pos * rows.row_bytes;
    if (pos >= rows.n_past) return rows.cur + (pos - rows.n_past) * rows.cur_row;
    const int row = pos < rows.n_sink ? pos : rows.n_sink + int(uint32_t(pos - rows.n_sink) % uint32_t(rows.n_ring));
    return rows.store + row * rows.row_bytes;
}

PYSA_DEVICE uint32_t pack_clamped(float low, float high) {
    constexpr float most = 65504.0f;
    return pack_half2(fminf(fmaxf(low, -most), most), fminf(fmaxf(high, -most), most));
}

// Rows of any type to f16, some pieces of each thread on their way at once. find(row): where it lies, or null.
template <RowType type, int n_embd, class Find> PYSA_DEVICE void convert_tile(char * tile, Find && find) {
    using Format = RowFormat<type, n_embd>;
    constexpr int n_threads = PromptDims<n_embd>::n_threads, n_pieces = n_embd / n_piece;
    constexpr int n_turns = n_tile_rows * n_pieces / n_threads, n_at_once = n_turns < 4 ? n_turns : 4;
    PYSA_NO_UNROLL
    for (int turn = 0; turn < n_turns; turn += n_at_once) {
        typename Format::Raw raw[n_at_once];
        const int begin = turn * n_threads + thread_index();
        PYSA_UNROLL
        for (int i = 0; i < n_at_once; ++i) {
            const int index = begin + i * n_threads;
            const char * from = find(index / n_pieces);
            raw[i] = {};
            if (from) raw[i] = Format::load(from, index % n_pieces);
        }
        PYSA_UNROLL
        for (int i = 0; i < n_at_once; ++i) {
            const int index = begin + i * n_threads;
            float x[n_piece];
            const float scale = Format::unpack(raw[i], x);
            PYSA_UNROLL
            for (int j = 0; j < n_piece; ++j) x[j] *= scale;
            PYSA_UNROLL
            for (int run = 0; run < 2; ++run) {
                const int first = Format::first(index % n_pieces, run);
                store8(tile + piece_at<n_embd>(index / n_pieces, first / 8) + first % 8 * 2,
                       {{pack_clamped(x[4 * run], x[4 * run + 1]), pack_clamped(x[4 * run + 2], x[4 * run + 3])}});
            }
        }
    }
}

// As they are.
template <int n_embd, class Find> PYSA_DEVICE void copy_tile(char * tile, Find && find) {
    constexpr int n_threads = PromptDims<n_embd>::n_threads, n_pieces = n_embd / 8;
    PYSA_NO_UNROLL
    for (int turn = 0; turn < n_tile_rows * n_pieces / n_threads; ++turn) {
        const int index = turn * n_threads + thread_index();
        char * to = tile + piece_at<n_embd>(index / n_pieces, index % n_pieces);
        const char * from = find(index / n_pieces);
        if (from)
            copy16_async(to, from + index % n_pieces * 16);
        else
            store16(to, {});
    }
    commit_copies();
}

// Tile i of a part's columns, by all threads; there after wait_copies and sync_block. Rows beyond the part are zeros.
template <int n_embd>
PYSA_DEVICE void load_tile(char * tile, const Call & call, const PromptUnit & unit, bool is_key, bool is_far, int i) {
    const TileRows rows = find_rows(call, unit, is_key, is_far);
    const int first = i * n_tile_rows, n_columns = n_columns_of(call.shape, unit, is_far);
    const int n_first = is_far ? 0 : near_sinks(call.shape, unit);
    const int shift = is_far ? call.shape.n_sink : near_begin(call.shape, unit) - n_first;
    const auto find = [&](int row) {
        const int column = first + row;
        return column < n_columns ? row_at(rows, column < n_first ? column : column + shift) : nullptr;
    };
    switch (rows.type) {
        case RowType::f32: return convert_tile<RowType::f32, n_embd>(tile, find);
        case RowType::f16: return copy_tile<n_embd>(tile, find);
        case RowType::bf16: return convert_tile<RowType::bf16, n_embd>(tile, find);
        case RowType::q8_0: return convert_tile<RowType::q8_0, n_embd>(tile, find);
        case RowType::q4_0: return convert_tile<RowType::q4_0, n_embd>(tile, find);
    }
}

}  // namespace PYSA_GPU_FLAVOUR
}  // namespace pysa::gpu
