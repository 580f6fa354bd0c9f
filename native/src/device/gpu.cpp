#include "device/gpu.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <tuple>

#include "base/log.h"
#include "base/process_id.h"
#include "pysa/error.h"
#ifdef PYSA_CUDA
#include "cuda/lazy_libraries.h"
#include "cuda/stream.h"
#endif
#ifdef PYSA_EMULATOR
#include "device/emulated_gpu.h"
#endif

namespace pysa {

namespace {

[[maybe_unused]] bool kernels_are_wanted() {
    const char * value = std::getenv("PYSA_GPU_KERNELS");
    return proxy_is_supported() && !(value && std::strcmp(value, "0") == 0);
}

bool is_gpu(ggml_backend_dev_t device) {
    const auto type = ggml_backend_dev_type(device);
    return type == GGML_BACKEND_DEVICE_TYPE_GPU || type == GGML_BACKEND_DEVICE_TYPE_IGPU;
}

int64_t reserve_of(size_t total) { return std::min<int64_t>(256ll << 20, int64_t(total) / 16); }

#ifdef PYSA_CUDA
bool is_cuda(ggml_backend_dev_t device) {
    return std::strcmp(ggml_backend_reg_name(ggml_backend_dev_backend_reg(device)), "CUDA") == 0;
}
#endif

std::unique_ptr<Gpu> make_gpu(ggml_backend_dev_t device) {
    const gpu::AttnKernels * kernels = nullptr;
    StreamOf stream_of = nullptr;
#ifdef PYSA_CUDA
    if (is_cuda(device)) {
        if (!missing_cuda_library().empty()) return nullptr;  // its functions would end the process
        if (kernels_are_wanted()) kernels = &gpu::cuda_attn_kernels(), stream_of = &cuda_stream_of;
    }
#endif
    return std::make_unique<Gpu>(device, kernels, stream_of);
}

}  // namespace

Gpu::Gpu(ggml_backend_dev_t device, const gpu::AttnKernels * kernels, StreamOf stream_of)
    : device_(device), kernels_(kernels), name_(ggml_backend_dev_name(device)) {
    if (kernels_) proxy_ = std::make_unique<ProxyDevice>(device, stream_of);
}

const std::vector<std::unique_ptr<Gpu>> & Gpu::all() {
    static const std::vector<std::unique_ptr<Gpu>> none;
    if (!is_backends_process()) return none;  // a forked child, in which a driver would fail
    static const std::vector<std::unique_ptr<Gpu>> gpus = [] {
        init_logging();
        std::vector<std::unique_ptr<Gpu>> found;
        for (size_t i = 0; i < ggml_backend_dev_count(); ++i) {
            ggml_backend_dev_t device = ggml_backend_dev_get(i);
            if (!is_gpu(device)) continue;
            if (std::unique_ptr<Gpu> gpu = make_gpu(device)) found.push_back(std::move(gpu));
        }
#ifdef PYSA_EMULATOR
        if (ggml_backend_dev_t device = emulated_device()) {
            const gpu::AttnKernels * kernels = kernels_are_wanted() ? &gpu::emulated_attn_kernels() : nullptr;
            found.push_back(std::make_unique<Gpu>(device, kernels, nullptr));
            found.back()->is_chosen_by_name = true;
        }
#endif
        return found;
    }();
    return gpus;
}

// Most memory free, an integrated one last. A single one is not asked: asking starts a card.
const Gpu * Gpu::best() {
    std::vector<const Gpu *> usable;
    for (const auto & gpu : all())
        if (!gpu->is_chosen_by_name) usable.push_back(gpu.get());
    std::vector<std::tuple<bool, int64_t, const Gpu *>> ranked;
    for (const Gpu * gpu : usable) {
        const DeviceInfo info = usable.size() > 1 ? gpu->info() : DeviceInfo();
        ranked.emplace_back(!info.is_integrated, info.free_bytes, gpu);
    }
    std::sort(ranked.rbegin(), ranked.rend());
    for (const auto & candidate : ranked)
        if (!std::get<2>(candidate)->fault()) return std::get<2>(candidate);
    return nullptr;
}

const Gpu * Gpu::find(const std::string & name) {
    if (name == "cpu") return nullptr;
    if (name == "auto") return best();
    std::string names = "auto, cpu";
    for (const auto & gpu : all()) {
        if (gpu->name() == name) {
            if (const char * why = gpu->fault())
                throw DeviceError("device: " + name + ": expected a card that this build has code for, got " + why +
                                  "; build with PYSA_CUDA_ARCHITECTURES for it, or choose cpu");
            return gpu.get();
        }
        names += ", " + gpu->name();
    }
    const std::string why = device_support();
    throw DeviceError("device: expected one of " + names + ", got \"" + name + "\"" + (why.empty() ? "" : "; " + why));
}

DeviceInfo Gpu::info() const {
    DeviceInfo info;
    info.name = name_;
    info.description = ggml_backend_dev_description(device_);
    info.attention = kernels_ ? "fused" : "composed";
    info.is_integrated = ggml_backend_dev_type(device_) == GGML_BACKEND_DEVICE_TYPE_IGPU;
    size_t free = 0, total = 0;
    ggml_backend_dev_memory(device_, &free, &total);
    info.free_bytes = int64_t(free);
    info.total_bytes = int64_t(total);
    return info;
}

int64_t Gpu::room(ggml_backend_buffer_type_t type) {
    size_t free = 0, total = 0;
    ggml_backend_dev_memory(ggml_backend_buft_get_device(type), &free, &total);
    return int64_t(free) - reserve_of(total);
}

int64_t Gpu::reserve(ggml_backend_buffer_type_t type) {
    size_t free = 0, total = 0;
    ggml_backend_dev_memory(ggml_backend_buft_get_device(type), &free, &total);
    return reserve_of(total);
}

const char * Gpu::fault() const {
#ifdef PYSA_CUDA
    if (is_cuda(device_)) return cuda_device_fault(std::atoi(name_.c_str() + std::strlen("CUDA")));
#endif
    return nullptr;
}

ggml_backend_t Gpu::start() const {
    ggml_backend_t backend = proxy_ ? proxy_->start() : ggml_backend_dev_init(device_, nullptr);
    if (!backend) throw DeviceError(name_ + ": cannot be started: " + take_logged_errors());
    return backend;
}

std::vector<DeviceInfo> list_devices() {
    std::vector<DeviceInfo> infos;
    for (const auto & gpu : Gpu::all()) infos.push_back(gpu->info());
    return infos;
}

std::string device_support() {
    for (const auto & gpu : Gpu::all())
        if (!gpu->is_chosen_by_name) return "";
    if (!is_backends_process()) return "a forked process cannot use a GPU; start processes with the method \"spawn\"";
#ifdef PYSA_CUDA
    const std::string missing = missing_cuda_library();
    return missing.empty() ? "this build has CUDA, but found no GPU that it has code for"
                           : "this build has CUDA, but cannot use it: " + missing;
#elif defined(PYSA_VULKAN)
    return "this build has Vulkan, but found no GPU";
#else
    return "this build has no GPU backend; build with -C cmake.define.PYSA_CUDA=ON, or PYSA_VULKAN=ON";
#endif
}

void add_device_library_dirs(const std::vector<std::string> & dirs) {
#ifdef PYSA_CUDA
    add_cuda_library_dirs(dirs);
#else
    (void)dirs;
#endif
}

}  // namespace pysa
