#include "kv/cache_types.h"

#include "pysa/error.h"

namespace pysa {

namespace {

ggml_type parse(const char * what, const std::string & name, int64_t n_embd_head) {
    for (ggml_type type : {GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0}) {
        if (name != ggml_type_name(type)) continue;
        if (n_embd_head % ggml_blck_size(type) != 0)
            throw ArgumentError(std::string(what) + ": expected a head size that is a multiple of " +
                                std::to_string(ggml_blck_size(type)) + " for " + name + ", got " +
                                std::to_string(n_embd_head) + "; choose f16");
        return type;
    }
    throw ArgumentError(std::string(what) + ": expected one of f32, f16, bf16, q8_0, q4_0, got \"" + name + "\"");
}

}  // namespace

CacheTypes parse_cache_types(const std::string & type_k, const std::string & type_v, const HParams & hp) {
    return {parse("type_k", type_k, hp.n_embd_head_k), parse("type_v", type_v, hp.n_embd_head_v)};
}

}  // namespace pysa
