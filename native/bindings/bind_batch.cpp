// Batch: several sessions in one graph.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <tuple>

#include "pysa/batch.h"
#include "pysa/error.h"
#include "python_interrupt.h"
#include "register.h"

namespace py = pybind11;

namespace pysa {

namespace {

using TokenArray = py::array_t<int32_t, py::array::c_style | py::array::forcecast>;
using Entry = std::tuple<Session *, TokenArray, bool>;

py::tuple step(Batch & batch, const std::vector<Entry> & given, const py::object & interrupt) {
    std::vector<BatchEntry> entries;
    for (const auto & [session, tokens, wants_logits] : given) {
        if (!session) throw ArgumentError("entries: expected sessions, got None");
        if (tokens.ndim() != 1)
            throw ArgumentError("entries: tokens: expected shape (n,), got " + std::to_string(tokens.ndim()) +
                                " dimensions");
        entries.push_back({session, tokens.data(), tokens.size(), wants_logits});
    }
    const size_t n_vocab = size_t(batch.n_vocab());
    // Lanes are not in the entries' order, so their logits wait here.
    std::vector<std::vector<float>> logits(entries.size());
    const auto sink = [&](size_t entry, const float * row) { logits[entry].assign(row, row + n_vocab); };
    std::vector<int64_t> counts;
    run_interruptible(interrupt, [&](const Session::Interrupt & stop) { counts = batch.step(entries, sink, stop); });
    const auto n_rows = std::count_if(logits.begin(), logits.end(), [](const auto & row) { return !row.empty(); });
    py::array_t<float> rows({py::ssize_t(n_rows), py::ssize_t(n_vocab)});
    float * to = rows.mutable_data();
    for (const std::vector<float> & row : logits) to = std::copy(row.begin(), row.end(), to);
    return py::make_tuple(counts, rows);
}

}  // namespace

void register_batch(py::module_ & module) {
    py::class_<Batch>(module, "Batch", "Evaluates several sessions of one model in one graph.")
        .def(py::init([](std::shared_ptr<Model> model) { return std::make_unique<Batch>(std::move(model)); }),
             py::arg("model"))
        .def("step", &step, py::arg("entries"), py::arg("interrupt") = py::none())
        .def_property_readonly("size_bytes", &Batch::size_bytes);
}

}  // namespace pysa
