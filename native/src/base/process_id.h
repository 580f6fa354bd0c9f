// The running process: threads and locks do not survive a fork, so what owns them asks.
#pragma once

#include <cstdint>

#ifdef _WIN32
#include <process.h>
#else
#include <unistd.h>
#endif

namespace pysa {

inline int64_t process_id() {
#ifdef _WIN32
    return _getpid();
#else
    return getpid();
#endif
}

// Whether this is the process that called it first: the one that has started ggml's backends (init_logging()), or one where none
// are started. A GPU's driver does not survive a fork.
inline bool is_backends_process() {
    static const int64_t process = process_id();
    return process == process_id();
}

}  // namespace pysa
