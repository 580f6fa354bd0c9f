// The softmax of a head over two parts, window and distance, each known by its maximum and its sum of exponentials; and the gate.
#pragma once

#include <algorithm>
#include <cmath>

#include "ops/cpu_kernels.h"

namespace pysa {

struct SoftmaxPart {
    float max = minus_infinity;
    float sum = 0.0f;  // of e^(score - max)
};

// What a weight e^(score - part's maximum) must be multiplied by to become a share of the whole.
struct SoftmaxJoin {
    float max = 0.0f;
    float inverse_sum = 0.0f;
    bool has_far = false;  // there is a distance, and the gate does not shut it out

    float factor(float part_max) const { return std::exp(part_max - max) * inverse_sum; }
};

inline SoftmaxJoin join_parts(SoftmaxPart near, SoftmaxPart far, float skip_gate) {
    SoftmaxJoin join;
    join.max = std::max(near.max, far.max);
    const float near_mass = near.sum > 0 ? near.sum * std::exp(near.max - join.max) : 0.0f;
    float far_mass = far.sum > 0 ? far.sum * std::exp(far.max - join.max) : 0.0f;
    const float share = near_mass / (near_mass + far_mass);
    if (skip_gate < 1.0f && share >= skip_gate) far_mass = 0.0f;
    join.has_far = far_mass > 0.0f;
    join.inverse_sum = 1.0f / (near_mass + far_mass);
    return join;
}

}  // namespace pysa
