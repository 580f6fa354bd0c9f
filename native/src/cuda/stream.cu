// Compiled with ggml-cuda's own definitions (native/CMakeLists.txt), which decide how its context is laid out.
#include "common.cuh"
#include "cuda/stream.h"
#include "ggml-backend-impl.h"

namespace pysa {

void * cuda_stream_of(ggml_backend_t backend) {
    auto * context = static_cast<ggml_backend_cuda_context *>(backend->context);
    ggml_cuda_set_device(context->device);
    return context->stream();
}

}  // namespace pysa
