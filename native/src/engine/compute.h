// Runs graphs: the CPU backend with a thread pool of its own, and ggml's scheduler. One per session.
#pragma once

#include <functional>
#include <memory>

#include "ggml-backend.h"
#include "ggml-cpu.h"

namespace pysa {

class Compute {
  public:
    Compute(int32_t n_threads, size_t max_nodes);  // DeviceError
    ~Compute();

    int32_t n_threads() const { return n_threads_; }
    ggml_backend_buffer_type_t cache_buffer_type() const { return ggml_backend_get_default_buffer_type(cpu_); }

    // Gives the graph's tensors memory; DeviceError if there is not enough.
    void allocate(ggml_cgraph * gf);

    // Runs the allocated graph. Interrupted if `interrupt` says so between two nodes, DeviceError if the backend fails.
    void run(ggml_cgraph * gf, const std::function<bool()> & interrupt);

    int64_t size_bytes() const { return int64_t(ggml_backend_sched_get_buffer_size(sched_, cpu_)); }

  private:
    static bool abort_callback(void * data);
    void free_all();

    int32_t n_threads_;
    int64_t process_;  // that the threads are in
    ggml_threadpool * pool_ = nullptr;
    ggml_backend_t cpu_ = nullptr;
    ggml_backend_sched_t sched_ = nullptr;
    const std::function<bool()> * interrupt_ = nullptr;
    bool interrupted_ = false;
};

}  // namespace pysa
