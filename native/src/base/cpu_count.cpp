#include "base/cpu_count.h"

#include <algorithm>
#include <fstream>
#include <set>
#include <string>
#include <thread>

#ifdef __linux__
#include <sched.h>
#endif

namespace pysa {

int32_t physical_cores() {
#ifdef __linux__
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof(allowed), &allowed) == 0) {
        std::set<std::string> cores;  // hyper-threads of one core name the same siblings
        for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
            if (!CPU_ISSET(cpu, &allowed)) continue;
            std::ifstream file("/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/thread_siblings_list");
            std::string siblings;
            cores.insert(std::getline(file, siblings) ? siblings : std::to_string(cpu));
        }
        if (!cores.empty()) return int32_t(cores.size());
    }
#endif
    return std::max(1, int32_t(std::thread::hardware_concurrency()) / 2);
}

}  // namespace pysa
