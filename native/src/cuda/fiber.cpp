#include "cuda/fiber.h"

#include <sys/mman.h>

#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if PYSA_FIBER_ASM
// Saves what a call must preserve, leaves the stack's top in *from and goes on with `to`.
extern "C" void pysa_switch_stack(void ** from, void * to);
#if defined(__x86_64__)
__asm__(
    ".text\n.globl pysa_switch_stack\n.type pysa_switch_stack, @function\npysa_switch_stack:\n"
    "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
    "movq %rsp, (%rdi)\nmovq %rsi, %rsp\n"
    "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n"
    ".size pysa_switch_stack, .-pysa_switch_stack\n");
static constexpr int n_saved = 8, i_entry = 6;
#else
__asm__(
    ".text\n.globl pysa_switch_stack\n.type pysa_switch_stack, %function\npysa_switch_stack:\n"
    "sub sp, sp, #160\n"
    "stp x19, x20, [sp, #0]\nstp x21, x22, [sp, #16]\nstp x23, x24, [sp, #32]\nstp x25, x26, [sp, #48]\n"
    "stp x27, x28, [sp, #64]\nstp x29, x30, [sp, #80]\n"
    "stp d8, d9, [sp, #96]\nstp d10, d11, [sp, #112]\nstp d12, d13, [sp, #128]\nstp d14, d15, [sp, #144]\n"
    "mov x9, sp\nstr x9, [x0]\nmov sp, x1\n"
    "ldp x19, x20, [sp, #0]\nldp x21, x22, [sp, #16]\nldp x23, x24, [sp, #32]\nldp x25, x26, [sp, #48]\n"
    "ldp x27, x28, [sp, #64]\nldp x29, x30, [sp, #80]\n"
    "ldp d8, d9, [sp, #96]\nldp d10, d11, [sp, #112]\nldp d12, d13, [sp, #128]\nldp d14, d15, [sp, #144]\n"
    "add sp, sp, #160\nret\n"
    ".size pysa_switch_stack, .-pysa_switch_stack\n");
static constexpr int n_saved = 20, i_entry = 11;
#endif
#endif

namespace pysa::gpu::emulator {

void Fiber::prepare(void (*entry)()) {
    if (!stack_) {
        void * p = mmap(nullptr, stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED) throw std::bad_alloc();
        stack_ = {static_cast<char *>(p), [](char * q) { munmap(q, stack_bytes); }};
    }
    bottom_ = stack_.get();
    size_ = stack_bytes;
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(stack_.get(), stack_bytes);
#endif
#if PYSA_FIBER_ASM
    void ** top = reinterpret_cast<void **>(stack_.get() + stack_bytes) - n_saved;
    for (int i = 0; i < n_saved; ++i) top[i] = nullptr;
    top[i_entry] = reinterpret_cast<void *>(entry);
    top_ = top;
#else
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack_.get();
    context_.uc_stack.ss_size = stack_bytes;
    context_.uc_link = nullptr;
    makecontext(&context_, entry, 0);
#endif
}

void Fiber::started([[maybe_unused]] Fiber & by) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &by.bottom_, &by.size_);
#endif
}

void Fiber::switch_to(Fiber & to, [[maybe_unused]] bool ends) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(ends ? nullptr : &fake_stack_, to.bottom_, to.size_);
#endif
#if PYSA_FIBER_ASM
    pysa_switch_stack(&top_, to.top_);
#else
    swapcontext(&context_, &to.context_);
#endif
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake_stack_, nullptr, nullptr);
#endif
}

}  // namespace pysa::gpu::emulator
