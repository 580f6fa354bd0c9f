// The cache's rows as the kernels of one token read them: in pieces of 8 values, one per lane, which neighbouring lanes
// read from neighbouring places. Which values a piece holds is the format's own choice: two runs of 4, from first(0)
// and first(1) on. unpack() returns what they all are to be multiplied by.
#pragma once

#include "cuda/attn_call.h"
#include "cuda/device.h"

namespace pysa::gpu {
inline namespace PYSA_GPU_FLAVOUR {

constexpr int n_piece = 8;

PYSA_BOTH constexpr int64_t row_bytes(RowType type, int n_embd) {
    return type == RowType::f32    ? int64_t(n_embd) * 4
           : type == RowType::q8_0 ? int64_t(n_embd) / 32 * 34
           : type == RowType::q4_0 ? int64_t(n_embd) / 32 * 18
                                   : int64_t(n_embd) * 2;
}

// The 4 bytes of x as numbers from 0 to 255, less `zero`; exact, and cheaper than a conversion of integers.
PYSA_DEVICE void bytes_to_float(uint32_t x, float zero, float * out) {
    PYSA_UNROLL
    for (int i = 0; i < 4; ++i) out[i] = bits_to_float(0x4b000000u | (x >> 8 * i & 0xffu)) - (8388608.0f + zero);
}

template <RowType type, int n_embd> struct RowFormat;

template <int n_embd> struct RowFormat<RowType::f32, n_embd> {
    struct Raw { Bytes16 x[2]; };
    PYSA_BOTH static constexpr int first(int piece, int run) { return run * (n_embd / 2) + piece * 4; }
    static PYSA_INLINE Raw load(const char * row, int piece) {
        return {{read16(row + first(piece, 0) * 4), read16(row + first(piece, 1) * 4)}};
    }
    static PYSA_INLINE float unpack(const Raw & raw, float * out) {
        PYSA_UNROLL
        for (int i = 0; i < n_piece; ++i) out[i] = bits_to_float(raw.x[i / 4].x[i % 4]);
        return 1.0f;
    }
};

template <int n_embd> struct RowFormat<RowType::f16, n_embd> {
    using Raw = Bytes16;
    PYSA_BOTH static constexpr int first(int piece, int run) { return piece * n_piece + run * 4; }
    static PYSA_INLINE Raw load(const char * row, int piece) { return read16(row + piece * 16); }
    static PYSA_INLINE float unpack(const Raw & raw, float * out) {
        PYSA_UNROLL
        for (int i = 0; i < 4; ++i) {
            const Float2 both = half2_to_float2(raw.x[i]);
            out[2 * i] = both.x;
            out[2 * i + 1] = both.y;
        }
        return 1.0f;
    }
};

template <int n_embd> struct RowFormat<RowType::bf16, n_embd> : RowFormat<RowType::f16, n_embd> {
    static PYSA_INLINE float unpack(const Bytes16 & raw, float * out) {
        PYSA_UNROLL
        for (int i = 0; i < 4; ++i) {
            const Float2 both = bf16x2_to_float2(raw.x[i]);
            out[2 * i] = both.x;
            out[2 * i + 1] = both.y;
        }
        return 1.0f;
    }
};

// Blocks of 32 values: an f16 scale, then a byte for each. Rows are aligned to 2 bytes only.
template <int n_embd> struct RowFormat<RowType::q8_0, n_embd> {
    struct Raw {
        uint16_t x[4];
        uint16_t scale;
    };
    PYSA_BOTH static constexpr int first(int piece, int run) { return piece * n_piece + run * 4; }
    static PYSA_INLINE Raw load(const char * row, int piece) {
        const char * block = row + piece / 4 * 34;
        const char * own = block + 2 + piece % 4 * 8;
        return {{read2(own), read2(own + 2), read2(own + 4), read2(own + 6)}, read2(block)};
    }
    static PYSA_INLINE float unpack(const Raw & raw, float * out) {
        PYSA_UNROLL
        for (int i = 0; i < 2; ++i)
            bytes_to_float((raw.x[2 * i] | uint32_t(raw.x[2 * i + 1]) << 16) ^ 0x80808080u, 128.0f, out + 4 * i);
        return half_to_float(raw.scale);
    }
};

// Blocks of 32 values: an f16 scale, then 16 bytes, of which byte i holds values i and 16 + i.
template <int n_embd> struct RowFormat<RowType::q4_0, n_embd> {
    struct Raw {
        uint16_t x[2];
        uint16_t scale;
    };
    PYSA_BOTH static constexpr int first(int piece, int run) { return piece / 4 * 32 + piece % 4 * 4 + run * 16; }
    static PYSA_INLINE Raw load(const char * row, int piece) {
        const char * block = row + piece / 4 * 18;
        const char * own = block + 2 + piece % 4 * 4;
        return {{read2(own), read2(own + 2)}, read2(block)};
    }
    static PYSA_INLINE float unpack(const Raw & raw, float * out) {
        const uint32_t x = raw.x[0] | uint32_t(raw.x[1]) << 16;
        bytes_to_float(x & 0x0f0f0f0fu, 8.0f, out);
        bytes_to_float(x >> 4 & 0x0f0f0f0fu, 8.0f, out + 4);
        return half_to_float(raw.scale);
    }
};

}  // namespace PYSA_GPU_FLAVOUR
}  // namespace pysa::gpu
