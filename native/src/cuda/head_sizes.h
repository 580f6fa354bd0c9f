// The head sizes that there are kernels for. A further one is a line here and a prompt_*.cu.
#pragma once

#include <cstdint>
#include <type_traits>

namespace pysa::gpu {

// What `use` returns, called with the head size as a std::integral_constant; `otherwise` if there are no kernels for it.
template <class Use, class Result> Result with_head_size(int32_t n_embd, Use && use, Result otherwise) {
    switch (n_embd) {
        case 32: return use(std::integral_constant<int, 32>());
        case 64: return use(std::integral_constant<int, 64>());
        case 96: return use(std::integral_constant<int, 96>());
        case 128: return use(std::integral_constant<int, 128>());
        case 256: return use(std::integral_constant<int, 256>());
        default: return otherwise;
    }
}

}  // namespace pysa::gpu
