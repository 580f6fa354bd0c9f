#include "cuda/decode_instances.h"

namespace pysa::gpu {
inline namespace PYSA_GPU_FLAVOUR {

template const char * launch_score<RowType::q8_0>(const Call &, int, void *);
template const char * launch_weigh<RowType::q8_0>(const Call &, int, void *);

}  // namespace PYSA_GPU_FLAVOUR
}  // namespace pysa::gpu
