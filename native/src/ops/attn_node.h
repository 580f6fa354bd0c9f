// How a node of fused attention has its inputs: the same for the CPU's custom ops and a GPU's nodes.
#pragma once

#include "ops/shared_attn.h"

namespace pysa {

// Read from the node when it runs: several graphs may hold nodes of one layer.
struct AttnNodeInputs {
    static constexpr int n_most = 3;

    // Returns how many arguments the node has.
    int pack(const AttnInputs & inputs, ggml_tensor ** args) {
        has_k = inputs.k_cur != nullptr;
        has_q = inputs.q != nullptr;
        int n_args = 0;
        args[n_args++] = inputs.v_cur;
        if (has_k) args[n_args++] = inputs.k_cur;
        if (has_q) args[n_args++] = inputs.q;
        return n_args;
    }

    AttnInputs unpack(const ggml_tensor * dst) const {
        AttnInputs inputs;
        inputs.v_cur = dst->src[0];
        if (has_k) inputs.k_cur = dst->src[1];
        if (has_q) inputs.q = dst->src[has_k ? 2 : 1];
        return inputs;
    }

    bool has_k = false, has_q = false;
};

}  // namespace pysa
