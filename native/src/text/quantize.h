// libllama's quantiser. It may end the process on a hostile file, so the converter runs it in a child process.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "pysa/error.h"

namespace pysa {

class ConvertError : public Error { using Error::Error; };  // a conversion that failed

// The types that need no importance matrix: "f32", "q4_k_m", ...
std::vector<std::string> quantize_types();

// Writes `dst`. n_threads 0: all cores. ArgumentError for an unknown type, ModelFileError for `src`, ConvertError otherwise.
void quantize(const std::string & src, const std::string & dst, const std::string & type, int32_t n_threads);

}  // namespace pysa
