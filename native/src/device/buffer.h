// Buffers of ggml's backends, and what a forked child must not do with them: a GPU's driver does not survive a fork.
#pragma once

#include <memory>

#include "base/process_id.h"
#include "ggml-backend.h"

namespace pysa {

struct BufferDeleter {
    void operator()(ggml_backend_buffer * buffer) const {
        if (ggml_backend_buffer_is_host(buffer) || is_backends_process()) ggml_backend_buffer_free(buffer);
    }
};

using BufferPtr = std::unique_ptr<ggml_backend_buffer, BufferDeleter>;

}  // namespace pysa
