// How fast a device copies its own memory: what kernels that are bound by memory are measured against.
#include <algorithm>
#include <chrono>
#include <memory>

#include "device/gpu.h"
#include "pysa/error.h"

namespace pysa {

namespace {

using Context = std::unique_ptr<ggml_context, decltype(&ggml_free)>;
using Buffer = std::unique_ptr<ggml_backend_buffer, decltype(&ggml_backend_buffer_free)>;

}  // namespace

double copy_bandwidth(const std::string & device, int64_t n_bytes, int32_t repeats) {
    if (n_bytes < 1 << 20 || repeats < 1)
        throw ArgumentError("copy_bandwidth: expected at least 1 MiB and one pass, got " + std::to_string(n_bytes) +
                            " bytes and " + std::to_string(repeats));
    const Gpu * gpu = Gpu::find(device);
    if (!gpu) throw ArgumentError("copy_bandwidth: device: expected a GPU, got \"" + device + "\"");
    Context ctx(ggml_init({2 * ggml_tensor_overhead(), nullptr, true}), ggml_free);
    ggml_tensor * from = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_I8, n_bytes);
    ggml_tensor * to = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_I8, n_bytes);
    if (2 * n_bytes > Gpu::room(gpu->buffer_type()))
        throw DeviceError(gpu->name() + ": out of memory: no room for two times " + std::to_string(n_bytes) + " bytes");
    Buffer buffer(ggml_backend_alloc_ctx_tensors_from_buft(ctx.get(), gpu->buffer_type()), ggml_backend_buffer_free);
    if (!buffer)
        throw DeviceError(gpu->name() + ": out of memory: cannot hold " + std::to_string(2 * n_bytes) + " bytes");
    ggml_backend_tensor_memset(from, 1, 0, size_t(n_bytes));
    double best_s = 1e30;
    for (int32_t i = 0; i <= repeats; ++i) {  // the first one warms up
        const auto begin = std::chrono::steady_clock::now();
        ggml_backend_tensor_copy(from, to);
        const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
        if (i > 0) best_s = std::min(best_s, taken.count());
    }
    return 2.0 * double(n_bytes) / best_s / 1e9;
}

}  // namespace pysa
