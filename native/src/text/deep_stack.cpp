#include "text/deep_stack.h"

#include <pthread.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <string>

#include "pysa/error.h"

namespace pysa {

namespace {

constexpr size_t n_chars_inline = 512;
// Measured with libstdc++ on eight pre-tokenizers: 0.4 KiB per character, optimised; sanitizers widen every frame.
#if defined(__SANITIZE_ADDRESS__)
constexpr size_t stack_per_char = 16384;
#else
constexpr size_t stack_per_char = 2048;
#endif
constexpr size_t max_stack = size_t(64) << 30;  // address space; only touched pages take memory

struct Job {
    const std::function<void()> & work;
    std::exception_ptr error;
};

void * run_job(void * argument) {
    Job & job = *static_cast<Job *>(argument);
    try {
        job.work();
    } catch (...) {
        job.error = std::current_exception();
    }
    return nullptr;
}

}  // namespace

void with_deep_stack(size_t n_chars, const std::function<void()> & work) {
    if (n_chars <= n_chars_inline) return work();
    const size_t stack_bytes = std::min(max_stack, (size_t(8) << 20) + n_chars * stack_per_char);
    Job job{work, nullptr};
    pthread_attr_t attributes;
    pthread_t thread;
    pthread_attr_init(&attributes);
    int error = pthread_attr_setstacksize(&attributes, stack_bytes);
    if (error == 0) error = pthread_create(&thread, &attributes, run_job, &job);
    pthread_attr_destroy(&attributes);
    if (error != 0) {
        throw DeviceError("tokenize: no thread with a stack of " + std::to_string(stack_bytes >> 20) +
                          " MiB: " + std::strerror(error) + "; pass the text in parts");
    }
    pthread_join(thread, nullptr);
    if (job.error) std::rethrow_exception(job.error);
}

}  // namespace pysa
