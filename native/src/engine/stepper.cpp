#include "engine/stepper.h"

#include <utility>

#include "pysa/error.h"

namespace pysa {

Stepper::Stepper(const HParams & hp, const ModelWeights & weights, Compute & compute, size_t n_lanes)
    : compute_(compute), builder_(hp, weights),
      memory_bytes_(2 * step_graph_nodes(hp, n_lanes) * ggml_tensor_overhead() +
                    ggml_graph_overhead_custom(step_graph_nodes(hp, n_lanes), false)),
      memory_(new uint8_t[memory_bytes_]) {}

const float * Stepper::step(const std::vector<StepLane> & lanes, StepOut out, const int32_t * tokens,
                            const Interrupt & interrupt) {
    if (interrupt && interrupt()) throw Interrupted("evaluation: interrupted");
    StepGraph graph = std::exchange(graph_, {});  // kept for the next step only if this one succeeds
    if (graph.gf && builder_.can_reuse(lanes, out)) {
        builder_.reuse(lanes);
    } else {
        ctx_.reset(ggml_init({memory_bytes_, memory_.get(), true}));
        graph = builder_.build(ctx_.get(), lanes, out);
        compute_.allocate(graph.gf, graph.on_gpu);
    }
    builder_.set_inputs(tokens);
    compute_.run(graph.gf, interrupt);
    graph_ = std::move(graph);
    if (!graph_.out) return nullptr;
    if (ggml_backend_buffer_is_host(graph_.out->buffer)) return ggml_get_data_f32(graph_.out);
    rows_.resize(size_t(ggml_nelements(graph_.out)));
    ggml_backend_tensor_get(graph_.out, rows_.data(), 0, ggml_nbytes(graph_.out));
    return rows_.data();
}

}  // namespace pysa
