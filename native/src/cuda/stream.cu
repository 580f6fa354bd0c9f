// Compiled with ggml-cuda's own definitions (native/CMakeLists.txt), which decide how its context is laid out.
#include "common.cuh"
#include "cuda/stream.h"
#include "ggml-backend-impl.h"

namespace pysa {

namespace {

// ggml's kernels are compiled for the same architectures.
__global__ void any_kernel() {}

}  // namespace

const char * cuda_device_fault(int device) {
    cudaFuncAttributes attributes;
    ggml_cuda_set_device(device);
    const cudaError_t code = cudaFuncGetAttributes(&attributes, any_kernel);
    if (code == cudaSuccess) return nullptr;
    (void)cudaGetLastError();
    return cudaGetErrorString(code);
}

void * cuda_stream_of(ggml_backend_t backend) {
    auto * context = static_cast<ggml_backend_cuda_context *>(backend->context);
    ggml_cuda_set_device(context->device);
    return context->stream();
}

}  // namespace pysa
