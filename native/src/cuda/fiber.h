// A stack that runs a function and can leave off and go on: for the emulator. Each fiber stays on one OS thread.
#pragma once

#include <cstddef>
#include <memory>

#if defined(__linux__) && (defined(__x86_64__) || defined(__aarch64__))
#define PYSA_FIBER_ASM 1
#else
#define PYSA_FIBER_ASM 0
#include <ucontext.h>
#endif

namespace pysa::gpu::emulator {

class Fiber {
  public:
    Fiber() = default;                      // of the OS thread's own stack
    void prepare(void (*entry)());          // which must not return
    void switch_to(Fiber & to, bool ends);  // ends: this one will not be gone on with
    void started(Fiber & by);               // first of all in `entry`

  private:
    static constexpr size_t stack_bytes = 256 * 1024;

    std::unique_ptr<char, void (*)(char *)> stack_{nullptr, nullptr};
#if PYSA_FIBER_ASM
    void * top_ = nullptr;
#else
    ucontext_t context_ = {};
#endif
    void * fake_stack_ = nullptr;  // AddressSanitizer's
    const void * bottom_ = nullptr;
    size_t size_ = 0;
};

}  // namespace pysa::gpu::emulator
