// Session: one conversation.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>

#include "bind_memory.h"
#include "plan_dict.h"
#include "pysa/error.h"
#include "pysa/sampler.h"
#include "pysa/session.h"
#include "python_interrupt.h"
#include "python_text.h"
#include "register.h"

namespace py = pybind11;

namespace pysa {

namespace {

using TokenArray = py::array_t<int32_t, py::array::c_style | py::array::forcecast>;

Logits parse_logits(const std::string & name) {
    if (name == "none") return Logits::none;
    if (name == "last") return Logits::last;
    if (name == "all") return Logits::all;
    if (name == "embeddings") return Logits::embeddings;
    throw ArgumentError("logits: expected none, last, all or embeddings, got \"" + name + "\"");
}

void check_shape(const TokenArray & tokens) {
    if (tokens.ndim() != 1)
        throw ArgumentError("tokens: expected shape (n,), got " + std::to_string(tokens.ndim()) + " dimensions");
}

py::array_t<float> output_array(py::ssize_t n_out, py::ssize_t n_row) {
    try {
        return py::array_t<float>({n_out, n_row});
    } catch (const py::error_already_set &) {
        throw DeviceError("evaluation: out of memory: cannot hold " + std::to_string(n_out) +
                          " rows of logits; ask for logits=\"last\"");
    }
}

py::array_t<float> eval(Session & session, const TokenArray & tokens, const std::string & logits,
                        const py::object & interrupt) {
    check_shape(tokens);
    const Logits which = parse_logits(logits);
    const py::ssize_t n_out = which == Logits::none ? 0 : which == Logits::last ? 1 : tokens.size();
    const int64_t n_row = which == Logits::embeddings ? session.n_embd() : session.n_vocab();
    py::array_t<float> out = output_array(n_out, n_row);
    float * to = out.mutable_data();
    const auto sink = [&](const float * rows, int64_t n_rows) { to = std::copy_n(rows, n_rows * n_row, to); };
    const int32_t * ids = tokens.data();
    const int64_t n_tokens = tokens.size();
    run_interruptible(interrupt,
                      [&](const Session::Interrupt & stop) { session.eval(ids, n_tokens, which, sink, stop); });
    return out;
}

int32_t next_token(Session & session, const TokenArray & tokens, Sampler & sampler, const py::object & interrupt) {
    check_shape(tokens);
    const int32_t * ids = tokens.data();
    const int64_t n_tokens = tokens.size();
    int32_t token = 0;
    run_interruptible(
        interrupt, [&](const Session::Interrupt & stop) { token = session.next_token(ids, n_tokens, sampler, stop); });
    return token;
}

void fill(Session & session, int64_t n, uint64_t seed) {
    py::gil_scoped_release release;
    session.fill(n, seed);
}

py::dict skip_report(const Session & session) {
    const SkipReport report = session.skip_report();
    py::dict dict;
    dict["n_values"] = report.n_values;
    dict["n_values_read"] = report.n_values_read;
    dict["dropped_mass_max"] = report.dropped_mass_max;
    dict["dropped_mass_mean"] = report.dropped_mass_mean;
    return dict;
}

void save(const Session & session, const py::object & path, bool force) {
    const std::string name = file_path(path);
    py::gil_scoped_release release;
    session.save(name, force);
}

}  // namespace

py::dict memory_dict(const MemoryReport & report) {
    py::dict dict;
    dict["n_past"] = report.n_past;
    dict["n_rows"] = report.n_rows;
    dict["n_window_rows"] = report.n_window_rows;
    dict["keys"] = report.keys;
    dict["values"] = report.values;
    dict["window_keys"] = report.window_keys;
    dict["window_values"] = report.window_values;
    dict["total"] = report.cache_total();
    dict["dense"] = report.dense;
    dict["checkpoints"] = report.checkpoints;
    dict["attention"] = report.attention;
    dict["compute"] = report.compute;
    dict["device"] = report.device;
    return dict;
}

void register_session(py::module_ & module) {
    py::class_<Session>(module, "Session", "One conversation over a Model; one thread at a time.")
        .def_property_readonly("n_past", &Session::n_past)
        .def_property_readonly("n_ctx", &Session::n_ctx)
        .def_property_readonly("n_ubatch", [](const Session & session) { return session.params().n_ubatch; })
        .def_property_readonly("n_slack", [](const Session & session) { return session.params().n_slack; })
        .def_property_readonly("type_k", [](const Session & session) { return session.params().type_k; })
        .def_property_readonly("type_v", [](const Session & session) { return session.params().type_v; })
        .def_property_readonly("v_skip", [](const Session & session) { return session.params().v_skip; })
        .def_property_readonly("attention", &Session::attention_name)
        .def_property_readonly("kernel", &Session::kernel_name)
        .def_property_readonly("first_gpu_layer", &Session::first_gpu_layer)
        .def_property_readonly("n_splits", &Session::n_splits)
        .def_property_readonly("has_window", &Session::has_window)
        .def_property_readonly("plan", [](const Session & session) { return plan_to_dict(session.plan()); })
        .def_property_readonly("tokens", [](const Session & session) { return session.tokens(); })
        .def("eval", &eval, py::arg("tokens"), py::arg("logits") = "last", py::arg("interrupt") = py::none())
        .def("next_token", &next_token, py::arg("tokens"), py::arg("sampler"), py::arg("interrupt") = py::none())
        .def("ubatch_size", &Session::ubatch_size, py::arg("n"))
        .def("fill", &fill, py::arg("n"), py::arg("seed") = 0)
        .def("truncate", &Session::truncate, py::arg("n"))
        .def("rollback_position", &Session::rollback_position, py::arg("n"))
        .def("checkpoint", &Session::checkpoint)
        .def("memory", [](const Session & session) { return memory_dict(session.memory()); })
        .def("skip_report", &skip_report)
        .def("save", &save, py::arg("path"), py::arg("force") = false)
        .def("reset", &Session::reset);
}

}  // namespace pysa
