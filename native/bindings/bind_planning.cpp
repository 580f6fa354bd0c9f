// AttentionStats: what calibration sums up over a model's attention.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "planning/attention_stats.h"
#include "pysa/error.h"
#include "register.h"

namespace py = pybind11;

namespace pysa {

namespace {

using FloatArray = py::array_t<float, py::array::c_style | py::array::forcecast>;
using DoubleArray = py::array_t<double, py::array::c_style | py::array::forcecast>;
using Shape = std::vector<py::ssize_t>;

// One call at a time: the GIL is released while it computes.
struct LockedStats {
    LockedStats(const AttentionShape & shape, int32_t n_threads) : stats(shape, n_threads) {}

    template <class Call> void run(const Call & call) {
        py::gil_scoped_release release;
        const std::lock_guard<std::mutex> lock(mutex);
        call(stats);
    }

    AttentionStats stats;
    std::mutex mutex;
};

std::string text(const Shape & shape) {
    std::string out;
    for (const py::ssize_t n : shape) out += (out.empty() ? "" : ", ") + (n < 0 ? "any" : std::to_string(n));
    return "(" + out + ")";
}

// -1: any size.
void check_shape(const char * name, const py::array & array, const Shape & expected) {
    const Shape got(array.shape(), array.shape() + array.ndim());
    const auto fits = [](py::ssize_t want, py::ssize_t n) { return want < 0 || want == n; };
    if (!std::equal(expected.begin(), expected.end(), got.begin(), got.end(), fits))
        throw ArgumentError(std::string(name) + ": wrong shape: expected " + text(expected) + ", got " + text(got));
}

void add_layer(LockedStats & self, const FloatArray & queries, const FloatArray & keys, float kq_scale) {
    const float *q = queries.data(), *k = keys.data();
    const Shape query_shape(queries.shape(), queries.shape() + queries.ndim());
    self.run([&](AttentionStats & stats) {
        const AttentionShape & shape = stats.shape();
        check_shape("queries", queries, {stats.n_queries(), shape.n_head, -1});
        check_shape("keys", keys, {shape.n_head_kv, stats.n_tokens(), query_shape[2]});
        stats.add_layer(q, k, query_shape[2], kq_scale);
    });
}

py::array_t<double> array(const std::vector<double> & values, const Shape & shape) {
    py::array_t<double> out(shape);
    std::copy(values.begin(), values.end(), out.mutable_data());
    return out;
}

py::dict sums(LockedStats & self) {
    AttentionSums now;
    self.run([&](AttentionStats & stats) { now = stats.sums(); });
    const AttentionShape & shape = self.stats.shape();
    py::dict dict;
    dict["n_queries"] = now.n_queries;
    dict["n_distant"] = now.n_distant;
    dict["similarity"] = array(now.similarity, {shape.n_heads(), shape.n_heads()});
    dict["layer_dots"] = array(now.layer_dots, {shape.n_layer, shape.n_layer});
    dict["mass"] = array(now.mass, {shape.n_layer, shape.n_head, 3});
    return dict;
}

void set_sums(LockedStats & self, int64_t n_queries, int64_t n_distant, const DoubleArray & similarity,
              const DoubleArray & layer_dots, const DoubleArray & mass) {
    const AttentionShape & shape = self.stats.shape();
    check_shape("similarity", similarity, {shape.n_heads(), shape.n_heads()});
    check_shape("layer_dots", layer_dots, {shape.n_layer, shape.n_layer});
    check_shape("mass", mass, {shape.n_layer, shape.n_head, 3});
    const auto values = [](const DoubleArray & from) {
        return std::vector<double>(from.data(), from.data() + from.size());
    };
    AttentionSums sums{n_queries, n_distant, values(similarity), values(layer_dots), values(mass)};
    self.run([&](AttentionStats & stats) { stats.set_sums(std::move(sums)); });
}

int64_t size_bytes(LockedStats & self) {
    int64_t n = 0;
    self.run([&](AttentionStats & stats) { n = stats.size_bytes(); });
    return n;
}

}  // namespace

void register_planning(py::module_ & module) {
    py::class_<LockedStats>(module, "AttentionStats", "Sums over queries of how alike the heads of a model attend.")
        .def(py::init([](int64_t n_layer, int64_t n_head, int64_t n_head_kv, int64_t n_sink, int64_t n_recent,
                         int32_t n_threads) {
                 return std::make_unique<LockedStats>(AttentionShape{n_layer, n_head, n_head_kv, n_sink, n_recent},
                                                      n_threads);
             }),
             py::arg("n_layer"), py::arg("n_head"), py::arg("n_head_kv"), py::arg("n_sink"), py::arg("n_recent"),
             py::arg("n_threads"))
        .def(
            "begin_sample",
            [](LockedStats & self, int64_t n_tokens, int64_t n_queries) {
                self.run([&](AttentionStats & stats) { stats.begin_sample(n_tokens, n_queries); });
            },
            py::arg("n_tokens"), py::arg("n_queries"))
        .def("add_layer", &add_layer, py::arg("queries"), py::arg("keys"), py::arg("kq_scale"))
        .def("end_sample", [](LockedStats & self) { self.run([](AttentionStats & stats) { stats.end_sample(); }); })
        .def("sums", &sums)
        .def("set_sums", &set_sums, py::arg("n_queries"), py::arg("n_distant"), py::arg("similarity"),
             py::arg("layer_dots"), py::arg("mass"))
        .def_property_readonly("size_bytes", &size_bytes);
}

}  // namespace pysa
