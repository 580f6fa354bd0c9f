// A sharing plan as the dict of plan.json (docs/format.md), both ways.
#pragma once

#include <pybind11/pybind11.h>

#include "pysa/sharing_plan.h"

namespace pysa {

// PlanError with all faults of form: unknown keys, missing keys, types, ragged rows. The rules are check_plan's.
SharingPlan plan_from_dict(const pybind11::dict & dict);

pybind11::dict plan_to_dict(const SharingPlan & plan);

}  // namespace pysa
