// The sharing plan: which head scores its own distant tokens and which reuses another head's scores.
// docs/format.md is the specification; pysa/plan.py is the same data in Python.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "pysa/error.h"
#include "pysa/hparams.h"

namespace pysa {

enum class Distant { scores, keys };
enum class HeadKind { owner, follower, local };

struct SharingPlan {
    uint32_t version = 1;
    bool enabled = true;
    std::string method = "custom";
    Distant distant = Distant::scores;
    int32_t n_sink = 0;
    int32_t n_recent = 0;
    int32_t n_layer = 0;
    int32_t n_head = 0;
    std::vector<int32_t> score_layer;  // [n_head, n_layer]
    std::vector<int32_t> score_head;   // [n_head, n_layer]
    std::vector<float> mass_bias;      // [n_head, n_layer] or empty: all 0
    float skip_gate = 1.0f;

    int32_t source_layer(int32_t il, int32_t h) const { return score_layer[size_t(il) * n_head + h]; }
    int32_t source_head(int32_t il, int32_t h) const { return score_head[size_t(il) * n_head + h]; }
    float bias(int32_t il, int32_t h) const { return mass_bias.empty() ? 0.0f : mass_bias[size_t(il) * n_head + h]; }
    HeadKind kind(int32_t il, int32_t h) const {
        const int32_t source = source_layer(il, h);
        if (source < 0) return HeadKind::local;
        return source == il && source_head(il, h) == h ? HeadKind::owner : HeadKind::follower;
    }
};

// Every head an owner: what a file without a plan, or with `pysa.enabled` false, runs.
SharingPlan dense_plan(const HParams & hp);

// Adds every rule of docs/format.md that the plan breaks; reads nothing out of bounds whatever the plan holds.
void check_plan(const SharingPlan & plan, const HParams & hp, Faults & faults);

}  // namespace pysa
