// The `pysa.*` keys of a GGUF, with the types docs/format.md gives them.
#include <limits>
#include <set>

#include "base/bytes.h"
#include "file/key_reader.h"
#include "file/readers.h"

namespace pysa {

namespace {

const std::set<std::string> plan_keys = {
    "pysa.version",     "pysa.enabled",    "pysa.method",    "pysa.distant",   "pysa.n_sink", "pysa.n_recent",
    "pysa.score_layer", "pysa.score_head", "pysa.mass_bias", "pysa.skip_gate", "pysa.pruned",
};

bool starts_with(const std::string & text, const std::string & prefix) {
    return text.compare(0, prefix.size(), prefix) == 0;
}

void require(KeyReader & keys, const char * key, const char * type) {
    if (!keys.has(key)) keys.missing(key, type);
}

int32_t window_size(KeyReader & keys, const char * key) {
    return keys.count(key, 0, std::numeric_limits<int32_t>::max());
}

std::vector<int32_t> sources(KeyReader & keys, const char * key) {
    require(keys, key, "array of i32");
    const std::vector<int64_t> * items = keys.i32_array(key);
    return items == nullptr ? std::vector<int32_t>() : std::vector<int32_t>(items->begin(), items->end());
}

// A version this engine does not know may have other keys and other rules: nothing else is looked at.
bool find_version(const GgufFile & file) {
    const GgufValue * version = file.find("pysa.version");
    if (version == nullptr) {
        for (const auto & [key, value] : file.values()) {
            if (plan_keys.count(key) != 0 && key != "pysa.pruned") {
                throw PlanError(file.path() + ": pysa.version: missing, though " + key + " is there: expected u32 1");
            }
        }
        return false;
    }
    if (version->type != GgufType::u32) {
        throw PlanError(file.path() + ": pysa.version: expected u32, got " + type_of(*version));
    }
    if (std::get<uint64_t>(version->data) != 1) {
        throw PlanError(file.path() + ": pysa.version: expected 1, got " +
                        std::to_string(std::get<uint64_t>(version->data)) + "; a newer pysa may read it");
    }
    return true;
}

}  // namespace

std::optional<SharingPlan> read_plan(const GgufFile & file, const HParams & hp) {
    if (!find_version(file)) return std::nullopt;

    Faults faults(file.path());
    KeyReader keys(file, faults);
    for (const auto & [key, value] : file.values()) {
        if (!starts_with(key, "pysa.") || starts_with(key, "pysa.calibration.")) continue;
        if (plan_keys.count(key) == 0)
            faults.add(quoted(key) + ": expected a key of plan version 1, got an unknown one");
    }

    SharingPlan plan;
    plan.n_layer = hp.n_layer;
    plan.n_head = hp.n_head;
    plan.enabled = keys.boolean("pysa.enabled").value_or(true);
    plan.method = keys.text("pysa.method").value_or("custom");
    require(keys, "pysa.distant", "string");
    const std::string distant = keys.text("pysa.distant").value_or("scores");
    if (distant != "scores" && distant != "keys")
        keys.out_of_range("pysa.distant", "'scores' or 'keys'", quoted(distant));
    plan.distant = distant == "keys" ? Distant::keys : Distant::scores;
    plan.n_sink = window_size(keys, "pysa.n_sink");
    plan.n_recent = window_size(keys, "pysa.n_recent");
    plan.score_layer = sources(keys, "pysa.score_layer");
    plan.score_head = sources(keys, "pysa.score_head");
    if (const std::vector<double> * bias = keys.f32_array("pysa.mass_bias")) {
        plan.mass_bias.assign(bias->begin(), bias->end());
        if (bias->empty()) keys.out_of_range("pysa.mass_bias", "one value per head, or no such key", "none");
    }
    plan.skip_gate = keys.f32("pysa.skip_gate").value_or(1.0f);
    keys.boolean("pysa.pruned");

    // A missing or mistyped key would only echo as a wrong length or window.
    if (faults.empty()) check_plan(plan, hp, faults);
    faults.raise_if_any<PlanError>();
    return plan;
}

bool read_pruned(const GgufFile & file) {
    Faults faults(file.path());
    const bool pruned = KeyReader(file, faults).boolean("pysa.pruned").value_or(false);
    faults.raise_if_any<PlanError>();
    return pruned;
}

}  // namespace pysa
