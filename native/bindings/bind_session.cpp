// Session: one conversation.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <chrono>

#include "bind_memory.h"
#include "plan_dict.h"
#include "pysa/error.h"
#include "pysa/session.h"
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
    throw ArgumentError("logits: expected none, last or all, got \"" + name + "\"");
}

// Asked between graph nodes without the GIL: looks for signals now and then, and asks the caller's function every time.
class PythonInterrupt {
  public:
    explicit PythonInterrupt(py::object callback) : callback_(std::move(callback)) {}

    bool operator()() {
        const auto now = std::chrono::steady_clock::now();
        const bool look_for_signals = now >= next_look_;
        if (!look_for_signals && callback_.is_none()) return false;
        py::gil_scoped_acquire acquire;
        if (look_for_signals) {
            next_look_ = now + std::chrono::milliseconds(20);
            if (PyErr_CheckSignals() != 0) return keep_error();
        }
        if (callback_.is_none()) return false;
        try {
            return callback_().cast<bool>();
        } catch (py::error_already_set & error) {
            error.restore();
            return keep_error();
        } catch (const py::cast_error &) {
            PyErr_SetString(PyExc_TypeError, "interrupt: expected a function that returns a bool");
            return keep_error();
        }
    }

    // Raises what stopped the evaluation, if it was Python's.
    void raise() {
        if (error_) throw std::move(*error_);
    }

  private:
    bool keep_error() {
        error_ = std::make_unique<py::error_already_set>();
        return true;
    }

    py::object callback_;
    std::chrono::steady_clock::time_point next_look_{};
    std::unique_ptr<py::error_already_set> error_;
};

py::array_t<float> eval(Session & session, const TokenArray & tokens, const std::string & logits,
                        const py::object & interrupt, int32_t n_vocab) {
    if (tokens.ndim() != 1)
        throw ArgumentError("tokens: expected shape (n,), got " + std::to_string(tokens.ndim()) + " dimensions");
    const Logits which = parse_logits(logits);
    const std::vector<int32_t> ids(tokens.data(), tokens.data() + tokens.size());
    PythonInterrupt stop(interrupt);
    auto out = std::make_unique<std::vector<float>>();
    try {
        py::gil_scoped_release release;
        *out = session.eval(ids, which, [&stop] { return stop(); });
    } catch (const Interrupted &) {
        stop.raise();
        throw;
    }
    const py::ssize_t n_out = py::ssize_t(out->size()) / n_vocab;
    const float * data = out->data();
    py::capsule owner(out.release(), [](void * p) { delete static_cast<std::vector<float> *>(p); });
    return py::array_t<float>({n_out, py::ssize_t(n_vocab)}, data, owner);
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
        .def_property_readonly("attention", &Session::attention_name)
        .def_property_readonly("kernel", &Session::kernel_name)
        .def_property_readonly("plan", [](const Session & session) { return plan_to_dict(session.plan()); })
        .def_property_readonly("tokens", [](const Session & session) { return session.tokens(); })
        .def(
            "eval",
            [](Session & session, const TokenArray & tokens, const std::string & logits, const py::object & interrupt) {
                return eval(session, tokens, logits, interrupt, session.n_vocab());
            },
            py::arg("tokens"), py::arg("logits") = "last", py::arg("interrupt") = py::none())
        .def("truncate", &Session::truncate, py::arg("n"))
        .def("rollback_position", &Session::rollback_position, py::arg("n"))
        .def("checkpoint", &Session::checkpoint)
        .def("memory", [](const Session & session) { return memory_dict(session.memory()); })
        .def("save", &save, py::arg("path"), py::arg("force") = false)
        .def("reset", &Session::reset);
}

}  // namespace pysa
