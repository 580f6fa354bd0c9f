#include "device/emulated_gpu.h"

#include <atomic>
#include <cstdlib>
#include <cstring>

#include "ggml-backend-impl.h"
#include "ggml-cpu.h"

namespace pysa {

namespace {

constexpr size_t n_align = 256;

std::atomic<size_t> memory_total{0}, memory_used{0};

ggml_backend_dev_t cpu() { return ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU); }

// Memory that is not the host's as far as ggml knows: it must copy to read or write it.
ggml_backend_buffer_i buffer_interface() {
    ggml_backend_buffer_i iface = {};
    iface.free_buffer = [](ggml_backend_buffer_t buffer) {
        std::free(buffer->context);
        memory_used -= buffer->size;
    };
    iface.get_base = [](ggml_backend_buffer_t buffer) { return buffer->context; };
    iface.memset_tensor = [](ggml_backend_buffer_t, ggml_tensor * t, uint8_t value, size_t offset, size_t size) {
        std::memset(static_cast<char *>(t->data) + offset, value, size);
    };
    iface.set_tensor = [](ggml_backend_buffer_t, ggml_tensor * t, const void * data, size_t offset, size_t size) {
        std::memcpy(static_cast<char *>(t->data) + offset, data, size);
    };
    iface.get_tensor = [](ggml_backend_buffer_t, const ggml_tensor * t, void * data, size_t offset, size_t size) {
        std::memcpy(data, static_cast<const char *>(t->data) + offset, size);
    };
    iface.cpy_tensor = [](ggml_backend_buffer_t buffer, const ggml_tensor * src, ggml_tensor * dst) {
        const ggml_backend_buffer_t from = src->view_src ? src->view_src->buffer : src->buffer;
        if (from->buft != buffer->buft) return false;
        std::memcpy(dst->data, src->data, ggml_nbytes(src));
        return true;
    };
    iface.clear = [](ggml_backend_buffer_t buffer, uint8_t value) {
        std::memset(buffer->context, value, buffer->size);
    };
    return iface;
}

ggml_backend_buffer_t allocate(ggml_backend_buffer_type_t type, size_t size) {
    const size_t whole = (size + n_align - 1) / n_align * n_align;
    if (memory_used.fetch_add(whole) + whole > memory_total) {
        memory_used -= whole;
        return nullptr;
    }
    void * data = std::aligned_alloc(n_align, whole ? whole : n_align);
    if (!data) {
        memory_used -= whole;
        return nullptr;
    }
    std::memset(data, 0xff, whole);  // nothing may count on zeros
    return ggml_backend_buffer_init(type, buffer_interface(), data, whole);
}

ggml_backend_buffer_type_t buffer_type(ggml_backend_dev_t device) {
    static ggml_backend_buffer_type type = [device] {
        ggml_backend_buffer_type made = {};
        made.iface.get_name = [](ggml_backend_buffer_type_t) { return "EMU0"; };
        made.iface.alloc_buffer = allocate;
        made.iface.get_alignment = [](ggml_backend_buffer_type_t) { return n_align; };
        made.iface.is_host = [](ggml_backend_buffer_type_t) { return false; };
        made.device = device;
        return made;
    }();
    return &type;
}

ggml_backend_device_i device_interface() {
    ggml_backend_device_i iface = {};
    iface.get_name = [](ggml_backend_dev_t) { return "EMU0"; };
    iface.get_description = [](ggml_backend_dev_t) { return "emulated GPU, for tests"; };
    iface.get_memory = [](ggml_backend_dev_t, size_t * free, size_t * total) {
        *total = memory_total;
        *free = memory_total - memory_used;
    };
    iface.get_type = [](ggml_backend_dev_t) { return GGML_BACKEND_DEVICE_TYPE_GPU; };
    iface.get_props = [](ggml_backend_dev_t device, ggml_backend_dev_props * props) {
        *props = {};
        props->name = "EMU0";
        props->description = "emulated GPU, for tests";
        props->type = GGML_BACKEND_DEVICE_TYPE_GPU;
        ggml_backend_dev_memory(device, &props->memory_free, &props->memory_total);
    };
    iface.init_backend = [](ggml_backend_dev_t device, const char *) {
        ggml_backend_t backend = ggml_backend_cpu_init();
        if (!backend) return backend;
        backend->device = device;
        ggml_backend_cpu_set_n_threads(backend, 1);  // several would spin beside the emulator's work
        return backend;
    };
    iface.get_buffer_type = buffer_type;
    iface.supports_op = [](ggml_backend_dev_t, const ggml_tensor * op) {
        return op->op != GGML_OP_CUSTOM && ggml_backend_dev_supports_op(cpu(), op);
    };
    iface.supports_buft = [](ggml_backend_dev_t, ggml_backend_buffer_type_t type) {
        return type->iface.alloc_buffer == allocate;
    };
    return iface;
}

}  // namespace

ggml_backend_dev_t emulated_device() {
    static ggml_backend_device device = {device_interface(), nullptr, nullptr};
    const char * size = std::getenv("PYSA_EMULATED_GPU");
    if (!size) return nullptr;
    memory_total = std::strtoull(size, nullptr, 10) << 20;
    device.reg = ggml_backend_dev_backend_reg(cpu());
    return &device;
}

}  // namespace pysa
