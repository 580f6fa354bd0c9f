// From a checked GGUF to what the engine needs: hyper-parameters, the plan, the vocabulary's own consistency.
#pragma once

#include <optional>

#include "file/gguf_file.h"
#include "pysa/hparams.h"
#include "pysa/sharing_plan.h"

namespace pysa {

// Throws UnsupportedModelError for an architecture, a file kind (mmproj, adapter, split, pruned-for-nobody) or a feature outside
// the table, ModelFileError with all faults for keys that are missing, of a wrong type or out of range.
HParams read_hparams(const GgufFile & file);

// The plan as written, checked (PlanError), whatever `pysa.enabled` says; nullopt if the file has no plan keys at all.
std::optional<SharingPlan> read_plan(const GgufFile & file, const HParams & hp);

// `pysa.pruned`: q and k weights that the plan does not use were dropped, so the file cannot run dense.
bool read_pruned(const GgufFile & file);

// What libllama asserts about tokenizer.ggml.*; ModelFileError with all faults, UnsupportedModelError for a tokenizer that pysa
// does not open.
void check_vocab(const GgufFile & file, const HParams & hp);

}  // namespace pysa
