#include "engine/compute.h"

#include <string>

#include "base/log.h"
#include "base/process_id.h"
#include "pysa/error.h"

namespace pysa {

Compute::Compute(int32_t n_threads, size_t max_nodes, const Gpu * gpu)
    : n_threads_(n_threads), max_nodes_(max_nodes), process_(process_id()), gpu_(gpu) {
    if (gpu) device_ = gpu->start();
    ggml_threadpool_params params = ggml_threadpool_params_default(n_threads);
    params.poll = 0;  // threads that spin while they wait take other sessions' cores: two in turn were ten times slower
    pool_ = ggml_threadpool_new(&params);
    cpu_ = ggml_backend_cpu_init();
    if (cpu_) make_scheduler();
    if (!pool_ || !cpu_ || !sched_) {
        free_all();
        throw DeviceError("CPU backend: cannot start " + std::to_string(n_threads) +
                          " threads; choose a smaller n_threads");
    }
    ggml_backend_cpu_set_n_threads(cpu_, n_threads);
    ggml_backend_cpu_set_threadpool(cpu_, pool_);
    ggml_backend_cpu_set_abort_callback(cpu_, &Compute::abort_callback, this);
}

void Compute::make_scheduler() {
    if (sched_) ggml_backend_sched_free(sched_);
    ggml_backend_t backends[2] = {device_, cpu_};
    sched_ =
        ggml_backend_sched_new(device_ ? backends : backends + 1, nullptr, device_ ? 2 : 1, max_nodes_, false, false);
}

Compute::~Compute() {
    if (process_id() == process_) free_all();  // a forked child would wait for threads that it does not have
}

void Compute::free_all() {
    if (sched_) ggml_backend_sched_free(sched_);
    if (cpu_) ggml_backend_free(cpu_);
    if (device_) ggml_backend_free(device_);
    if (pool_) ggml_threadpool_free(pool_);
}

bool Compute::abort_callback(void * data) {
    Compute & self = *static_cast<Compute *>(data);
    if (self.interrupt_ && *self.interrupt_ && !self.interrupted_) self.interrupted_ = (*self.interrupt_)();
    return self.interrupted_;
}

// Every node's backend is said, so that the scheduler has nothing to guess; inputs lie where the GPU reads them.
void Compute::place(ggml_cgraph * gf, const std::vector<bool> & on_gpu) {
    const auto root = [](ggml_tensor * tensor) { return tensor->view_src ? tensor->view_src : tensor; };
    for (int i = 0; i < ggml_graph_n_nodes(gf); ++i) {
        ggml_tensor * node = ggml_graph_node(gf, i);
        if (node->view_src && node->op != GGML_OP_SET_ROWS && node->op != GGML_OP_CPY) continue;  // as what it views
        const bool is_gpus = size_t(i) < on_gpu.size() && on_gpu[i] && ggml_backend_supports_op(device_, node);
        ggml_backend_sched_set_tensor_backend(sched_, node, is_gpus ? device_ : cpu_);
        for (int s = 0; is_gpus && s < GGML_MAX_SRC && node->src[s]; ++s) {
            ggml_tensor * src = root(node->src[s]);
            if ((src->flags & GGML_TENSOR_FLAG_INPUT) && !src->buffer)
                ggml_backend_sched_set_tensor_backend(sched_, src, device_);
        }
    }
}

void Compute::allocate(ggml_cgraph * gf, const std::vector<bool> & on_gpu) {
    ggml_backend_sched_reset(sched_);
    if (device_) place(gf, on_gpu);
    const int64_t n_before = size_bytes();
    const bool is_allocated = ggml_backend_sched_alloc_graph(sched_, gf);
    if (is_allocated && !has_filled_device(n_before)) return;
    make_scheduler();  // one that has failed takes the memory for allocated the next time
    throw DeviceError("compute buffer: out of memory" + std::string(gpu_ ? " on " + gpu_->name() : "") +
                      ": cannot hold the activations of a step; choose a smaller n_ubatch" +
                      (gpu_ ? " or fewer n_gpu_layers" : ""));
}

// Whether the last allocation took what ggml itself may need while it computes: failing there would end the process.
bool Compute::has_filled_device(int64_t n_before) const {
    return gpu_ && size_bytes() > n_before && Gpu::room(gpu_->buffer_type()) < -Gpu::reserve(gpu_->buffer_type()) / 2;
}

void Compute::run(ggml_cgraph * gf, const std::function<bool()> & interrupt) {
    interrupt_ = &interrupt;
    interrupted_ = false;
    const ggml_status status = ggml_backend_sched_graph_compute(sched_, gf);
    interrupt_ = nullptr;
    if (interrupted_) throw Interrupted("evaluation: interrupted");
    if (status != GGML_STATUS_SUCCESS)
        throw DeviceError(std::string(gpu_ ? gpu_->name() : "CPU backend") + ": a step failed: expected success, got " +
                          ggml_status_to_string(status) + "; " + take_logged_errors());
}

int64_t Compute::size_bytes() const {
    return int64_t(ggml_backend_sched_get_buffer_size(sched_, cpu_)) +
           (device_ ? int64_t(ggml_backend_sched_get_buffer_size(sched_, device_)) : 0);
}

}  // namespace pysa
