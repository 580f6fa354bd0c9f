// The hyper-parameters of one model, read from its GGUF and validated (src/file/read_hparams.cpp).
#pragma once

#include <cstdint>
#include <string>

namespace pysa {

enum class RopeKind { none, norm, neox };  // norm: adjacent pairs; neox: halves

struct RopeParams {
    RopeKind kind = RopeKind::none;
    int32_t n_rot = 0;  // leading dimensions of a head that rotate
    int32_t n_ctx_orig = 0;
    float freq_base = 10000.0f;
    float freq_scale = 1.0f;
    float ext_factor = 0.0f;
    float attn_factor = 1.0f;
    float beta_fast = 32.0f;
    float beta_slow = 1.0f;
};

struct HParams {
    std::string arch;
    int32_t n_layer = 0;
    int32_t n_ctx_train = 0;
    int32_t n_embd = 0;
    int32_t n_vocab = 0;
    int32_t n_head = 0;
    int32_t n_head_kv = 0;
    int32_t n_embd_head_k = 0;
    int32_t n_embd_head_v = 0;
    int32_t n_ff = 0;
    float norm_eps = 0.0f;
    float kq_scale = 0.0f;  // applied to q.k
    RopeParams rope;

    int32_t n_gqa() const { return n_head / n_head_kv; }  // query heads per KV head
};

}  // namespace pysa
