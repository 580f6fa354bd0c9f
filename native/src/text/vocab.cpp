#include "pysa/vocab.h"

#include <climits>

#include "base/bytes.h"
#include "base/log.h"
#include "file/gguf_file.h"
#include "file/readers.h"
#include "llama.h"
#include "pysa/error.h"
#include "text/deep_stack.h"

namespace pysa {

namespace {

std::optional<int32_t> valid(llama_token token) {
    return token == LLAMA_TOKEN_NULL ? std::nullopt : std::optional<int32_t>(token);
}

}  // namespace

std::shared_ptr<const Vocab> Vocab::open(const std::string & path) {
    const std::shared_ptr<const GgufFile> file = GgufFile::open(path);
    return open(*file, read_hparams(*file));
}

std::shared_ptr<const Vocab> Vocab::open(const GgufFile & file, const HParams & hp) {
    check_vocab(file, hp);
    init_logging();
    take_logged_errors();

    ggml_backend_dev_t no_devices[] = {nullptr};
    llama_model_params params = llama_model_default_params();
    params.vocab_only = true;
    params.devices = no_devices;
    params.n_gpu_layers = 0;
    params.load_mode = LLAMA_LOAD_MODE_NONE;
    std::shared_ptr<Vocab> vocab(new Vocab());
    vocab->path_ = file.path();
    vocab->model_ = llama_model_load_from_file(file.path().c_str(), params);
    if (vocab->model_ == nullptr) {
        throw ModelFileError(file.path() +
                             ": libllama cannot open the vocabulary: " + quoted(take_logged_errors(), 400));
    }
    vocab->vocab_ = llama_model_get_vocab(vocab->model_);
    vocab->n_tokens_ = llama_vocab_n_tokens(vocab->vocab_);
    const GgufValue * adds_space = file.find("tokenizer.ggml.add_space_prefix");
    const bool is_spm = llama_vocab_type(vocab->vocab_) == LLAMA_VOCAB_TYPE_SPM;
    vocab->adds_space_ = is_spm && (adds_space == nullptr || std::get<bool>(adds_space->data));
    return vocab;
}

Vocab::~Vocab() { llama_model_free(model_); }

std::optional<int32_t> Vocab::bos() const { return valid(llama_vocab_bos(vocab_)); }
std::optional<int32_t> Vocab::eos() const { return valid(llama_vocab_eos(vocab_)); }
std::optional<int32_t> Vocab::eot() const { return valid(llama_vocab_eot(vocab_)); }
bool Vocab::add_bos() const { return llama_vocab_get_add_bos(vocab_); }
bool Vocab::add_eos() const { return llama_vocab_get_add_eos(vocab_); }
bool Vocab::is_eog(int32_t token) const { return llama_vocab_is_eog(vocab_, token); }

std::vector<int32_t> Vocab::tokenize(const std::string & text, bool add_special, bool parse_special) const {
    if (text.size() > size_t(INT_MAX) / 2) {
        throw ArgumentError("text: expected at most 1 GiB, got " + std::to_string(text.size()) + " bytes");
    }
    std::vector<int32_t> tokens(text.size() / 2 + 16);
    const auto run = [&] {
        return llama_tokenize(vocab_, text.data(), static_cast<int32_t>(text.size()), tokens.data(),
                              static_cast<int32_t>(tokens.size()), add_special, parse_special);
    };
    try {
        with_deep_stack(text.size(), [&] {
            int32_t n = run();
            if (n < 0 && n != INT32_MIN) {
                tokens.resize(static_cast<size_t>(-n));
                n = run();
            }
            if (n < 0) throw ArgumentError("text: more tokens than libllama can count");
            tokens.resize(static_cast<size_t>(n));
        });
    } catch (const std::out_of_range &) {
        throw ModelFileError(path_ +
                             ": tokenizer.ggml.tokens: the text has a character for which the vocabulary has no token");
    }
    return tokens;
}

std::string Vocab::token_to_piece(int32_t token, bool special) const { return piece(token, 0, special); }

std::string Vocab::piece(int32_t token, int32_t n_strip, bool special) const {
    if (token < 0 || token >= n_tokens_) {
        throw ArgumentError("token: expected 0 to " + std::to_string(n_tokens_ - 1) + ", got " + std::to_string(token));
    }
    std::string text(32, '\0');
    int32_t n = llama_token_to_piece(vocab_, token, text.data(), static_cast<int32_t>(text.size()), n_strip, special);
    if (n < 0) {
        text.resize(static_cast<size_t>(-n));
        n = llama_token_to_piece(vocab_, token, text.data(), static_cast<int32_t>(text.size()), n_strip, special);
    }
    text.resize(n < 0 ? 0 : static_cast<size_t>(n));
    return text;
}

std::string Vocab::detokenize(const std::vector<int32_t> & tokens, bool special) const {
    std::string text;
    size_t first = 0;
    // Where BOS is spelled out the space after it is part of the text; where it is not, it is the vocabulary's own.
    if (!special && !tokens.empty() && bos() == tokens[0]) first = 1;
    for (size_t i = 0; i < tokens.size(); ++i) {
        text += piece(tokens[i], adds_space_ && i == first ? 1 : 0, special);
    }
    return text;
}

}  // namespace pysa
