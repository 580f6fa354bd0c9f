// gguf_read and the plan checks: what Python needs of a file without opening a model.
#include <pybind11/pybind11.h>

#include "file/gguf_file.h"
#include "file/readers.h"
#include "plan_dict.h"
#include "python_text.h"
#include "register.h"

namespace py = pybind11;

namespace pysa {

namespace {

template <class T> py::object to_python(const std::vector<T> & items) {
    py::list list(items.size());
    for (size_t i = 0; i < items.size(); ++i) {
        if constexpr (std::is_same_v<T, std::string>) {
            list[i] = python_text(items[i]);
        } else {
            list[i] = py::cast(static_cast<T>(items[i]));
        }
    }
    return list;
}

py::object to_python(const std::string & text) { return python_text(text); }
py::object to_python(bool value) { return py::bool_(value); }
py::object to_python(uint64_t value) { return py::int_(value); }
py::object to_python(int64_t value) { return py::int_(value); }
py::object to_python(double value) { return py::float_(value); }

std::shared_ptr<const GgufFile> open_file(const py::object & path) {
    const std::string name = file_path(path);
    py::gil_scoped_release release;
    return GgufFile::open(name);
}

py::dict gguf_read(const py::object & path) {
    const std::shared_ptr<const GgufFile> file = open_file(path);
    py::dict metadata, types;
    for (const auto & [key, value] : file->values()) {
        const py::str name = python_text(key);
        metadata[name] = std::visit([](const auto & data) -> py::object { return to_python(data); }, value.data);
        const bool is_array = value.type == GgufType::array;
        const py::object item_type =
            is_array ? py::object(py::int_(uint32_t(value.item_type))) : py::object(py::none());
        types[name] = py::make_tuple(uint32_t(value.type), item_type);
    }
    py::list tensors;
    for (const GgufTensor & tensor : file->tensors()) {
        py::tuple shape(tensor.n_dims);
        for (int i = 0; i < tensor.n_dims; ++i) shape[size_t(i)] = tensor.ne[i];
        tensors.append(py::make_tuple(python_text(tensor.name), ggml_type_name(tensor.type), shape, tensor.offset,
                                      tensor.size_bytes));
    }
    py::dict result;
    result["version"] = file->version();
    result["alignment"] = file->alignment();
    result["data_offset"] = file->data_offset();
    result["size_bytes"] = file->size_bytes();
    result["metadata"] = metadata;
    result["types"] = types;
    result["tensors"] = tensors;
    return result;
}

py::object gguf_plan(const py::object & path) {
    const std::shared_ptr<const GgufFile> file = open_file(path);
    const std::optional<SharingPlan> plan = read_plan(*file, read_hparams(*file));
    return plan ? py::object(plan_to_dict(*plan)) : py::object(py::none());
}

py::dict checked_plan(const py::dict & dict, int32_t n_head_kv) {
    const SharingPlan plan = plan_from_dict(dict);
    Faults faults("plan");
    if (n_head_kv < 1 || plan.n_head % n_head_kv != 0) {
        throw ArgumentError("n_head_kv: expected a divisor of n_head, " + std::to_string(plan.n_head) + ", got " +
                            std::to_string(n_head_kv));
    }
    HParams hp;
    hp.n_layer = plan.n_layer;
    hp.n_head = plan.n_head;
    hp.n_head_kv = n_head_kv;
    check_plan(plan, hp, faults);
    faults.raise_if_any<PlanError>();
    return plan_to_dict(plan);
}

}  // namespace

void register_file(py::module_ & module) {
    module.def("gguf_read", &gguf_read, py::arg("path"), "Header of a checked GGUF file. Raises ModelFileError.");
    module.def("gguf_plan", &gguf_plan, py::arg("path"),
               "The plan in a GGUF file, checked against its model; None without one.");
    module.def("check_plan", &checked_plan, py::arg("plan"), py::arg("n_head_kv"),
               "The plan with its defaults filled in. Raises PlanError with every rule that it breaks.");
}

}  // namespace pysa
