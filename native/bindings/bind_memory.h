// MemoryReport as a dict of integers, in bytes unless named n_*.
#pragma once

#include <pybind11/pybind11.h>

#include "pysa/kv_cache.h"

namespace pysa {

pybind11::dict memory_dict(const MemoryReport & report);

}  // namespace pysa
