// Model: a GGUF opened for evaluation.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bind_memory.h"
#include "graph/weights.h"
#include "plan_dict.h"
#include "pysa/error.h"
#include "pysa/model.h"
#include "pysa/session.h"
#include "python_text.h"
#include "register.h"

namespace py = pybind11;

namespace pysa {

namespace {

std::shared_ptr<Model> open_model(const py::object & path, int32_t n_threads, bool use_mmap, bool use_repack,
                                  const std::string & device, int32_t n_gpu_layers, int64_t n_ctx,
                                  const std::string & type_k, const std::string & type_v, int32_t n_ubatch,
                                  bool kv_offload) {
    const ModelParams params = {n_threads, use_mmap, use_repack, device,   n_gpu_layers,
                                n_ctx,     type_k,   type_v,     n_ubatch, kv_offload};
    const std::string name = file_path(path);
    py::gil_scoped_release release;
    // Model has no member that changes it; pybind11's holders know no const.
    return std::const_pointer_cast<Model>(Model::open(name, params));
}

std::optional<SharingPlan> optional_plan(const std::optional<py::dict> & dict) {
    return dict ? std::optional<SharingPlan>(plan_from_dict(*dict)) : std::nullopt;
}

py::object model_plan(const Model & model) {
    return model.plan() ? py::object(plan_to_dict(*model.plan())) : py::object(py::none());
}

std::unique_ptr<Session> make_session(std::shared_ptr<Model> model, int64_t n_ctx, const std::string & type_k,
                                      const std::string & type_v, int32_t n_ubatch, const std::string & attention,
                                      const std::optional<py::dict> & plan, int32_t n_slack,
                                      int64_t distant_budget_bytes, std::optional<float> v_skip, bool kv_offload) {
    SessionParams params;
    params.n_ctx = n_ctx;
    params.type_k = type_k;
    params.type_v = type_v;
    params.n_ubatch = n_ubatch;
    params.attention = attention;
    params.n_slack = n_slack;
    params.distant_budget_bytes = distant_budget_bytes;
    params.kv_offload = kv_offload;
    params.v_skip = v_skip.value_or(params.v_skip);
    return std::make_unique<Session>(std::move(model), params, optional_plan(plan));
}

py::dict cache_bytes(const Model & model, int64_t n, const std::optional<py::dict> & plan, const std::string & type_k,
                     const std::string & type_v) {
    return memory_dict(model.cache_formula(model.effective_plan(optional_plan(plan)), n, type_k, type_v));
}

std::unique_ptr<Session> load_session(std::shared_ptr<Model> model, const py::object & path, bool kv_offload) {
    const std::string name = file_path(path);
    py::gil_scoped_release release;
    return Session::load(std::move(model), name, kv_offload);
}

template <class T> auto hparam(T HParams::* member) {
    return [member](const Model & model) { return model.hparams().*member; };
}

}  // namespace

void register_model(py::module_ & module) {
    const SessionParams defaults;
    const ModelParams model_defaults;
    py::class_<Model, std::shared_ptr<Model>>(module, "Model", "A GGUF file opened for evaluation; immutable.")
        .def(py::init(&open_model), py::arg("path"), py::arg("n_threads") = 0, py::arg("use_mmap") = true,
             py::arg("use_repack") = true, py::arg("device") = model_defaults.device,
             py::arg("n_gpu_layers") = model_defaults.n_gpu_layers, py::arg("n_ctx") = model_defaults.n_ctx,
             py::arg("type_k") = model_defaults.type_k, py::arg("type_v") = model_defaults.type_v,
             py::arg("n_ubatch") = model_defaults.n_ubatch, py::arg("kv_offload") = model_defaults.kv_offload)
        .def_property_readonly("arch", hparam(&HParams::arch))
        .def_property_readonly("n_layer", hparam(&HParams::n_layer))
        .def_property_readonly("n_head", hparam(&HParams::n_head))
        .def_property_readonly("n_head_kv", hparam(&HParams::n_head_kv))
        .def_property_readonly("n_embd", hparam(&HParams::n_embd))
        .def_property_readonly("n_embd_head_k", hparam(&HParams::n_embd_head_k))
        .def_property_readonly("n_embd_head_v", hparam(&HParams::n_embd_head_v))
        .def_property_readonly("n_vocab", hparam(&HParams::n_vocab))
        .def_property_readonly("n_ctx_train", hparam(&HParams::n_ctx_train))
        .def_property_readonly("n_threads", &Model::n_threads)
        .def_property_readonly("pruned", &Model::pruned)
        .def_property_readonly("plan", &model_plan)
        .def_property_readonly("vocab",
                               [](const Model & model) { return std::const_pointer_cast<Vocab>(model.shared_vocab()); })
        .def_property_readonly("size_bytes", [](const Model & model) { return model.weights().size_bytes(); })
        .def_property_readonly("fingerprint", &Model::fingerprint)
        .def_property_readonly("device", &Model::device_name)
        .def_property_readonly("n_gpu_layers", &Model::n_gpu_layers)
        .def_property_readonly("device_bytes", [](const Model & model) { return model.weights().device_bytes(); })
        .def_property_readonly("copied_bytes", [](const Model & model) { return model.weights().copied_bytes(); })
        .def("session", &make_session, py::arg("n_ctx") = defaults.n_ctx, py::arg("type_k") = defaults.type_k,
             py::arg("type_v") = defaults.type_v, py::arg("n_ubatch") = defaults.n_ubatch,
             py::arg("attention") = defaults.attention, py::arg("plan") = py::none(),
             py::arg("n_slack") = defaults.n_slack, py::arg("distant_budget_bytes") = defaults.distant_budget_bytes,
             py::arg("v_skip") = py::none(), py::arg("kv_offload") = defaults.kv_offload)
        .def("load_session", &load_session, py::arg("path"), py::arg("kv_offload") = defaults.kv_offload)
        .def("cache_bytes", &cache_bytes, py::arg("n"), py::arg("plan") = py::none(),
             py::arg("type_k") = defaults.type_k, py::arg("type_v") = defaults.type_v);
}

}  // namespace pysa
