// What ggml and libllama log: silent, kept for error messages, or printed with PYSA_LOG=debug.
#pragma once

#include <string>

namespace pysa {

// Installs the log and abort callbacks of ggml and libllama. Cheap and idempotent: whoever calls them calls this first.
void init_logging();

// Adds a line of our own to them.
void log_error(const char * text);

// The error lines logged by this thread since its last call, joined by "; ", at most the last four. Empty if none.
std::string take_logged_errors();

}  // namespace pysa
