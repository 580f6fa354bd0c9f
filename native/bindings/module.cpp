// pysa._native: calls register_* and nothing else. One file per class beside this one.
#include <pybind11/pybind11.h>

#include "base/log.h"
#include "register.h"

PYBIND11_MODULE(_native, module) {
    module.doc() = "pysa's native engine; use the pysa package instead.";
    pysa::init_logging();
    pysa::register_errors();
    pysa::register_file(module);
    pysa::register_machine(module);
    pysa::register_text(module);
    pysa::register_model(module);
    pysa::register_session(module);
    pysa::register_batch(module);
    pysa::register_trial(module);
    pysa::register_planning(module);
}
