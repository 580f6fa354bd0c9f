// The fused attention's units on several threads, node by node as a graph runs them: for ThreadSanitizer (check_threads.sh), and
// every number must be that of one thread. Random rows; what they are does not matter.
#include <cstdio>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "ggml-backend.h"
#include "ops/cpu_decode.h"
#include "ops/cpu_prompt.h"

using namespace pysa;

namespace {

std::mt19937 bits{7};

float random_float() { return float(bits() >> 8) / 8388608.0f - 1.0f; }

void fill(ggml_tensor * tensor) {
    if (!tensor) return;
    std::vector<float> values(size_t(ggml_nelements(tensor)));
    for (float & value : values) value = random_float();
    ggml_quantize_chunk(tensor->type, values.data(), tensor->data, 0, ggml_nrows(tensor), tensor->ne[0], nullptr);
}

HParams make_hparams() {
    HParams hp;
    hp.n_layer = 4;
    hp.n_head = 6;
    hp.n_head_kv = 2;
    hp.n_embd_head_k = 64;
    hp.n_embd_head_v = 32;
    hp.kq_scale = 0.5f;
    return hp;
}

// Layer 0 owns, the others mix owners, followers of any earlier owner, and local heads.
SharingPlan make_plan(const HParams & hp, int32_t n_sink, int32_t n_recent, float skip_gate) {
    SharingPlan plan;
    plan.n_layer = hp.n_layer;
    plan.n_head = hp.n_head;
    plan.n_sink = n_sink;
    plan.n_recent = n_recent;
    plan.skip_gate = skip_gate;
    for (int32_t il = 0; il < hp.n_layer; ++il)
        for (int32_t h = 0; h < hp.n_head; ++h) {
            const int kind = il == 0 ? 0 : int(bits() % 4);
            const bool is_local = kind == 3 && n_recent > 0;
            plan.score_layer.push_back(is_local ? -1 : kind == 0 ? il : 0);
            plan.score_head.push_back(is_local ? -1 : kind == 0 ? h : int32_t(bits() % uint32_t(hp.n_head)));
        }
    return plan;
}

template <class Node> void run_node(int n_threads, Node && node) {
    std::vector<std::thread> threads;
    for (int i = 0; i < n_threads; ++i) threads.emplace_back([&node, i] { node(i); });
    for (std::thread & thread : threads) thread.join();
}

struct Case {
    const char * name;
    int32_t n_sink, n_recent;
    float skip_gate, v_skip;
    int64_t n_past, n_tokens;
};

// The results of all layers, one after the other.
std::vector<float> attend(const Case & c, const AttnTable & table, const SplitCache & cache,
                          const std::vector<AttnInputs> & inputs, ggml_tensor * dst, int n_threads) {
    DecodeAttention decode(table, cache, cpu_kernels(), n_threads, c.v_skip);
    PromptAttention prompt(table, cache, cpu_kernels(), n_threads);
    std::vector<float> results;
    for (int repeat = 0; repeat < 2; ++repeat) {
        c.n_tokens == 1 ? decode.begin(c.n_past) : prompt.begin({c.n_past, c.n_tokens});
        for (const AttnLayer & layer : table.layers) {
            const AttnInputs & in = inputs[size_t(layer.il)];
            if (c.n_tokens == 1) {
                run_node(n_threads, [&](int i) { decode.score(layer, in, i); });
                run_node(n_threads, [&](int i) { decode.weigh(layer, in, dst, i); });
            } else {
                run_node(n_threads, [&](int i) { prompt.run(layer, in, dst, i); });
            }
            const float * data = static_cast<const float *>(dst->data);
            results.insert(results.end(), data, data + ggml_nelements(dst));
        }
    }
    return results;
}

bool check(const Case & c) {
    const HParams hp = make_hparams();
    const SharingPlan plan = make_plan(hp, c.n_sink, c.n_recent, c.skip_gate);
    const AttnTable table = make_attn_table(plan, hp);
    SplitCache cache(hp, make_cache_layout(plan, hp, 0), {GGML_TYPE_F16, GGML_TYPE_Q8_0},
                     ggml_backend_cpu_buffer_type(), 8192);
    cache.reserve(c.n_past + c.n_tokens);
    for (int32_t il = 0; il < hp.n_layer; ++il) {
        const LayerCache & layer = cache.layer(il);
        for (ggml_tensor * tensor : {layer.k_full, layer.v_full, layer.k_ring, layer.v_ring}) fill(tensor);
    }
    cache.commit(c.n_past);

    ggml_context * ctx = ggml_init({size_t(64) << 20, nullptr, false});
    std::vector<AttnInputs> inputs(size_t(hp.n_layer));
    for (AttnInputs & in : inputs) {
        in.q = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, hp.n_embd_head_k, hp.n_head, c.n_tokens);
        in.k_cur = ggml_new_tensor_3d(ctx, GGML_TYPE_F16, hp.n_embd_head_k, c.n_tokens, hp.n_head_kv);
        in.v_cur = ggml_new_tensor_3d(ctx, GGML_TYPE_Q8_0, hp.n_embd_head_v, c.n_tokens, hp.n_head_kv);
        for (ggml_tensor * tensor : {in.q, in.k_cur, in.v_cur}) fill(tensor);
    }
    ggml_tensor * dst = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, int64_t(hp.n_embd_head_v) * hp.n_head, c.n_tokens);
    const std::vector<float> single = attend(c, table, cache, inputs, dst, 1);
    const std::vector<float> several = attend(c, table, cache, inputs, dst, 4);
    ggml_free(ctx);
    const bool is_equal = std::memcmp(single.data(), several.data(), single.size() * sizeof(float)) == 0;
    std::printf("%s: %s\n", c.name, is_equal ? "ok" : "4 threads differ from 1");
    return is_equal;
}

}  // namespace

int main() {
    const Case cases[] = {
        {"one token, window, values left out", 5, 60, 1.0f, 0.02f, 3000, 1},
        {"one token, gate", 5, 60, 0.3f, 0.02f, 1500, 1},
        {"one token, no window", 0, 0, 1.0f, 0.0f, 5000, 1},
        {"prompt, window", 5, 60, 1.0f, 0.0f, 700, 75},
        {"prompt, gate", 5, 60, 0.3f, 0.0f, 700, 75},
        {"prompt, no window", 0, 0, 1.0f, 0.0f, 500, 130},
    };
    bool all = true;
    for (const Case & c : cases) all = check(c) && all;
    return all ? 0 : 1;
}
