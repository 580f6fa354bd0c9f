#include "python_text.h"

namespace py = pybind11;

namespace pysa {

std::string file_path(const py::handle & path) {
    PyObject * converted = nullptr;
    if (PyUnicode_FSConverter(path.ptr(), &converted) == 0) throw py::error_already_set();
    const py::bytes bytes = py::reinterpret_steal<py::bytes>(converted);
    return std::string(bytes);
}

py::str python_text(const std::string & text) {
    PyObject * decoded = PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), "surrogateescape");
    if (decoded == nullptr) throw py::error_already_set();
    return py::reinterpret_steal<py::str>(decoded);
}

}  // namespace pysa
