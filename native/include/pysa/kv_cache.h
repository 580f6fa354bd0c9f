// What a caller may choose about a session, what its cache costs, and what it leaves out.
#pragma once

#include <cstdint>
#include <string>

namespace pysa {

struct SessionParams {
    int64_t n_ctx = 0;           // positions; 0: the model's own context length
    std::string type_k = "f16";  // f32, f16, bf16, q8_0, q4_0
    std::string type_v = "f16";
    int32_t n_ubatch = 512;          // tokens evaluated together, at most
    std::string attention = "auto";  // auto, fused, composed
    int32_t n_slack = 0;             // window rows kept beyond the need: so many tokens can be truncated for free
    int64_t distant_budget_bytes = 256ll << 20;  // room for scores shared between layers; the ubatch shrinks to fit it
    bool kv_offload =
        true;              // the cache of layers on a GPU is there too; false: with the host, which computes attention
    float v_skip = 3e-4f;  // largest share of a head's distant weights whose values need not be read; 0: exact
};

// Bytes, by part, that a session holds now.
struct MemoryReport {
    int64_t n_past = 0;         // positions held
    int64_t n_rows = 0;         // positions that full tensors have room for
    int64_t n_window_rows = 0;  // positions that windows have room for
    int64_t keys = 0;           // full rows
    int64_t values = 0;
    int64_t window_keys = 0;
    int64_t window_values = 0;
    int64_t dense = 0;        // what keys and values of n_rows positions cost without a plan
    int64_t checkpoints = 0;  // window rows kept because a checkpoint needs them
    int64_t attention = 0;    // shared scores and scratch, held between steps
    int64_t compute = 0;      // activations of the largest step so far
    int64_t device = 0;       // cache bytes that are on a GPU
    int64_t cache_total() const { return keys + values + window_keys + window_values; }
};

// What leaving out negligible values came to since the session began or was reset.
struct SkipReport {
    int64_t n_values = 0;          // distant value rows in reach of a step, over layers and KV heads
    int64_t n_values_read = 0;     // of which were read
    double dropped_mass_max = 0;   // largest share of a head's distant weights left out in a step; at most v_skip
    double dropped_mass_mean = 0;  // mean over heads and steps
};

}  // namespace pysa
