#include "engine/compute.h"

#include <string>

#include "base/log.h"
#include "base/process_id.h"
#include "pysa/error.h"

namespace pysa {

Compute::Compute(int32_t n_threads, size_t max_nodes) : n_threads_(n_threads), process_(process_id()) {
    ggml_threadpool_params params = ggml_threadpool_params_default(n_threads);
    params.poll = 0;  // threads that spin while they wait take other sessions' cores: two in turn were ten times slower
    pool_ = ggml_threadpool_new(&params);
    cpu_ = ggml_backend_cpu_init();
    if (cpu_) sched_ = ggml_backend_sched_new(&cpu_, nullptr, 1, max_nodes, false, false);
    if (!pool_ || !cpu_ || !sched_) {
        free_all();
        throw DeviceError("CPU backend: cannot start " + std::to_string(n_threads) +
                          " threads; choose a smaller n_threads");
    }
    ggml_backend_cpu_set_n_threads(cpu_, n_threads);
    ggml_backend_cpu_set_threadpool(cpu_, pool_);
    ggml_backend_cpu_set_abort_callback(cpu_, &Compute::abort_callback, this);
}

Compute::~Compute() {
    if (process_id() == process_) free_all();  // a forked child would wait for threads that it does not have
}

void Compute::free_all() {
    if (sched_) ggml_backend_sched_free(sched_);
    if (cpu_) ggml_backend_free(cpu_);
    if (pool_) ggml_threadpool_free(pool_);
}

bool Compute::abort_callback(void * data) {
    Compute & self = *static_cast<Compute *>(data);
    if (self.interrupt_ && *self.interrupt_ && !self.interrupted_) self.interrupted_ = (*self.interrupt_)();
    return self.interrupted_;
}

void Compute::allocate(ggml_cgraph * gf) {
    ggml_backend_sched_reset(sched_);
    if (!ggml_backend_sched_alloc_graph(sched_, gf))
        throw DeviceError(
            "compute buffer: out of memory: cannot hold the activations of a step; choose a smaller n_ubatch");
}

void Compute::run(ggml_cgraph * gf, const std::function<bool()> & interrupt) {
    interrupt_ = &interrupt;
    interrupted_ = false;
    const ggml_status status = ggml_backend_sched_graph_compute(sched_, gf);
    interrupt_ = nullptr;
    if (interrupted_) throw Interrupted("evaluation: interrupted");
    if (status != GGML_STATUS_SUCCESS)
        throw DeviceError("CPU backend: a step failed: expected success, got " +
                          std::string(ggml_status_to_string(status)) + "; " + take_logged_errors());
}

}  // namespace pysa
