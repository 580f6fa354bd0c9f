// What the machine can do, apart from any model.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "base/read_bandwidth.h"
#include "pysa/device.h"
#include "register.h"

namespace py = pybind11;

namespace pysa {

namespace {

py::list device_list() {
    py::list list;
    for (const DeviceInfo & info : list_devices()) {
        py::dict dict;
        dict["name"] = info.name;
        dict["description"] = info.description;
        dict["attention"] = info.attention;
        dict["is_integrated"] = info.is_integrated;
        dict["total_bytes"] = info.total_bytes;
        dict["free_bytes"] = info.free_bytes;
        list.append(dict);
    }
    return list;
}

}  // namespace

void register_machine(py::module_ & module) {
    module.def("devices", &device_list, "The GPUs that this build can use here, as dicts.");
    module.def(
        "copy_bandwidth", &copy_bandwidth, py::arg("device"), py::arg("n_bytes") = int64_t(1) << 30,
        py::arg("repeats") = 5, py::call_guard<py::gil_scoped_release>(),
        "1e9 bytes per second, read and written, with which a GPU copies n_bytes of its memory; the best of `repeats` "
        "passes. Raises ArgumentError, or DeviceError where there is not the memory.");
    module.def("device_support", &device_support, "Why there is none; empty if there are some.");
    module.def("add_device_library_dirs", &add_device_library_dirs, py::arg("dirs"),
               "Where CUDA's libraries may be besides the system's folders; before anything else is asked of devices.");
    module.def(
        "read_bandwidth", &read_bandwidth, py::arg("n_threads"), py::arg("n_bytes") = int64_t(1) << 30,
        py::arg("repeats") = 3, py::call_guard<py::gil_scoped_release>(),
        "1e9 bytes per second that n_threads read from a buffer of n_bytes; the best of `repeats` passes. Raises "
        "ArgumentError, or DeviceError where there is not the memory.");
}

}  // namespace pysa
