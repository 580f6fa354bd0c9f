// Long calls without the GIL that Ctrl-C, or a Python function, can stop.
#pragma once

#include <pybind11/pybind11.h>

#include <chrono>
#include <memory>
#include <string>

#include "pysa/error.h"

namespace pysa {

namespace py = pybind11;

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

// Runs `evaluate` without the GIL; what Python's side of the interrupt raised comes out as it was.
template <class Evaluate> void run_interruptible(const py::object & interrupt, Evaluate && evaluate) {
    PythonInterrupt stop(interrupt);
    try {
        py::gil_scoped_release release;
        evaluate([&stop] { return stop(); });
    } catch (const Interrupted &) {
        stop.raise();
        throw;
    }
}

}  // namespace pysa
