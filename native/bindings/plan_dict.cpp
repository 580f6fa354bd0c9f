#include "plan_dict.h"

#include <limits>
#include <optional>
#include <set>

#include "base/bytes.h"
#include "python_text.h"

namespace py = pybind11;

namespace pysa {

namespace {

std::string type_name(const py::handle & value) { return Py_TYPE(value.ptr())->tp_name; }

// Faults name the key; a value that is not there or of another type leaves the default.
class DictReader {
  public:
    DictReader(const py::dict & dict, Faults & faults) : dict_(dict), faults_(faults) {}

    void refuse_unknown(const std::set<std::string> & known) {
        for (const auto & item : dict_) {
            const std::string key = py::isinstance<py::str>(item.first) ? text_of(item.first) : type_name(item.first);
            if (known.count(key) == 0)
                faults_.add(quoted(key) + ": expected a key of plan version 1, got an unknown one");
        }
    }

    py::object find(const char * key, bool required) {
        if (dict_.contains(key)) {
            py::object value = dict_[key];
            if (!value.is_none() || required) return value;
        } else if (required) {
            faults_.add(std::string(key) + ": missing");
        }
        return py::object();
    }

    int64_t integer(const char * key, int64_t low, int64_t high) {
        const py::object value = find(key, true);
        if (!value) return low;
        const std::optional<int64_t> number = as_integer(value);
        if (!number) {
            mistyped(key, "an integer", value);
        } else if (*number < low || *number > high) {
            faults_.add(std::string(key) + ": expected " + std::to_string(low) + " to " + std::to_string(high) +
                        ", got " + std::to_string(*number));
        } else {
            return *number;
        }
        return low;
    }

    bool boolean(const char * key, bool otherwise) {
        const py::object value = find(key, false);
        if (!value) return otherwise;
        if (!py::isinstance<py::bool_>(value)) mistyped(key, "a bool", value);
        return value.ptr() == Py_True;
    }

    float number(const char * key, float otherwise) {
        const py::object value = find(key, false);
        if (!value) return otherwise;
        const std::optional<float> number = as_float(value);
        if (!number) mistyped(key, "a number", value);
        return number.value_or(otherwise);
    }

    std::string text(const char * key, bool required, const char * otherwise) {
        const py::object value = find(key, required);
        if (!value) return otherwise;
        if (!py::isinstance<py::str>(value)) {
            mistyped(key, "a string", value);
            return otherwise;
        }
        return text_of(value);
    }

    // Rows of n_head values, n_layer of them, joined.
    template <class T> std::vector<T> rows(const char * key, bool required, int64_t n_layer, int64_t n_head,
                                           std::optional<T> (*convert)(py::handle)) {
        std::vector<T> values;
        const py::object outer = find(key, required);
        if (!outer) return values;
        if (!is_list(outer)) {
            mistyped(key, "a list of rows", outer);
            return values;
        }
        const size_t n_rows = py::len(outer);
        if (int64_t(n_rows) != n_layer) {
            faults_.add(std::string(key) + ": expected " + std::to_string(n_layer) + " rows, one per layer, got " +
                        std::to_string(n_rows));
        }
        size_t il = 0;
        for (const py::handle row : outer) {
            const std::string place = std::string(key) + ": row " + std::to_string(il++);
            if (!is_list(row) || int64_t(py::len(row)) != n_head) {
                faults_.add(place + ": expected a list of " + std::to_string(n_head) + " values, one per head, got " +
                            (is_list(row) ? std::to_string(py::len(row)) : type_name(row)));
                return values;
            }
            for (const py::handle item : row) {
                const std::optional<T> value = convert(item);
                if (!value) {
                    faults_.add(place + ": expected numbers that fit, got " + type_name(item) + " " +
                                text_of(py::repr(item)));
                    return values;
                }
                values.push_back(*value);
            }
        }
        return values;
    }

    static std::optional<int64_t> as_integer(py::handle value) {
        if (PyBool_Check(value.ptr()) || !PyIndex_Check(value.ptr())) return std::nullopt;
        const py::object index = py::reinterpret_steal<py::object>(PyNumber_Index(value.ptr()));
        const long long number = index ? PyLong_AsLongLong(index.ptr()) : -1;
        if (PyErr_Occurred() == nullptr) return number;
        PyErr_Clear();
        return std::nullopt;
    }

    static std::optional<int32_t> as_source(py::handle value) {
        const std::optional<int64_t> number = as_integer(value);
        if (!number || *number < INT32_MIN || *number > INT32_MAX) return std::nullopt;
        return static_cast<int32_t>(*number);
    }

    static std::optional<float> as_float(py::handle value) {
        if (PyBool_Check(value.ptr()) || !PyNumber_Check(value.ptr())) return std::nullopt;
        const double number = PyFloat_AsDouble(value.ptr());
        if (PyErr_Occurred() == nullptr) return static_cast<float>(number);
        PyErr_Clear();
        return std::nullopt;
    }

  private:
    static bool is_list(const py::handle & value) {
        return PySequence_Check(value.ptr()) && !py::isinstance<py::str>(value) && !py::isinstance<py::bytes>(value);
    }

    static std::string text_of(const py::handle & value) {
        PyObject * encoded = PyUnicode_AsEncodedString(value.ptr(), "utf-8", "replace");
        if (encoded == nullptr) throw py::error_already_set();
        return std::string(py::reinterpret_steal<py::bytes>(encoded));
    }

    void mistyped(const char * key, const char * expected, const py::handle & value) {
        faults_.add(std::string(key) + ": expected " + expected + ", got " + type_name(value));
    }

    const py::dict & dict_;
    Faults & faults_;
};

template <class T> py::list to_rows(const std::vector<T> & values, int32_t n_head) {
    py::list rows;
    for (size_t i = 0; i < values.size(); i += static_cast<size_t>(n_head)) {
        py::list row;
        for (size_t h = i; h < i + static_cast<size_t>(n_head); ++h) row.append(values[h]);
        rows.append(row);
    }
    return rows;
}

}  // namespace

SharingPlan plan_from_dict(const py::dict & dict) {
    constexpr int64_t max_count = std::numeric_limits<int32_t>::max();
    Faults faults("plan");
    DictReader reader(dict, faults);
    // Another version may have other keys: it is named before anything else is looked at.
    const py::object version = reader.find("version", true);
    faults.raise_if_any<PlanError>();
    if (DictReader::as_integer(version) != int64_t(1)) {
        throw PlanError("plan: version: expected 1, got " + std::string(py::str(py::repr(version))) +
                        "; a newer pysa may read it");
    }

    reader.refuse_unknown({"version", "enabled", "method", "distant", "n_sink", "n_recent", "n_layer", "n_head",
                           "skip_gate", "score_layer", "score_head", "mass_bias", "calibration"});
    SharingPlan plan;
    plan.enabled = reader.boolean("enabled", true);
    plan.method = reader.text("method", false, "custom");
    const std::string distant = reader.text("distant", true, "scores");
    if (distant != "scores" && distant != "keys")
        faults.add("distant: expected 'scores' or 'keys', got " + quoted(distant));
    plan.distant = distant == "keys" ? Distant::keys : Distant::scores;
    plan.n_sink = static_cast<int32_t>(reader.integer("n_sink", 0, max_count));
    plan.n_recent = static_cast<int32_t>(reader.integer("n_recent", 0, max_count));
    plan.n_layer = static_cast<int32_t>(reader.integer("n_layer", 1, max_count));
    plan.n_head = static_cast<int32_t>(reader.integer("n_head", 1, max_count));
    plan.skip_gate = reader.number("skip_gate", 1.0f);
    plan.score_layer = reader.rows<int32_t>("score_layer", true, plan.n_layer, plan.n_head, DictReader::as_source);
    plan.score_head = reader.rows<int32_t>("score_head", true, plan.n_layer, plan.n_head, DictReader::as_source);
    plan.mass_bias = reader.rows<float>("mass_bias", false, plan.n_layer, plan.n_head, DictReader::as_float);
    faults.raise_if_any<PlanError>();
    return plan;
}

py::dict plan_to_dict(const SharingPlan & plan) {
    py::dict dict;
    dict["version"] = plan.version;
    dict["enabled"] = plan.enabled;
    dict["method"] = python_text(plan.method);
    dict["distant"] = plan.distant == Distant::keys ? "keys" : "scores";
    dict["n_sink"] = plan.n_sink;
    dict["n_recent"] = plan.n_recent;
    dict["n_layer"] = plan.n_layer;
    dict["n_head"] = plan.n_head;
    dict["skip_gate"] = plan.skip_gate;
    dict["score_layer"] = to_rows(plan.score_layer, plan.n_head);
    dict["score_head"] = to_rows(plan.score_head, plan.n_head);
    if (!plan.mass_bias.empty()) dict["mass_bias"] = to_rows(plan.mass_bias, plan.n_head);
    return dict;
}

}  // namespace pysa
