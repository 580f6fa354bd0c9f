// Trial: one text under many plans.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "plan_dict.h"
#include "pysa/trial.h"
#include "python_interrupt.h"
#include "register.h"

namespace pysa {

namespace {

template <class T> using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

template <class T> void check_1d(const Array<T> & array, const char * name) {
    if (array.ndim() != 1)
        throw ArgumentError(std::string(name) + ": expected shape (n,), got " + std::to_string(array.ndim()) +
                            " dimensions");
}

std::unique_ptr<Trial> make_trial(std::shared_ptr<Model> model, const Array<int32_t> & tokens,
                                  const std::string & type_k, const std::string & type_v, int32_t n_ubatch,
                                  int64_t n_queries) {
    check_1d(tokens, "tokens");
    TrialParams params;
    params.type_k = type_k;
    params.type_v = type_v;
    params.n_ubatch = n_ubatch;
    params.n_queries = n_queries;
    return std::make_unique<Trial>(std::move(model), params,
                                   std::vector<int32_t>(tokens.data(), tokens.data() + tokens.size()));
}

int32_t run(Trial & trial, const py::dict & plan, bool keep, const py::object & interrupt) {
    const SharingPlan native = plan_from_dict(plan);
    int32_t n = 0;
    run_interruptible(interrupt, [&](const Trial::Interrupt & stop) { n = trial.run(native, keep, stop); });
    return n;
}

py::array_t<float> logits(Trial & trial, const Array<int64_t> & positions, const py::object & interrupt) {
    check_1d(positions, "positions");
    py::array_t<float> out({positions.size(), py::ssize_t(trial.model().hparams().n_vocab)});
    float * to = out.mutable_data();
    const int64_t * from = positions.data();
    const int64_t n = positions.size();
    run_interruptible(interrupt, [&](const Trial::Interrupt & stop) { trial.logits(from, n, to, stop); });
    return out;
}

py::array_t<float> queries(const Trial & trial, int32_t il) {
    const HParams & hp = trial.model().hparams();
    py::array_t<float> out({py::ssize_t(trial.n_queries()), py::ssize_t(hp.n_head), py::ssize_t(hp.n_embd_head_k)});
    trial.queries(il, out.mutable_data());
    return out;
}

py::array_t<float> rows(const Trial & trial, int32_t il, bool is_key) {
    const HParams & hp = trial.model().hparams();
    const py::ssize_t n_embd = is_key ? hp.n_embd_head_k : hp.n_embd_head_v;
    py::array_t<float> out({py::ssize_t(hp.n_head_kv), py::ssize_t(trial.n_tokens()), n_embd});
    float * to = out.mutable_data();
    py::gil_scoped_release release;
    is_key ? trial.keys(il, to) : trial.values(il, to);
    return out;
}

}  // namespace

void register_trial(py::module_ & module) {
    const TrialParams defaults;
    py::class_<Trial>(module, "Trial", "One text held in memory and evaluated under many plans; one thread at a time.")
        .def(py::init(&make_trial), py::arg("model"), py::arg("tokens"), py::arg("type_k") = defaults.type_k,
             py::arg("type_v") = defaults.type_v, py::arg("n_ubatch") = defaults.n_ubatch, py::arg("n_queries") = 0)
        .def_property_readonly("n_tokens", &Trial::n_tokens)
        .def_property_readonly("n_queries", &Trial::n_queries)
        .def_property_readonly("kq_scale", [](const Trial & trial) { return trial.model().hparams().kq_scale; })
        .def_property_readonly("size_bytes", &Trial::size_bytes)
        .def("run", &run, py::arg("plan"), py::arg("keep") = false, py::arg("interrupt") = py::none())
        .def("logits", &logits, py::arg("positions"), py::arg("interrupt") = py::none())
        .def("queries", &queries, py::arg("layer"))
        .def(
            "keys", [](const Trial & trial, int32_t il) { return rows(trial, il, true); }, py::arg("layer"))
        .def("values", [](const Trial & trial, int32_t il) { return rows(trial, il, false); }, py::arg("layer"));
}

}  // namespace pysa
