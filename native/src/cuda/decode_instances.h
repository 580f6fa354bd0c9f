// For decode_*.cu: one type's kernels, for every head size, and for groups of up to 4 heads and of more.
#pragma once

#include "cuda/decode_launch.h"
#include "cuda/decode_score.h"
#include "cuda/decode_weigh.h"
#include "cuda/head_sizes.h"

namespace pysa::gpu {
inline namespace PYSA_GPU_FLAVOUR {

template <RowType type, int n_embd> const char * launch_score_of(const Call & call, int n_blocks, void * stream) {
    const Shape & shape = call.shape;
    if (shape.n_gqa() <= 4)
        return PYSA_LAUNCH(score_kernel<type, n_embd, 4>, n_blocks, shape.n_head_kv, n_decode_threads,
                           score_shared_bytes<4>(), stream, call);
    return PYSA_LAUNCH(score_kernel<type, n_embd, 8>, n_blocks, shape.n_head_kv, n_decode_threads,
                       score_shared_bytes<8>(), stream, call);
}

template <RowType type, int n_embd> const char * launch_weigh_of(const Call & call, int n_blocks, void * stream) {
    const Shape & shape = call.shape;
    if (shape.n_gqa() <= 4)
        return PYSA_LAUNCH(weigh_kernel<type, n_embd, 4>, n_blocks, shape.n_head_kv, n_decode_threads,
                           sizeof(WeighShared<n_embd, 4>), stream, call);
    return PYSA_LAUNCH(weigh_kernel<type, n_embd, 8>, n_blocks, shape.n_head_kv, n_decode_threads,
                       sizeof(WeighShared<n_embd, 8>), stream, call);
}

template <RowType type> const char * launch_score(const Call & call, int n_blocks, void * stream) {
    const auto launch = [&](auto n) { return launch_score_of<type, decltype(n)::value>(call, n_blocks, stream); };
    return with_head_size(call.shape.n_embd_k, launch, "no kernel for keys of this head size");
}

template <RowType type> const char * launch_weigh(const Call & call, int n_blocks, void * stream) {
    const auto launch = [&](auto n) { return launch_weigh_of<type, decltype(n)::value>(call, n_blocks, stream); };
    return with_head_size(call.shape.n_embd_v, launch, "no kernel for values of this head size");
}

}  // namespace PYSA_GPU_FLAVOUR
}  // namespace pysa::gpu
