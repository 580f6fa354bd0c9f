// Memory straight from the system, for what is large and comes and goes. malloc keeps much of what it once had, the more
// so the more often such blocks were freed (glibc raises its own limit for mapping them).
#pragma once

#include <cstddef>

namespace pysa {

// Zeros; given back whole. Movable.
class Pages {
  public:
    Pages() = default;
    explicit Pages(size_t size_bytes);  // data() is null where there is no memory to be had, or no such system call
    ~Pages();
    Pages(Pages && other) noexcept;
    Pages & operator=(Pages && other) noexcept;

    void * data() const { return data_; }
    size_t size_bytes() const { return size_bytes_; }

  private:
    void * data_ = nullptr;
    size_t size_bytes_ = 0;
};

// Gives back what malloc keeps though it is free. Takes milliseconds: for when a model or a session goes.
void trim_heap();

}  // namespace pysa
