#include "base/pages.h"

#include <utility>

#if defined(__unix__) || defined(__APPLE__)
#define PYSA_HAS_MMAP
#include <sys/mman.h>
#endif
#ifdef __GLIBC__
#include <malloc.h>
#endif

namespace pysa {

Pages::Pages(size_t size_bytes) {
#ifdef PYSA_HAS_MMAP
    void * data = mmap(nullptr, size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) return;
    data_ = data;
    size_bytes_ = size_bytes;
#else
    (void)size_bytes;
#endif
}

Pages::~Pages() {
#ifdef PYSA_HAS_MMAP
    if (data_) munmap(data_, size_bytes_);
#endif
}

Pages::Pages(Pages && other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_bytes_(std::exchange(other.size_bytes_, 0)) {}

Pages & Pages::operator=(Pages && other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_bytes_, other.size_bytes_);
    return *this;
}

void trim_heap() {
#ifdef __GLIBC__
    malloc_trim(0);
#endif
}

}  // namespace pysa
