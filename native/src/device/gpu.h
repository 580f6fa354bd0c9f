// A GPU of this machine: what ggml calls a device, and our own kernels for it where there are any. Found once per process.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "cuda/attn_call.h"
#include "device/proxy_backend.h"
#include "ggml-backend.h"
#include "pysa/device.h"

namespace pysa {

class Gpu {
  public:
    // The GPU of this name; of "auto", the one with most memory free, an integrated one last. Null for "cpu", and for "auto" where
    // there is none. DeviceError with the names there are.
    static const Gpu * find(const std::string & name);
    static const std::vector<std::unique_ptr<Gpu>> & all();

    Gpu(ggml_backend_dev_t device, const gpu::AttnKernels * kernels, StreamOf stream_of);

    bool is_chosen_by_name = false;  // never by "auto": it is there for tests

    const std::string & name() const { return name_; }
    DeviceInfo info() const;
    // Bytes that may still be taken of a device's memory, its reserve left alone.
    static int64_t room(ggml_backend_buffer_type_t type);
    // Memory that is left alone when weights and caches are placed: ggml's own working memory cannot fail without ending the process.
    static int64_t reserve(ggml_backend_buffer_type_t type);
    ggml_backend_buffer_type_t buffer_type() const { return ggml_backend_dev_buffer_type(device_); }
    // Null if there are none, or they are switched off by PYSA_GPU_KERNELS=0.
    const gpu::AttnKernels * kernels() const { return kernels_; }

    // Null if this build has code for the device, or why not; asking starts the device.
    const char * fault() const;

    // What runs graphs, nodes of our own among them. DeviceError.
    ggml_backend_t start() const;

  private:
    static const Gpu * best();

    ggml_backend_dev_t device_;
    const gpu::AttnKernels * kernels_;
    std::unique_ptr<ProxyDevice> proxy_;
    std::string name_;
};

}  // namespace pysa
