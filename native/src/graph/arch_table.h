// The architectures, one row of features each, and the tensors a row asks for. Adding an architecture means adding a row
// here and one in src/file/read_hparams.cpp.
#pragma once

#include <string>
#include <vector>

#include "ggml.h"
#include "pysa/hparams.h"

namespace pysa {

enum class Presence { required, optional, absent };

struct ArchSpec {
    const char * name;
    Presence qkv_bias;     // attn_{q,k,v}.bias
    Presence output_bias;  // attn_output.bias
    Presence qk_norm;      // per-head RMS norm of q and k before RoPE
    Presence ffn_bias;
    Presence rope_freqs;  // rope_freqs.weight divides the rotary frequencies
};

const ArchSpec & find_arch(const std::string & name);  // UnsupportedModelError with the list

// The tensors of one layer; null where the architecture or the file has none. Shapes in ggml order.
struct LayerWeights {
    ggml_tensor * attn_norm = nullptr;                            // [n_embd]
    ggml_tensor *wq = nullptr, *bq = nullptr, *q_norm = nullptr;  // [n_embd, n_embd_head_k * n_head]
    ggml_tensor *wk = nullptr, *bk = nullptr, *k_norm = nullptr;  // [n_embd, n_embd_head_k * n_head_kv]
    ggml_tensor *wv = nullptr, *bv = nullptr;                     // [n_embd, n_embd_head_v * n_head_kv]
    ggml_tensor *wo = nullptr, *bo = nullptr;                     // [n_embd_head_v * n_head, n_embd]
    ggml_tensor * ffn_norm = nullptr;                             // [n_embd]
    ggml_tensor *ffn_gate = nullptr, *ffn_gate_b = nullptr;       // [n_embd, n_ff]
    ggml_tensor *ffn_up = nullptr, *ffn_up_b = nullptr;           // [n_embd, n_ff]
    ggml_tensor *ffn_down = nullptr, *ffn_down_b = nullptr;       // [n_ff, n_embd]
};

struct ModelWeights {
    ggml_tensor * token_embd = nullptr;      // [n_embd, n_vocab]
    ggml_tensor * rope_freqs = nullptr;      // [n_rot / 2]
    ggml_tensor * rope_freqs_gpu = nullptr;  // the same for layers on a GPU
    ggml_tensor * output_norm = nullptr;     // [n_embd]
    ggml_tensor * output = nullptr;          // [n_embd, n_vocab]; token_embd's data where the file ties them
    std::vector<LayerWeights> layers;
};

// How a tensor is used decides which memory it may live in.
enum class WeightUse { multiply, lookup, elementwise };

struct TensorSpec {
    std::string name;
    std::vector<int64_t> shape;
    Presence presence;
    WeightUse use;
    ggml_tensor ** place;      // in ModelWeights
    bool scores_only = false;  // used for q and k alone: a pruned file may lack it
    int32_t il = -1;           // n_layer: of the output; -1: of no layer, it stays with the CPU
};

// Every tensor the architecture can have. `weights.layers` is sized here; the places point into `weights`.
std::vector<TensorSpec> tensor_specs(const ArchSpec & arch, const HParams & hp, ModelWeights & weights);

}  // namespace pysa
