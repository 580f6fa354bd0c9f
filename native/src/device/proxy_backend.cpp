#include "device/proxy_backend.h"

#include <cstring>
#include <string>

#include "base/log.h"
#include "ggml-backend-impl.h"
#include "ggml-impl.h"

namespace pysa {

namespace {

// The function of our nodes: it marks them, and is called only if one is computed by the wrong backend.
void mark_node(ggml_tensor *, int, int, void *) { log_error("attention: a node for the GPU was computed by the CPU"); }

ggml_custom_op_params custom_params(const ggml_tensor * tensor) {
    ggml_custom_op_params params;
    std::memcpy(&params, tensor->op_params, sizeof(params));
    return params;
}

}  // namespace

// Written against these versions of ggml's internal interface; of another one, nothing is known.
bool proxy_is_supported() { return GGML_BACKEND_API_VERSION == 2 || GGML_BACKEND_API_VERSION == 3; }

ggml_tensor * add_gpu_node(ggml_context * ctx, int64_t ne0, int64_t ne1, ggml_tensor ** args, int n_args,
                           GpuNode * node) {
    return ggml_custom_4d(ctx, GGML_TYPE_F32, ne0, ne1, 1, 1, args, n_args, &mark_node, 1, node);
}

GpuNode * gpu_node_of(const ggml_tensor * tensor) {
    if (tensor->op != GGML_OP_CUSTOM) return nullptr;
    const ggml_custom_op_params params = custom_params(tensor);
    return params.fun == &mark_node ? static_cast<GpuNode *>(params.userdata) : nullptr;
}

struct ProxyDevice::Impl {
    ggml_backend_device proxy;
    ggml_backend_dev_t inner;
    StreamOf stream_of;
};

namespace {

using Device = ProxyDevice::Impl;

struct Backend {
    ggml_backend proxy;
    ggml_backend_t inner;
    StreamOf stream_of;
};

Device & self(ggml_backend_dev_t device) { return *static_cast<Device *>(device->context); }
Backend & self(ggml_backend_t backend) { return *static_cast<Backend *>(backend->context); }
ggml_backend_dev_t inner(ggml_backend_dev_t device) { return self(device).inner; }

// A number for a part of a graph that stays the same as long as the graph does: the inner backend tells by it what it may replay.
uint64_t part_uid(uint64_t graph_uid, int part) {
    return graph_uid == 0 ? 0 : (uint64_t(1) << 63) | (graph_uid << 16) | uint64_t(part & 0xffff);
}

ggml_status compute_part(Backend & backend, ggml_cgraph * graph, int begin, int end, int part) {
    bool is_empty = true;
    for (int i = begin; i < end && is_empty; ++i) is_empty = ggml_op_is_empty(graph->nodes[i]->op);
    if (is_empty) return GGML_STATUS_SUCCESS;
    ggml_cgraph view = ggml_graph_view(graph, begin, end);
    view.uid = part_uid(graph->uid, part);
    return backend.inner->iface.graph_compute(backend.inner, &view);
}

ggml_status compute(ggml_backend_t proxy, ggml_cgraph * graph) {
    Backend & backend = self(proxy);
    int begin = 0, part = 0;
    for (int i = 0; i < graph->n_nodes; ++i) {
        GpuNode * node = gpu_node_of(graph->nodes[i]);
        if (!node) continue;
        const ggml_status status = compute_part(backend, graph, begin, i, part++);
        if (status != GGML_STATUS_SUCCESS) return status;
        void * stream = backend.stream_of ? backend.stream_of(backend.inner) : nullptr;
        if (const char * fault = node->launch(graph->nodes[i], stream)) {
            log_error(fault);
            return GGML_STATUS_FAILED;
        }
        begin = i + 1;
    }
    return compute_part(backend, graph, begin, graph->n_nodes, part);
}

void free_backend(ggml_backend_t proxy) {
    Backend * backend = &self(proxy);
    ggml_backend_free(backend->inner);
    delete backend;
}

// Only what the inner backend has: ggml asks by looking for null.
ggml_backend_i backend_interface(const ggml_backend_i & of) {
    ggml_backend_i iface = {};
    iface.get_name = [](ggml_backend_t b) { return ggml_backend_name(self(b).inner); };
    iface.free = free_backend;
    if (of.set_tensor_async)
        iface.set_tensor_async = [](ggml_backend_t b, ggml_tensor * t, const void * data, size_t offset, size_t size) {
            self(b).inner->iface.set_tensor_async(self(b).inner, t, data, offset, size);
        };
    if (of.get_tensor_async)
        iface.get_tensor_async = [](ggml_backend_t b, const ggml_tensor * t, void * data, size_t offset, size_t size) {
            self(b).inner->iface.get_tensor_async(self(b).inner, t, data, offset, size);
        };
    if (of.synchronize) iface.synchronize = [](ggml_backend_t b) { self(b).inner->iface.synchronize(self(b).inner); };
    iface.graph_compute = compute;
    return iface;
}

ggml_backend_t start_proxy(ggml_backend_dev_t device, const char * params) {
    ggml_backend_t inner_backend = ggml_backend_dev_init(inner(device), params);
    if (!inner_backend) return nullptr;
    auto * backend = new Backend{{}, inner_backend, self(device).stream_of};
    static ggml_guid guid = {0x70, 0x79, 0x73, 0x61, 0x2d, 0x70, 0x72, 0x6f,
                             0x78, 0x79, 0x2d, 0x30, 0x30, 0x30, 0x30, 0x31};
    backend->proxy.guid = &guid;
    backend->proxy.iface = backend_interface(inner_backend->iface);
    backend->proxy.device = device;
    backend->proxy.context = backend;
    return &backend->proxy;
}

ggml_backend_device_i device_interface(const ggml_backend_device_i & of) {
    ggml_backend_device_i iface = {};
    iface.get_name = [](ggml_backend_dev_t d) { return ggml_backend_dev_name(inner(d)); };
    iface.get_description = [](ggml_backend_dev_t d) { return ggml_backend_dev_description(inner(d)); };
    iface.get_memory = [](ggml_backend_dev_t d, size_t * free, size_t * total) {
        ggml_backend_dev_memory(inner(d), free, total);
    };
    iface.get_type = [](ggml_backend_dev_t d) { return ggml_backend_dev_type(inner(d)); };
    iface.get_props = [](ggml_backend_dev_t d, ggml_backend_dev_props * props) {
        ggml_backend_dev_get_props(inner(d), props);
        props->caps.events = false;
    };
    iface.init_backend = start_proxy;
    iface.get_buffer_type = [](ggml_backend_dev_t d) { return ggml_backend_dev_buffer_type(inner(d)); };
    if (of.get_host_buffer_type)
        iface.get_host_buffer_type = [](ggml_backend_dev_t d) { return ggml_backend_dev_host_buffer_type(inner(d)); };
    iface.supports_op = [](ggml_backend_dev_t d, const ggml_tensor * op) {
        return gpu_node_of(op) != nullptr || ggml_backend_dev_supports_op(inner(d), op);
    };
    iface.supports_buft = [](ggml_backend_dev_t d, ggml_backend_buffer_type_t buft) {
        return ggml_backend_dev_supports_buft(inner(d), buft);
    };
    if (of.offload_op)
        iface.offload_op = [](ggml_backend_dev_t d, const ggml_tensor * op) {
            return gpu_node_of(op) == nullptr && ggml_backend_dev_offload_op(inner(d), op);
        };
    return iface;
}

}  // namespace

ProxyDevice::ProxyDevice(ggml_backend_dev_t inner, StreamOf stream_of) : impl_(new Impl()) {
    impl_->inner = inner;
    impl_->stream_of = stream_of;
    impl_->proxy.iface = device_interface(inner->iface);
    impl_->proxy.reg = inner->reg;
    impl_->proxy.context = impl_.get();
}

ProxyDevice::~ProxyDevice() = default;

ggml_backend_t ProxyDevice::start() const { return ggml_backend_dev_init(&impl_->proxy, nullptr); }

}  // namespace pysa
