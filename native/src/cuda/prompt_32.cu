#include "cuda/prompt.h"
#include "cuda/prompt_launch.h"

namespace pysa::gpu {
inline namespace PYSA_GPU_FLAVOUR {

const char * launch_prompt_32(const Call & call, int64_t n_tokens, void * stream) {
    return start_prompt<32>(call, n_tokens, stream);
}

}  // namespace PYSA_GPU_FLAVOUR
}  // namespace pysa::gpu
