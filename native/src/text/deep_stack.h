// Some pre-tokenizers of libllama recurse once per character of a word (std::regex), so a long text without spaces would overrun
// the caller's stack, which nothing can catch. Long texts are therefore tokenized on a thread with a stack that fits them.
#pragma once

#include <cstddef>
#include <functional>

namespace pysa {

// Runs `work` here if `n_chars` is small, else on a thread of its own; rethrows what it throws. DeviceError without a thread.
void with_deep_stack(size_t n_chars, const std::function<void()> & work);

}  // namespace pysa
