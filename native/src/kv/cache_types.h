// Names of cache types to ggml types.
#pragma once

#include <string>

#include "kv/split_cache.h"

namespace pysa {

// ArgumentError for an unknown name, or a head size that is no multiple of the type's block.
CacheTypes parse_cache_types(const std::string & type_k, const std::string & type_v, const HParams & hp);

}  // namespace pysa
