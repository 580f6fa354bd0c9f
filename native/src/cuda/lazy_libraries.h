// libcublas and libcuda, which ggml's CUDA backend calls: looked for when first called, so that the module loads without them.
#pragma once

#include <string>
#include <vector>

namespace pysa {

// Folders to look in before the system's own, such as those of PyPI's packages. Before the first call of any function.
void add_cuda_library_dirs(const std::vector<std::string> & dirs);

// Empty if both libraries can be used; else which one is missing, and what the system says.
std::string missing_cuda_library();

}  // namespace pysa
