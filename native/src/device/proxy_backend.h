// Runs nodes of our own inside a graph that another backend computes: a backend that passes everything on to that one, but splits
// a graph at our nodes. All work of a graph is in one stream, so nothing waits for the host between its nodes, and ggml is not patched.
#pragma once

#include <memory>

#include "ggml-backend.h"

namespace pysa {

// A node that the engine computes itself, on the device that the proxy stands for.
class GpuNode {
  public:
    virtual ~GpuNode() = default;
    // Starts the work in a stream of the device. Null, or what went wrong.
    virtual const char * launch(ggml_tensor * dst, void * stream) = 0;
};

// A tensor f32 [ne0, ne1] that `node` fills; the node must live as long as the graph.
ggml_tensor * add_gpu_node(ggml_context * ctx, int64_t ne0, int64_t ne1, ggml_tensor ** args, int n_args,
                           GpuNode * node);
// Null if the tensor is not of add_gpu_node().
GpuNode * gpu_node_of(const ggml_tensor * tensor);

// The stream in which a backend works; null where it has none to give.
using StreamOf = void * (*)(ggml_backend_t backend);

// Whether this version of ggml is one that the proxy was written for; without it there are no nodes of our own.
bool proxy_is_supported();

class ProxyDevice {
  public:
    ProxyDevice(ggml_backend_dev_t inner, StreamOf stream_of);
    ~ProxyDevice();
    ggml_backend_t start() const;  // null if the inner device cannot be started

    struct Impl;

  private:
    std::unique_ptr<Impl> impl_;
};

}  // namespace pysa
