#include "cuda/prompt.h"

namespace pysa::gpu {
inline namespace PYSA_GPU_FLAVOUR {

template const char * start_prompt<32>(const Call &, int64_t, void *);

}  // namespace PYSA_GPU_FLAVOUR
}  // namespace pysa::gpu
