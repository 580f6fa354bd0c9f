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

std::unique_ptr<Sampler> make_sampler(float temperature, int32_t top_k, float top_p, float min_p, uint32_t seed,
                                      std::shared_ptr<Vocab> vocab, float typical_p, float repeat_penalty,
                                      float frequency_penalty, float presence_penalty, int32_t penalty_last_n,
                                      int32_t mirostat_mode, float mirostat_tau, float mirostat_eta,
                                      std::optional<std::map<int32_t, float>> logit_bias,
                                      std::optional<std::string> grammar, std::string grammar_root) {
    SamplerParams params;
    params.temperature = temperature;
    params.top_k = top_k;
    params.top_p = top_p;
    params.min_p = min_p;
    params.seed = seed;
    params.vocab = std::move(vocab);
    params.typical_p = typical_p;
    params.repeat_penalty = repeat_penalty;
    params.frequency_penalty = frequency_penalty;
    params.presence_penalty = presence_penalty;
    params.penalty_last_n = penalty_last_n;
    params.mirostat_mode = mirostat_mode;
    params.mirostat_tau = mirostat_tau;
    params.mirostat_eta = mirostat_eta;
    if (logit_bias) params.logit_bias = std::move(*logit_bias);
    if (grammar) params.grammar = std::move(*grammar);
    params.grammar_root = std::move(grammar_root);
    py::gil_scoped_release release;
    return std::make_unique<Sampler>(params);
}

int32_t sample(Sampler & sampler, const FloatArray & logits) {
    if (logits.ndim() != 1 || logits.shape(0) > INT32_MAX) {
        throw ArgumentError("logits: expected shape (n_vocab,), got " + std::to_string(logits.ndim()) + " dimensions");
    }
    const float * values = logits.data();
    const auto n_vocab = static_cast<int32_t>(logits.shape(0));
    py::gil_scoped_release release;
    return sampler.sample(values, n_vocab);
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

    const SamplerParams defaults;
    py::class_<Sampler>(module, "Sampler", "Picks tokens from logits; seeded.")
        .def(py::init(&make_sampler), py::arg("temperature") = defaults.temperature, py::arg("top_k") = defaults.top_k,
             py::arg("top_p") = defaults.top_p, py::arg("min_p") = defaults.min_p, py::arg("seed") = defaults.seed,
             py::kw_only(), py::arg("vocab") = py::none(), py::arg("typical_p") = defaults.typical_p,
             py::arg("repeat_penalty") = defaults.repeat_penalty,
             py::arg("frequency_penalty") = defaults.frequency_penalty,
             py::arg("presence_penalty") = defaults.presence_penalty,
             py::arg("penalty_last_n") = defaults.penalty_last_n, py::arg("mirostat_mode") = defaults.mirostat_mode,
             py::arg("mirostat_tau") = defaults.mirostat_tau, py::arg("mirostat_eta") = defaults.mirostat_eta,
             py::arg("logit_bias") = py::none(), py::arg("grammar") = py::none(),
             py::arg("grammar_root") = defaults.grammar_root)
        .def("sample", &sample, py::arg("logits"))
        .def("accept", &Sampler::accept, py::arg("token"))
        .def("reset", &Sampler::reset)
        .def("clone", &Sampler::clone);

    module.def("json_schema_to_grammar", &json_schema_to_gbnf, py::arg("schema_json"),
               py::call_guard<py::gil_scoped_release>(), "A grammar of the JSON texts that a JSON schema allows.");
    module.def("quantize", &quantize_file, py::arg("src"), py::arg("dst"), py::arg("type"), py::arg("n_threads") = 0,
               "libllama's quantiser; may end the process on a hostile file, so call it in a child process.");
    module.def("quantize_types", &quantize_types);
}

}  // namespace pysa
