// How many threads suit the machine.
#pragma once

#include <cstdint>

namespace pysa {

// Physical cores among those the process may run on; at least 1.
int32_t physical_cores();

}  // namespace pysa
