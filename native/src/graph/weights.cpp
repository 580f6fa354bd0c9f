#include "graph/weights.h"

#include <algorithm>
#include <map>
#include <set>
#include <string>

#include "ggml-cpu.h"
#include "pysa/error.h"

namespace pysa {

namespace {

std::string shape_text(const int64_t * ne, size_t n) {
    std::string text = "[";
    for (size_t i = 0; i < n; ++i) text += (i ? ", " : "") + std::to_string(ne[i]);
    return text + "]";
}

void check_tensor(const GgufTensor & tensor, const TensorSpec & spec, Faults & faults) {
    std::vector<int64_t> shape = spec.shape;
    shape.resize(4, 1);
    if (!std::equal(shape.begin(), shape.end(), tensor.ne))
        faults.add(spec.name + ": expected shape " + shape_text(spec.shape.data(), spec.shape.size()) + ", got " +
                   shape_text(tensor.ne, size_t(tensor.n_dims)));
    const std::string type = ggml_type_name(tensor.type);
    if (spec.use == WeightUse::elementwise) {
        if (tensor.type != GGML_TYPE_F32) faults.add(spec.name + ": expected type f32, got " + type);
    } else {
        const bool readable = tensor.type == GGML_TYPE_F32 || ggml_get_type_traits(tensor.type)->to_float;
        if (!readable || !ggml_get_type_traits_cpu(tensor.type)->vec_dot)
            faults.add(spec.name + ": expected a floating-point or quantised type, got " + type);
    }
}

// All faults of the file's tensors against the architecture's list: missing, misshapen, unknown.
void check_tensors(const GgufFile & file, const std::vector<TensorSpec> & specs, bool pruned) {
    Faults faults(file.path());
    std::set<std::string> known;
    for (const TensorSpec & spec : specs) {
        const GgufTensor * tensor = file.find_tensor(spec.name);
        if (spec.presence == Presence::absent) continue;
        known.insert(spec.name);
        if (tensor) {
            check_tensor(*tensor, spec, faults);
        } else if (spec.presence == Presence::required && !(pruned && spec.scores_only)) {
            faults.add("tensor " + spec.name + ": expected it in the file, got none");
        }
    }
    for (const GgufTensor & tensor : file.tensors())
        if (!known.count(tensor.name))
            faults.add("tensor " + tensor.name +
                       ": expected only tensors of the architecture, got one that it does not use");
    faults.raise_if_any<ModelFileError>();
}

// The CPU's special layouts, best first.
std::vector<ggml_backend_buffer_type_t> repack_types(ggml_backend_dev_t cpu) {
    std::vector<ggml_backend_buffer_type_t> types;
    auto get = reinterpret_cast<ggml_backend_dev_get_extra_bufts_t>(
        ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(cpu), "ggml_backend_dev_get_extra_bufts"));
    if (!get) return types;
    for (ggml_backend_buffer_type_t * type = get(cpu); type && *type; ++type) types.push_back(*type);
    return types;
}

// Whether a device multiplies by a weight of this type and shape when it lies in `buft`.
bool can_multiply(ggml_backend_dev_t device, ggml_backend_buffer_type_t buft, const GgufTensor & tensor) {
    ggml_init_params params = {4 * ggml_tensor_overhead(), nullptr, true};
    std::unique_ptr<ggml_context, decltype(&ggml_free)> ctx(ggml_init(params), ggml_free);
    std::unique_ptr<ggml_backend_buffer, decltype(&ggml_backend_buffer_free)> buffer(
        ggml_backend_buft_alloc_buffer(buft, 0), ggml_backend_buffer_free);
    if (!ctx || !buffer) return false;
    ggml_tensor * weight = ggml_new_tensor_2d(ctx.get(), tensor.type, tensor.ne[0], tensor.ne[1]);
    ggml_tensor * input = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, tensor.ne[0], 512);
    weight->buffer = buffer.get();
    const bool supported = ggml_backend_dev_supports_op(device, ggml_mul_mat(ctx.get(), weight, input));
    weight->buffer = nullptr;
    return supported;
}

// The GPU's memory, if it computes with the tensor there; else the host's.
ggml_backend_buffer_type_t gpu_type(const Gpu & gpu, const TensorSpec & spec, const GgufTensor & tensor) {
    ggml_backend_buffer_type_t type = gpu.buffer_type();
    if (spec.use == WeightUse::multiply && !can_multiply(ggml_backend_buft_get_device(type), type, tensor))
        return ggml_backend_cpu_buffer_type();
    return type;
}

}  // namespace

const GgufTensor * find_tensor(const GgufFile & file, const TensorSpec & spec) {
    const GgufTensor * tensor = file.find_tensor(spec.name);
    return !tensor && spec.name == "output.weight" ? file.find_tensor("token_embd.weight") : tensor;
}

Weights::Weights(std::shared_ptr<const GgufFile> file, const HParams & hp, bool pruned, WeightOptions options)
    : file_(std::move(file)) {
    std::vector<TensorSpec> specs = tensor_specs(find_arch(hp.arch), hp, model_);
    check_tensors(*file_, specs, pruned);
    for (size_t i = 0; options.gpu && i < specs.size(); ++i)
        if (specs[i].place == &model_.rope_freqs) {
            TensorSpec copy = specs[i];
            copy.place = &model_.rope_freqs_gpu;
            copy.il = hp.n_layer;
            specs.push_back(copy);
        }
    load(specs, options);
}

void Weights::load(const std::vector<TensorSpec> & specs, const WeightOptions & options) {
    ggml_backend_dev_t cpu = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    ggml_backend_buffer_type_t plain = ggml_backend_dev_buffer_type(cpu);
    const std::vector<ggml_backend_buffer_type_t> repacked =
        options.use_repack ? repack_types(cpu) : std::vector<ggml_backend_buffer_type_t>{};

    struct Entry {
        const GgufTensor * from;
        ggml_tensor ** place;
    };
    std::map<ggml_backend_buffer_type_t, std::vector<Entry>> by_type;
    for (const TensorSpec & spec : specs) {
        const GgufTensor * tensor = find_tensor(*file_, spec);
        if (!tensor || spec.presence == Presence::absent) continue;
        const bool tied_output = tensor->name != spec.name;
        ggml_backend_buffer_type_t type = plain;
        if (options.gpu && spec.il >= options.first_gpu_layer && spec.il >= 0)
            type = gpu_type(*options.gpu, spec, *tensor);
        if (spec.use == WeightUse::multiply && type == plain) {
            for (ggml_backend_buffer_type_t candidate : repacked)
                if (type == plain && can_multiply(cpu, candidate, *tensor)) type = candidate;
        }
        by_type[type].push_back({tensor, spec.place});
        size_bytes_ += tied_output && type == plain ? 0 : int64_t(tensor->size_bytes);
    }

    for (const auto & [type, entries] : by_type) {
        ggml_init_params params = {entries.size() * ggml_tensor_overhead(), nullptr, true};
        contexts_.emplace_back(ggml_init(params));
        ggml_context * ctx = contexts_.back().get();
        if (!ctx) throw DeviceError(file_->path() + ": out of memory for tensor headers");
        for (const Entry & entry : entries) {
            *entry.place = ggml_new_tensor(ctx, entry.from->type, entry.from->n_dims, entry.from->ne);
            ggml_set_name(*entry.place, entry.from->name.c_str());
        }
        if (type == plain && options.use_mmap) {
            uint8_t * data =
                const_cast<uint8_t *>(file_->tensor_data(file_->tensors().front())) - file_->tensors().front().offset;
            buffers_.emplace_back(ggml_backend_cpu_buffer_from_ptr(data, file_->size_bytes() - file_->data_offset()));
            for (const Entry & entry : entries)
                ggml_backend_tensor_alloc(buffers_.back().get(), *entry.place, data + entry.from->offset);
        } else {
            int64_t n_bytes = 0;
            for (const Entry & entry : entries)
                n_bytes += int64_t(ggml_backend_buft_get_alloc_size(type, *entry.place));
            const bool is_gpus = options.gpu && type == options.gpu->buffer_type();
            buffers_.emplace_back(
                is_gpus && n_bytes > Gpu::room(type) ? nullptr : ggml_backend_alloc_ctx_tensors_from_buft(ctx, type));
            if (!buffers_.back())
                throw DeviceError(file_->path() + ": out of memory: cannot hold the weights in " +
                                  ggml_backend_buft_name(type) +
                                  (options.gpu ? "; choose fewer n_gpu_layers, or -1 for as many as fit" : ""));
            for (const Entry & entry : entries) {
                ggml_backend_tensor_set(*entry.place, file_->tensor_data(*entry.from), 0, entry.from->size_bytes);
                file_->release(*entry.from);
                copied_bytes_ += int64_t(entry.from->size_bytes);
                if (is_gpus) device_bytes_ += int64_t(entry.from->size_bytes);
            }
        }
        ggml_backend_buffer_set_usage(buffers_.back().get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    }
}

}  // namespace pysa
