// Larger pages for memory that is read from end to end: fewer faults while it is filled, fewer misses while it is read.
#pragma once

#include <cstddef>

namespace pysa {

// A hint, for memory not yet touched. Does nothing where the system has no such pages or none to give.
void prefer_huge_pages(void * data, size_t size_bytes);

}  // namespace pysa
