// Text between Python and C++ where it need not be UTF-8: paths of the file system, strings from a GGUF.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

namespace pysa {

// A str or path-like as the operating system's bytes; TypeError for anything else.
std::string file_path(const pybind11::handle & path);

// Bytes that are not UTF-8 become lone surrogates, which `errors="surrogateescape"` turns back.
pybind11::str python_text(const std::string & text);

}  // namespace pysa
