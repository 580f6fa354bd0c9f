// A model file in memory, read-only and shared with the page cache.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>

#include "file/gguf_file.h"
#include "pysa/error.h"

namespace pysa {

namespace {

[[noreturn]] void refuse(const std::string & path, const std::string & what) {
    throw ModelFileError(path + ": " + what);
}

}  // namespace

MappedFile::MappedFile(const std::string & path) {
    struct stat info;
    // stat before open: opening a FIFO would wait for a writer.
    if (path.find('\0') != std::string::npos || stat(path.c_str(), &info) != 0) {
        refuse(path, std::string("cannot be opened: ") + std::strerror(errno == 0 ? EINVAL : errno));
    }
    if (!S_ISREG(info.st_mode)) refuse(path, "expected a regular file, got a directory or device");
    if (info.st_size == 0) refuse(path, "expected a GGUF file, got an empty file");

    const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) refuse(path, std::string("cannot be opened: ") + std::strerror(errno));
    if (fstat(fd, &info) != 0 || info.st_size <= 0) {
        close(fd);
        refuse(path, "changed while it was opened");
    }
    void * data = mmap(nullptr, static_cast<size_t>(info.st_size), PROT_READ, MAP_SHARED, fd, 0);
    const int error = errno;
    close(fd);
    if (data == MAP_FAILED) refuse(path, std::string("cannot be mapped: ") + std::strerror(error));
    data_ = static_cast<const uint8_t *>(data);
    size_ = static_cast<uint64_t>(info.st_size);
}

void MappedFile::release(const uint8_t * data, uint64_t size_bytes) const {
    const uintptr_t n_page = uintptr_t(sysconf(_SC_PAGESIZE));
    const uintptr_t begin = (uintptr_t(data) + n_page - 1) / n_page * n_page;
    const uintptr_t end = (uintptr_t(data) + size_bytes) / n_page * n_page;
    if (begin < end) madvise(reinterpret_cast<void *>(begin), end - begin, MADV_DONTNEED);
}

MappedFile::~MappedFile() {
    if (data_ != nullptr) munmap(const_cast<uint8_t *>(data_), size_);
}

}  // namespace pysa
