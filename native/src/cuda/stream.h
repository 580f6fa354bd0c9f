// The stream in which ggml's CUDA backend works, so that our kernels queue up with its own.
#pragma once

#include "ggml-backend.h"

namespace pysa {

// A cudaStream_t; its device is the current one afterwards.
void * cuda_stream_of(ggml_backend_t backend);

// Null if this build has code for a device, or why not.
const char * cuda_device_fault(int device);

}  // namespace pysa
