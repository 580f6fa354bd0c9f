// C++ errors -> the classes of pysa/errors.py, by name.
#include <pybind11/pybind11.h>

#include "pysa/error.h"
#include "python_text.h"
#include "register.h"

namespace py = pybind11;

namespace pysa {

namespace {

void raise(const char * name, const std::exception & error) {
    const py::object cls = py::module_::import("pysa.errors").attr(name);
    PyErr_SetObject(cls.ptr(), python_text(error.what()).ptr());
}

void translate(std::exception_ptr pointer) {
    try {
        if (pointer) std::rethrow_exception(pointer);
    } catch (const ModelFileError & e) {
        raise("ModelFileError", e);
    } catch (const UnsupportedModelError & e) {
        raise("UnsupportedModelError", e);
    } catch (const PlanError & e) {
        raise("PlanError", e);
    } catch (const ContextFullError & e) {
        raise("ContextFullError", e);
    } catch (const DeviceError & e) {
        raise("DeviceError", e);
    } catch (const StateFileError & e) {
        raise("StateFileError", e);
    } catch (const RollbackError & e) {
        raise("RollbackError", e);
    } catch (const SessionBusyError & e) {
        raise("SessionBusyError", e);
    } catch (const ArgumentError & e) {
        raise("ArgumentError", e);
    } catch (const Interrupted & e) {
        raise("EvaluationCancelledError", e);
    } catch (const Error & e) {
        raise("PysaError", e);
    }
}

}  // namespace

void register_errors() { py::register_exception_translator(&translate); }

}  // namespace pysa
