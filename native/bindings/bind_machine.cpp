// What the machine can do, apart from any model.
#include <pybind11/pybind11.h>

#include "base/read_bandwidth.h"
#include "register.h"

namespace py = pybind11;

namespace pysa {

void register_machine(py::module_ & module) {
    module.def(
        "read_bandwidth", &read_bandwidth, py::arg("n_threads"), py::arg("n_bytes") = int64_t(1) << 30,
        py::arg("repeats") = 3, py::call_guard<py::gil_scoped_release>(),
        "1e9 bytes per second that n_threads read from a buffer of n_bytes; the best of `repeats` passes. Raises "
        "ArgumentError, or DeviceError where there is not the memory.");
}

}  // namespace pysa
