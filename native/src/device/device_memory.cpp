#include "device/device_memory.h"

#include "device/gpu.h"

namespace pysa {

DeviceMemory::DeviceMemory(ggml_backend_buffer_type_t type, size_t size) {
    if (size == 0 || int64_t(size) > Gpu::room(type)) return;
    ctx_.reset(ggml_init({ggml_tensor_overhead(), nullptr, true}));
    if (!ctx_) return;
    bytes_ = ggml_new_tensor_1d(ctx_.get(), GGML_TYPE_I8, int64_t(size));
    buffer_.reset(ggml_backend_alloc_ctx_tensors_from_buft(ctx_.get(), type));
    if (!buffer_) return;
    size_ = size;
    clear(0, size);
}

}  // namespace pysa
