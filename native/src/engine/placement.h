// Which layers of a model are on a GPU, and from which on a session's attention and cache are.
#pragma once

#include <cstdint>
#include <string>

#include "device/gpu.h"
#include "file/gguf_file.h"
#include "ops/shared_attn.h"
#include "pysa/model.h"

namespace pysa {

struct Placement {
    const Gpu * gpu = nullptr;  // null if no layer is on one
    int32_t n_layer = 0;
    int32_t n_gpu_layers = 0;  // the last ones; the output comes after them and counts as one

    int32_t first_gpu_layer() const { return n_layer + 1 - n_gpu_layers; }
};

// As many layers as asked for; of -1, as many as fit with a cache of params.n_ctx positions. ArgumentError, DeviceError.
Placement place_layers(const GgufFile & file, const HParams & hp, const SharingPlan & plan, const ModelParams & params);

// Activations of a step and what ggml converts its inputs to: an estimate, rather too high.
int64_t activation_bytes(const HParams & hp, int64_t n_tokens);

// The first layer >= `first` from which on no head reads a source before it: there the scores of no head cross over.
int32_t attention_cut(const AttnTable & table, int32_t first);

}  // namespace pysa
