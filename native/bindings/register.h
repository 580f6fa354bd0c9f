// What module.cpp calls: one function per file of bindings.
#pragma once

#include <pybind11/pybind11.h>

namespace pysa {

void register_batch(pybind11::module_ & module);
void register_errors();
void register_file(pybind11::module_ & module);
void register_machine(pybind11::module_ & module);
void register_text(pybind11::module_ & module);
void register_model(pybind11::module_ & module);
void register_session(pybind11::module_ & module);
void register_trial(pybind11::module_ & module);
void register_planning(pybind11::module_ & module);

}  // namespace pysa
