// A stretch of memory on a backend's device, for what is no tensor of a graph.
#pragma once

#include <cstddef>
#include <memory>

#include "device/buffer.h"

namespace pysa {

class DeviceMemory {
  public:
    DeviceMemory() = default;
    // data() is null if it could not be had; else all bytes are 0.
    DeviceMemory(ggml_backend_buffer_type_t type, size_t size);

    char * data() const { return buffer_ ? static_cast<char *>(bytes_->data) : nullptr; }
    size_t size() const { return size_; }
    void set(size_t offset, const void * data, size_t size) { ggml_backend_tensor_set(bytes_, data, offset, size); }
    void get(size_t offset, void * data, size_t size) const { ggml_backend_tensor_get(bytes_, data, offset, size); }
    void clear(size_t offset, size_t size) { ggml_backend_tensor_memset(bytes_, 0, offset, size); }

  private:
    std::unique_ptr<ggml_context, decltype(&ggml_free)> ctx_{nullptr, ggml_free};
    BufferPtr buffer_;
    ggml_tensor * bytes_ = nullptr;  // i8
    size_t size_ = 0;
};

}  // namespace pysa
