#include "base/huge_pages.h"

#include <cstdint>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace pysa {

void prefer_huge_pages(void * data, size_t size_bytes) {
#ifdef MADV_HUGEPAGE
    constexpr uintptr_t n_page = uintptr_t(2) << 20;  // bytes; whole pages only, so that no neighbour's memory grows
    const uintptr_t begin = (uintptr_t(data) + n_page - 1) / n_page * n_page;
    const uintptr_t end = (uintptr_t(data) + size_bytes) / n_page * n_page;
    if (begin < end) madvise(reinterpret_cast<void *>(begin), end - begin, MADV_HUGEPAGE);
#else
    (void)data;
    (void)size_bytes;
#endif
}

}  // namespace pysa
