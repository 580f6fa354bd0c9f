// Steps: build a graph or take the last one again, run it, hand out its rows. Used by a session for itself and by a batch for several.
// It changes no cache position: its caller commits.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "engine/compute.h"
#include "graph/step_graph.h"

namespace pysa {

class Stepper {
  public:
    using Interrupt = std::function<bool()>;

    // `compute` must have room for step_graph_nodes(hp, n_lanes) nodes and as many leafs.
    Stepper(const HParams & hp, const ModelWeights & weights, Compute & compute, size_t n_lanes);

    // Evaluates the lanes' tokens, which follow one another. The rows wanted, f32 [n_vocab or n_embd, n_out], are valid until the next
    // step; null if none were. DeviceError, Interrupted.
    const float * step(const std::vector<StepLane> & lanes, StepOut out, const int32_t * tokens,
                       const Interrupt & interrupt);

  private:
    Compute & compute_;
    StepGraphBuilder builder_;
    // The graph's tensors are made here. Not a vector: pages that are never touched take no memory.
    size_t memory_bytes_ = 0;
    std::unique_ptr<uint8_t[]> memory_;
    std::unique_ptr<ggml_context, decltype(&ggml_free)> ctx_{nullptr, ggml_free};
    std::vector<float> rows_;  // from a GPU
    StepGraph graph_;          // of the last step, still allocated: the next one of the same shape takes it again
};

}  // namespace pysa
