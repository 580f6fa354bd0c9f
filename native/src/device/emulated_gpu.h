// A GPU that is not there: graphs are computed by ggml's CPU backend, our kernels by the emulator, and its memory is apart from the
// host's and limited. For tests of everything that a GPU needs but the GPU; in builds with PYSA_TESTS only.
#pragma once

#include "ggml-backend.h"

namespace pysa {

// EMU0, with as many MiB of memory as PYSA_EMULATED_GPU says. Null if that is not set.
ggml_backend_dev_t emulated_device();

}  // namespace pysa
