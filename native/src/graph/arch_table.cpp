#include "graph/arch_table.h"

#include <algorithm>
#include <iterator>

#include "pysa/error.h"

namespace pysa {

namespace {

constexpr Presence required = Presence::required, optional = Presence::optional, absent = Presence::absent;

// clang-format off
constexpr ArchSpec table[] = {
    // name    qkv_bias  output_bias qk_norm   ffn_bias  rope_freqs
    {"llama",  optional, optional,   absent,   optional, optional},
    {"qwen2",  required, absent,     absent,   absent,   absent},
    {"qwen3",  absent,   absent,     required, absent,   absent},
};
// clang-format on

}  // namespace

const ArchSpec & find_arch(const std::string & name) {
    const auto found =
        std::find_if(std::begin(table), std::end(table), [&](const ArchSpec & arch) { return name == arch.name; });
    if (found != std::end(table)) return *found;
    std::string known;
    for (const ArchSpec & arch : table) known += std::string(known.empty() ? "" : ", ") + arch.name;
    throw UnsupportedModelError("general.architecture: expected one of " + known + ", got \"" + name + "\"");
}

std::vector<TensorSpec> tensor_specs(const ArchSpec & arch, const HParams & hp, ModelWeights & w) {
    const int64_t n_embd = hp.n_embd, n_ff = hp.n_ff;
    const int64_t n_q = int64_t(hp.n_embd_head_k) * hp.n_head, n_k = int64_t(hp.n_embd_head_k) * hp.n_head_kv;
    const int64_t n_v = int64_t(hp.n_embd_head_v) * hp.n_head_kv, n_o = int64_t(hp.n_embd_head_v) * hp.n_head;
    const auto mul = WeightUse::multiply, elem = WeightUse::elementwise;

    w.layers.resize(hp.n_layer);
    std::vector<TensorSpec> specs = {
        {"token_embd.weight", {n_embd, hp.n_vocab}, required, WeightUse::lookup, &w.token_embd},
        {"rope_freqs.weight", {hp.rope.n_rot / 2}, arch.rope_freqs, elem, &w.rope_freqs},
        {"output_norm.weight", {n_embd}, required, elem, &w.output_norm, false, hp.n_layer},
        {"output.weight", {n_embd, hp.n_vocab}, optional, mul, &w.output, false, hp.n_layer},
    };
    for (int32_t il = 0; il < hp.n_layer; ++il) {
        LayerWeights & l = w.layers[il];
        auto add = [&](const char * name, std::vector<int64_t> shape, Presence presence, WeightUse use,
                       ggml_tensor ** place, bool scores_only = false) {
            specs.push_back(
                {"blk." + std::to_string(il) + "." + name, std::move(shape), presence, use, place, scores_only, il});
        };
        add("attn_norm.weight", {n_embd}, required, elem, &l.attn_norm);
        add("attn_q.weight", {n_embd, n_q}, required, mul, &l.wq, true);
        add("attn_q.bias", {n_q}, arch.qkv_bias, elem, &l.bq, true);
        add("attn_k.weight", {n_embd, n_k}, required, mul, &l.wk, true);
        add("attn_k.bias", {n_k}, arch.qkv_bias, elem, &l.bk, true);
        add("attn_v.weight", {n_embd, n_v}, required, mul, &l.wv);
        add("attn_v.bias", {n_v}, arch.qkv_bias, elem, &l.bv);
        add("attn_q_norm.weight", {hp.n_embd_head_k}, arch.qk_norm, elem, &l.q_norm, true);
        add("attn_k_norm.weight", {hp.n_embd_head_k}, arch.qk_norm, elem, &l.k_norm, true);
        add("attn_output.weight", {n_o, n_embd}, required, mul, &l.wo);
        add("attn_output.bias", {n_embd}, arch.output_bias, elem, &l.bo);
        add("ffn_norm.weight", {n_embd}, required, elem, &l.ffn_norm);
        add("ffn_gate.weight", {n_embd, n_ff}, required, mul, &l.ffn_gate);
        add("ffn_gate.bias", {n_ff}, arch.ffn_bias, elem, &l.ffn_gate_b);
        add("ffn_up.weight", {n_embd, n_ff}, required, mul, &l.ffn_up);
        add("ffn_up.bias", {n_ff}, arch.ffn_bias, elem, &l.ffn_up_b);
        add("ffn_down.weight", {n_ff, n_embd}, required, mul, &l.ffn_down);
        add("ffn_down.bias", {n_embd}, arch.ffn_bias, elem, &l.ffn_down_b);
    }
    return specs;
}

}  // namespace pysa
