// Vocab, Sampler, quantize.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "pysa/error.h"
#include "pysa/sampler.h"
#include "pysa/vocab.h"
#include "python_text.h"
#include "register.h"
#include "text/quantize.h"

namespace py = pybind11;

namespace pysa {

namespace {

using FloatArray = py::array_t<float, py::array::c_style | py::array::forcecast>;

std::shared_ptr<Vocab> open_vocab(const py::object & path) {
    const std::string name = file_path(path);
    py::gil_scoped_release release;
    // Vocab has no member that changes it; pybind11's holders know no const.
    return std::const_pointer_cast<Vocab>(Vocab::open(name));
}

std::vector<int32_t> tokenize(const Vocab & vocab, const std::string & text, bool add_special, bool parse_special) {
    py::gil_scoped_release release;
    return vocab.tokenize(text, add_special, parse_special);
}

int32_t sample(Sampler & sampler, const FloatArray & logits) {
    if (logits.ndim() != 1 || logits.shape(0) > INT32_MAX) {
        throw ArgumentError("logits: expected shape (n_vocab,), got " + std::to_string(logits.ndim()) + " dimensions");
    }
    return sampler.sample(logits.data(), static_cast<int32_t>(logits.shape(0)));
}

void quantize_file(const py::object & src, const py::object & dst, const std::string & type, int32_t n_threads) {
    const std::string src_name = file_path(src);
    const std::string dst_name = file_path(dst);
    try {
        py::gil_scoped_release release;
        quantize(src_name, dst_name, type, n_threads);
    } catch (const ConvertError & error) {
        const py::object cls = py::module_::import("pysa.errors").attr("ConvertError");
        PyErr_SetObject(cls.ptr(), python_text(error.what()).ptr());
        throw py::error_already_set();
    }
}

}  // namespace

void register_text(py::module_ & module) {
    py::class_<Vocab, std::shared_ptr<Vocab>>(module, "Vocab", "A vocabulary, opened through libllama.")
        .def(py::init(&open_vocab), py::arg("path"))
        .def_property_readonly("n_tokens", &Vocab::n_tokens)
        .def_property_readonly("bos", &Vocab::bos)
        .def_property_readonly("eos", &Vocab::eos)
        .def_property_readonly("eot", &Vocab::eot)
        .def_property_readonly("add_bos", &Vocab::add_bos)
        .def_property_readonly("add_eos", &Vocab::add_eos)
        .def("is_eog", &Vocab::is_eog, py::arg("token"))
        .def("tokenize", &tokenize, py::arg("text"), py::arg("add_special") = true, py::arg("parse_special") = true)
        .def(
            "token_to_piece",
            [](const Vocab & vocab, int32_t token, bool special) {
                return py::bytes(vocab.token_to_piece(token, special));
            },
            py::arg("token"), py::arg("special") = true)
        .def(
            "detokenize",
            [](const Vocab & vocab, const std::vector<int32_t> & tokens, bool special) {
                return py::bytes(vocab.detokenize(tokens, special));
            },
            py::arg("tokens"), py::arg("special") = false);

    py::class_<Sampler>(module, "Sampler", "Picks tokens from logits; seeded.")
        .def(py::init([](float temperature, int32_t top_k, float top_p, float min_p, uint32_t seed) {
                 return std::make_unique<Sampler>(SamplerParams{temperature, top_k, top_p, min_p, seed});
             }),
             py::arg("temperature") = 0.8f, py::arg("top_k") = 40, py::arg("top_p") = 0.95f, py::arg("min_p") = 0.05f,
             py::arg("seed") = 0)
        .def("sample", &sample, py::arg("logits"));

    module.def("quantize", &quantize_file, py::arg("src"), py::arg("dst"), py::arg("type"), py::arg("n_threads") = 0,
               "libllama's quantiser; may end the process on a hostile file, so call it in a child process.");
    module.def("quantize_types", &quantize_types);
}

}  // namespace pysa
