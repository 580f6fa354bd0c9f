// GPUs on which models can be kept.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace pysa {

struct DeviceInfo {
    std::string name;         // CUDA0, Vulkan0
    std::string description;  // the card
    std::string attention;    // fused: there are kernels for it; composed
    bool is_integrated = false;
    int64_t total_bytes = 0;
    int64_t free_bytes = 0;  // now, as the driver says
};

// The GPUs that this build can use, on this machine.
std::vector<DeviceInfo> list_devices();

// What backends this build has besides the CPU, and why none of them found a GPU, if so: for messages.
std::string device_support();

// 1e9 bytes per second, read and written, with which a GPU copies n_bytes of its memory: the best of `repeats` passes. ArgumentError,
// DeviceError.
double copy_bandwidth(const std::string & device, int64_t n_bytes, int32_t repeats);

// Where CUDA's libraries may be besides the system's folders. Before anything else is asked of devices.
void add_device_library_dirs(const std::vector<std::string> & dirs);

}  // namespace pysa
