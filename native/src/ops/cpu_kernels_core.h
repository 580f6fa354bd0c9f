// The kernels of cpu_kernels.h: one source for every instruction set, included once per set by cpu_kernels_*.cpp.
#pragma once

#include "ops/cpu_kernels_planning.h"
#include "ops/cpu_kernels_prompt.h"
#include "ops/cpu_kernels_token.h"

namespace pysa {
namespace {

inline void to_float(ggml_type type, const char * const * rows, int64_t n_rows, int64_t n_embd, float * out,
                     int64_t stride) {
    with_row_type(type, [&](auto row_type) {
        for (int64_t r = 0; r < n_rows; ++r, out += stride) {
            int64_t d = 0;
            for (; d + n_block <= n_embd; d += n_block) {
                Vec v[n_unpacked];
                decltype(row_type)::unpack(rows[r], d / n_block, v);
                for (int i = 0; i < n_unpacked; ++i) store(out + d + i * lanes, v[i]);
            }
            for (; d < n_embd; ++d) out[d] = decltype(row_type)::element(rows[r], d);
            for (; d < stride; ++d) out[d] = 0.0f;
        }
    });
}

inline CpuKernels make_kernels(const char * name) {
    return {name,       &to_float,  &dots,        &weigh,     &softmax,      &unpack,     &limit,
            &mask_from, &list_bits, &score_tiles, &mask_tile, &softmax_tile, &merge_tile, &mean_entropies};
}

}  // namespace
}  // namespace pysa
