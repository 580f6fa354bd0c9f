// Runs graphs: the CPU backend with a thread pool of its own, a GPU's beside it if there is one, and ggml's scheduler. One per session.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "device/gpu.h"
#include "ggml-backend.h"
#include "ggml-cpu.h"

namespace pysa {

class Compute {
  public:
    Compute(int32_t n_threads, size_t max_nodes, const Gpu * gpu = nullptr);  // DeviceError
    ~Compute();

    int32_t n_threads() const { return n_threads_; }
    const Gpu * gpu() const { return gpu_; }

    // Gives the graph's tensors memory; DeviceError if there is not enough. on_gpu: where each node is computed; nodes past its end, and
    // those that the GPU cannot compute, are the CPU's.
    void allocate(ggml_cgraph * gf, const std::vector<bool> & on_gpu = {});

    // Runs the allocated graph. Interrupted if `interrupt` says so between two nodes, DeviceError if a backend fails.
    void run(ggml_cgraph * gf, const std::function<bool()> & interrupt);

    // Parts that the last allocated graph was split into, for backends to take turns.
    int32_t n_splits() const { return ggml_backend_sched_get_n_splits(sched_); }
    int64_t size_bytes() const;

  private:
    static bool abort_callback(void * data);
    void place(ggml_cgraph * gf, const std::vector<bool> & on_gpu);
    void make_scheduler();
    bool has_filled_device(int64_t n_before) const;
    void free_all();

    int32_t n_threads_;
    size_t max_nodes_;
    int64_t process_;  // that the threads are in
    const Gpu * gpu_;
    ggml_threadpool * pool_ = nullptr;
    ggml_backend_t device_ = nullptr;  // of gpu_
    ggml_backend_t cpu_ = nullptr;
    ggml_backend_sched_t sched_ = nullptr;
    const std::function<bool()> * interrupt_ = nullptr;
    bool interrupted_ = false;
};

}  // namespace pysa
