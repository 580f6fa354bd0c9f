// pysa._oracle: llama_decode of the same build and the check of the CPU kernels, for tests only. Built with PYSA_TESTS; never
// shipped.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/log.h"
#include "gpu_check.h"
#include "kernel_check.h"
#include "llama.h"
#include "oracle_fill.h"

namespace py = pybind11;

namespace {

ggml_type cache_type(const std::string & name) {
    for (const ggml_type type : {GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0}) {
        if (name == ggml_type_name(type)) return type;
    }
    throw std::runtime_error("cache type: expected f32, f16, bf16, q8_0 or q4_0, got " + name);
}

llama_flash_attn_type flash_type(const std::string & name) {
    if (name == "auto") return LLAMA_FLASH_ATTN_TYPE_AUTO;
    if (name == "on") return LLAMA_FLASH_ATTN_TYPE_ENABLED;
    if (name == "off") return LLAMA_FLASH_ATTN_TYPE_DISABLED;
    throw std::runtime_error("flash_attn: expected auto, on or off, got " + name);
}

class Oracle {
  public:
    Oracle(const std::string & path, uint32_t n_ctx, int32_t n_threads, const std::string & type_k,
           const std::string & type_v, uint32_t n_batch, uint32_t n_ubatch, const std::string & flash_attn,
           bool use_mmap, bool use_extra_bufts, const Oracle * share) {
        pysa::init_logging();
        pysa::take_logged_errors();
        model_ = share != nullptr ? share->model_ : load(path, use_mmap, use_extra_bufts);

        llama_context_params params = llama_context_default_params();
        params.n_ctx = n_ctx;
        params.n_batch = n_batch;
        params.n_ubatch = n_ubatch;
        params.n_threads = n_threads;
        params.n_threads_batch = n_threads;
        params.type_k = cache_type(type_k);
        params.type_v = cache_type(type_v);
        params.flash_attn_type = flash_type(flash_attn);
        params.offload_kqv = false;
        params.op_offload = false;
        context_.reset(llama_init_from_model(model_.get(), params));
        if (!context_) throw std::runtime_error(path + ": no context: " + pysa::take_logged_errors());
        n_batch_ = static_cast<int32_t>(llama_n_batch(context_.get()));
        n_vocab_ = llama_vocab_n_tokens(llama_model_get_vocab(model_.get()));
    }

    // Logits [n_vocab, n_out] of the last token or of every one.
    std::vector<float> eval(const std::vector<int32_t> & tokens, bool all) {
        if (tokens.empty()) throw std::runtime_error("tokens: expected at least one, got none");
        for (const int32_t token : tokens) {
            if (token < 0 || token >= n_vocab_)
                throw std::runtime_error("tokens: out of range: " + std::to_string(token));
        }
        std::vector<float> logits;
        const int32_t n = static_cast<int32_t>(tokens.size());
        for (int32_t start = 0; start < n; start += n_batch_) {
            const int32_t n_now = std::min(n_batch_, n - start);
            decode(tokens.data() + start, n_now, all, start + n_now == n);
            if (!all && start + n_now < n) continue;
            for (int32_t i = all ? 0 : n_now - 1; i < n_now; ++i) {
                const float * row = llama_get_logits_ith(context_.get(), i);
                if (row == nullptr) throw std::runtime_error("llama_decode gave no logits");
                logits.insert(logits.end(), row, row + n_vocab_);
            }
        }
        return logits;
    }

    std::vector<int32_t> greedy(const std::vector<int32_t> & tokens, int32_t n) {
        std::vector<int32_t> generated;
        std::vector<int32_t> pending = tokens;
        while (static_cast<int32_t>(generated.size()) < n) {
            const std::vector<float> logits = eval(pending, false);
            const auto best = std::max_element(logits.begin(), logits.end());
            pending = {static_cast<int32_t>(best - logits.begin())};
            generated.push_back(pending.front());
        }
        return generated;
    }

    // Makes the cache n positions long: those beyond n_past get copies of rows held, chosen at random. n may be n_past.
    void fill(int32_t n, uint32_t seed) {
        if (n_past_ < 1 || n < n_past_ || n > static_cast<int32_t>(n_ctx())) {
            throw std::runtime_error("fill: n: expected n_past (at least 1) .. n_ctx, here " + std::to_string(n_past_) +
                                     ".." + std::to_string(n_ctx()) + ", got " + std::to_string(n));
        }
        std::mt19937 random(seed);
        std::vector<uint32_t> sources(static_cast<size_t>(n));
        for (size_t i = 0; i < sources.size(); ++i)
            sources[i] = static_cast<uint32_t>(i) < static_cast<uint32_t>(n_past_) ? static_cast<uint32_t>(i)
                                                                                   : random() % uint32_t(n_past_);
        std::vector<uint8_t> state(llama_state_seq_get_size(context_.get(), 0));
        if (llama_state_seq_get_data(context_.get(), state.data(), state.size(), 0) != state.size())
            throw std::runtime_error("fill: no state: " + pysa::take_logged_errors());
        state = refilled_state(state, sources);
        if (llama_state_seq_set_data(context_.get(), state.data(), state.size(), 0) != state.size())
            throw std::runtime_error("fill: state refused: " + pysa::take_logged_errors());
        n_past_ = n;
    }

    void reset() {
        llama_memory_clear(llama_get_memory(context_.get()), true);
        n_past_ = 0;
    }

    int32_t n_past() const { return n_past_; }
    int32_t n_vocab() const { return n_vocab_; }
    uint32_t n_ctx() const { return llama_n_ctx(context_.get()); }

  private:
    static std::shared_ptr<llama_model> load(const std::string & path, bool use_mmap, bool use_extra_bufts) {
        llama_model_params params = llama_model_default_params();
        params.n_gpu_layers = 0;
        params.load_mode = use_mmap ? LLAMA_LOAD_MODE_MMAP : LLAMA_LOAD_MODE_NONE;
        params.use_extra_bufts = use_extra_bufts;
        std::shared_ptr<llama_model> model(llama_model_load_from_file(path.c_str(), params), FreeModel());
        if (!model) throw std::runtime_error(path + ": " + pysa::take_logged_errors());
        return model;
    }

    void decode(const int32_t * tokens, int32_t n, bool all, bool with_last) {
        llama_batch batch = llama_batch_init(n, 0, 1);
        for (int32_t i = 0; i < n; ++i) {
            batch.token[i] = tokens[i];
            batch.pos[i] = n_past_ + i;
            batch.n_seq_id[i] = 1;
            batch.seq_id[i][0] = 0;
            batch.logits[i] = all || (with_last && i == n - 1);
        }
        batch.n_tokens = n;
        const int32_t status = llama_decode(context_.get(), batch);
        llama_batch_free(batch);
        if (status != 0) {
            throw std::runtime_error("llama_decode: status " + std::to_string(status) + ": " +
                                     pysa::take_logged_errors());
        }
        n_past_ += n;
    }

    struct FreeModel {
        void operator()(llama_model * model) const {
            if (model != nullptr) llama_model_free(model);
        }
    };
    struct FreeContext {
        void operator()(llama_context * context) const { llama_free(context); }
    };

    std::shared_ptr<llama_model> model_;
    std::unique_ptr<llama_context, FreeContext> context_;
    int32_t n_batch_ = 0;
    int32_t n_vocab_ = 0;
    int32_t n_past_ = 0;
};

py::array_t<float> eval(Oracle & oracle, const std::vector<int32_t> & tokens, const std::string & logits) {
    if (logits != "all" && logits != "last") throw std::runtime_error("logits: expected all or last, got " + logits);
    std::vector<float> values;
    {
        py::gil_scoped_release release;
        values = oracle.eval(tokens, logits == "all");
    }
    const py::ssize_t n_vocab = oracle.n_vocab();
    py::array_t<float> array({py::ssize_t(values.size()) / n_vocab, n_vocab});
    std::memcpy(array.mutable_data(), values.data(), values.size() * sizeof(float));
    return array;
}

// Names of the sets of CPU kernels that this processor runs, best first, each checked.
std::vector<std::string> check_all_kernels() {
    std::vector<std::string> names;
    for (const pysa::CpuKernels * kernels : pysa::usable_cpu_kernels()) {
        check_kernels(*kernels);
        names.push_back(kernels->name);
    }
    return names;
}

// Prints a line for each case; returns how many failed.
int check_gpu_kernels() {
    const pysa::gpu::AttnKernels & kernels = pysa::gpu::emulated_attn_kernels();
    const int n_failed = pysa::gpu::check::check_decode(kernels) + pysa::gpu::check::check_prompt(kernels);
    std::fflush(stdout);
    return n_failed;
}

}  // namespace

PYBIND11_MODULE(_oracle, module) {
    module.doc() = "llama_decode of the pinned llama.cpp, for parity tests, and the checks of the kernels.";
    module.def("check_gpu_kernels", &check_gpu_kernels, py::call_guard<py::gil_scoped_release>());
    module.def("check_kernels", &check_all_kernels, py::call_guard<py::gil_scoped_release>());
    py::class_<Oracle>(module, "Oracle")
        .def(py::init<const std::string &, uint32_t, int32_t, const std::string &, const std::string &, uint32_t,
                      uint32_t, const std::string &, bool, bool, const Oracle *>(),
             py::arg("path"), py::arg("n_ctx"), py::arg("n_threads"), py::arg("type_k") = "f16",
             py::arg("type_v") = "f16", py::arg("n_batch") = 2048, py::arg("n_ubatch") = 512,
             py::arg("flash_attn") = "auto", py::arg("use_mmap") = true, py::arg("use_extra_bufts") = true,
             py::arg("share") = nullptr)
        .def("eval", &eval, py::arg("tokens"), py::arg("logits") = "all")
        .def("greedy", &Oracle::greedy, py::arg("tokens"), py::arg("n"), py::call_guard<py::gil_scoped_release>())
        .def("fill", &Oracle::fill, py::arg("n"), py::arg("seed") = 0, py::call_guard<py::gil_scoped_release>())
        .def("reset", &Oracle::reset)
        .def_property_readonly("n_past", &Oracle::n_past)
        .def_property_readonly("n_vocab", &Oracle::n_vocab)
        .def_property_readonly("n_ctx", &Oracle::n_ctx);
}
