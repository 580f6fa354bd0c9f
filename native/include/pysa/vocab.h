// A model's vocabulary: text to tokens and back, through libllama. Opened alone, without weights; immutable and shared by threads.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

struct llama_model;
struct llama_vocab;

namespace pysa {

class GgufFile;
struct HParams;

class Vocab {
  public:
    // Checks the file, then opens its vocabulary. ModelFileError, UnsupportedModelError.
    static std::shared_ptr<const Vocab> open(const std::string & path);
    static std::shared_ptr<const Vocab> open(const GgufFile & file, const HParams & hp);

    ~Vocab();
    Vocab(const Vocab &) = delete;
    Vocab & operator=(const Vocab &) = delete;

    int32_t n_tokens() const { return n_tokens_; }
    std::optional<int32_t> bos() const;
    std::optional<int32_t> eos() const;
    std::optional<int32_t> eot() const;  // end of a chat turn
    bool add_bos() const;
    bool add_eos() const;
    bool is_eog(int32_t token) const;  // ends a generation

    // `text` is UTF-8. `add_special` adds what the vocabulary adds (BOS, EOS), `parse_special` reads "<|im_end|>" as its token.
    std::vector<int32_t> tokenize(const std::string & text, bool add_special, bool parse_special) const;

    const llama_vocab * handle() const { return vocab_; }

    // Bytes, which may end inside a UTF-8 character. `special` also spells control tokens out.
    std::string token_to_piece(int32_t token, bool special) const;

    // The pieces joined, less the space that the vocabulary put before the text. No clean-up of spaces before punctuation: the
    // bytes are those of the tokens.
    std::string detokenize(const std::vector<int32_t> & tokens, bool special) const;

  private:
    Vocab() = default;
    std::string piece(int32_t token, int32_t n_strip, bool special) const;

    std::string path_;
    llama_model * model_ = nullptr;
    const llama_vocab * vocab_ = nullptr;
    int32_t n_tokens_ = 0;
    bool adds_space_ = false;
};

}  // namespace pysa
