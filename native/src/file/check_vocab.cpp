// The vocabulary's keys, checked before libllama opens them: what it asserts would end the process, and what it only warns
// about would run with other tokens than the model was trained on.
#include <cstring>
#include <unordered_set>

#include "base/bytes.h"
#include "file/key_reader.h"
#include "file/pre_tokenizers.h"
#include "file/readers.h"

namespace pysa {

namespace {

enum class VocabKind { spm, bpe };

constexpr int token_normal = 1;
constexpr int token_byte = 6;
constexpr size_t max_token_bytes = 1 << 16;
constexpr uint64_t max_piece_bytes = uint64_t(256) << 20;

class VocabCheck {
  public:
    VocabCheck(const GgufFile & file, const HParams & hp)
        : faults_(file.path()), file_(file), keys_(file, faults_), hp_(hp) {}

    void run() {
        const VocabKind kind = find_kind();
        const std::vector<std::string> * tokens = keys_.text_array("tokenizer.ggml.tokens");
        if (tokens == nullptr && !keys_.has("tokenizer.ggml.tokens"))
            keys_.missing("tokenizer.ggml.tokens", "array of string");
        faults_.raise_if_any<ModelFileError>();
        n_tokens_ = tokens->size();
        if (int64_t(n_tokens_) != hp_.n_vocab) {
            keys_.out_of_range("tokenizer.ggml.tokens", std::to_string(hp_.n_vocab) + " tokens",
                               std::to_string(n_tokens_));
        }
        check_texts(*tokens);
        check_types(*tokens, kind);
        check_scores();
        if (kind == VocabKind::bpe) check_merges();
        check_ids();
        check_bos_eos(kind);
        check_flags();
        faults_.raise_if_any<ModelFileError>();
    }

  private:
    VocabKind find_kind() {
        const std::optional<std::string> model = keys_.text("tokenizer.ggml.model");
        if (!model && !keys_.has("tokenizer.ggml.model")) keys_.missing("tokenizer.ggml.model", "string");
        pre_ = keys_.text("tokenizer.ggml.pre").value_or("default");
        faults_.raise_if_any<ModelFileError>();
        if (*model != "llama" && *model != "gpt2") {
            throw UnsupportedModelError(file_.path() + ": tokenizer.ggml.model: expected llama or gpt2, got " +
                                        quoted(*model));
        }
        if (*model == "gpt2" && !is_known_pre(pre_)) {
            throw UnsupportedModelError(file_.path() +
                                        ": tokenizer.ggml.pre: expected a pre-tokenizer known to this pysa, got " +
                                        quoted(pre_));
        }
        return *model == "llama" ? VocabKind::spm : VocabKind::bpe;
    }

    // libllama reads texts up to the first zero byte, names empty ones [EMPTY_<id>], and asserts that no two are equal.
    void check_texts(const std::vector<std::string> & tokens) {
        std::unordered_set<std::string> seen;
        seen.reserve(tokens.size());
        for (size_t id = 0; id < tokens.size(); ++id) {
            std::string text = tokens[id].c_str();
            if (text.empty()) text = "[EMPTY_" + std::to_string(id) + "]";
            if (text.size() > max_token_bytes) {
                add_token(id, "expected at most " + std::to_string(max_token_bytes) + " bytes, got " +
                                  std::to_string(text.size()));
            }
            if (!seen.insert(text).second)
                add_token(id, "expected a text of its own, got " + quoted(text) + " a second time");
        }
    }

    void check_types(const std::vector<std::string> & tokens, VocabKind kind) {
        const std::vector<int64_t> * types = keys_.i32_array("tokenizer.ggml.token_type");
        if (types != nullptr && !right_length("tokenizer.ggml.token_type", types->size())) return;
        uint64_t piece_bytes = 0;
        for (size_t id = 0; id < tokens.size(); ++id) {
            const int64_t type = types == nullptr ? token_normal : (*types)[id];
            const std::string text = tokens[id].c_str();
            if (type < 0 || type > token_byte)
                add_token(id, "expected a type from 0 to 6, got " + std::to_string(type));
            if (type == token_byte && !is_byte_text(text)) {
                add_token(id, "expected a byte token such as <0x0A>, got " + quoted(text));
            }
            if (type == token_normal && kind == VocabKind::bpe) piece_bytes += decoded_bytes(text);
        }
        if (piece_bytes > max_piece_bytes) {
            keys_.out_of_range(
                "tokenizer.ggml.tokens", "byte-level texts",
                "so many other characters that the pieces would take " + std::to_string(piece_bytes >> 20) + " MiB");
        }
    }

    // libllama spells out every character that is not byte-level (!..~, U+00A1..U+0143 but U+00AD), and repeats the whole text
    // each time.
    static uint64_t decoded_bytes(const std::string & text) {
        uint64_t n_other = 0;
        for (size_t i = 0; i < text.size(); ++i) {
            const uint8_t first = static_cast<uint8_t>(text[i]);
            const uint8_t second = i + 1 < text.size() ? static_cast<uint8_t>(text[i + 1]) : 0;
            if (first > 0x20 && first < 0x7F) continue;
            const uint32_t code_point = (first & 0x1Fu) << 6 | (second & 0x3Fu);
            const bool two_bytes = (first & 0xE0) == 0xC0 && (second & 0xC0) == 0x80;
            const bool byte_level = two_bytes && code_point >= 0xA1 && code_point <= 0x143 && code_point != 0xAD;
            if (byte_level) {
                ++i;
            } else {
                ++n_other;
            }
        }
        return text.size() + n_other * (text.size() + 24);
    }

    static bool is_byte_text(const std::string & text) {
        return text.size() == 6 && text.compare(0, 3, "<0x") == 0 && text[5] == '>' &&
               std::strspn(text.c_str() + 3, "0123456789abcdefABCDEF") == 2;
    }

    void check_scores() {
        const GgufValue * scores = file_.find("tokenizer.ggml.scores");
        if (scores == nullptr) return;
        if (scores->type == GgufType::array && scores->item_type == GgufType::i32) {
            right_length("tokenizer.ggml.scores", std::get<std::vector<int64_t>>(scores->data).size());
        } else if (const std::vector<double> * values = keys_.f32_array("tokenizer.ggml.scores")) {
            right_length("tokenizer.ggml.scores", values->size());
            // A NaN breaks the order that the merge queue relies on.
            for (size_t i = 0; i < values->size(); ++i) {
                if ((*values)[i] == (*values)[i]) continue;
                keys_.out_of_range("tokenizer.ggml.scores", "numbers", "NaN at index " + std::to_string(i));
                return;
            }
        }
    }

    void check_merges() {
        if (!keys_.has("tokenizer.ggml.merges") && pre_ != "kimi-k2")
            keys_.missing("tokenizer.ggml.merges", "array of string");
        const std::vector<std::string> * merges = keys_.text_array("tokenizer.ggml.merges");
        if (merges == nullptr) return;
        for (size_t i = 0; i < merges->size(); ++i) {
            const std::string & merge = (*merges)[i];
            const size_t space = merge.find(' ', 1);
            const bool has_zero = merge.find('\0') != std::string::npos;
            if (space != std::string::npos && space + 1 < merge.size() && !has_zero) continue;
            keys_.out_of_range("tokenizer.ggml.merges", "two parts with a space between them",
                               quoted(merge) + " at index " + std::to_string(i));
            return;
        }
    }

    void check_ids() {
        for (const char * name :
             {"bos", "eos", "eot", "eom", "unknown", "seperator", "padding", "mask", "fim_pre", "fim_suf", "fim_mid",
              "fim_pad", "fim_rep", "fim_sep", "prefix", "suffix", "middle"}) {
            const std::string key = std::string("tokenizer.ggml.") + name + "_token_id";
            const std::optional<uint32_t> id = keys_.u32(key);
            if (id && *id >= n_tokens_)
                keys_.out_of_range(key, "a token below " + std::to_string(n_tokens_), std::to_string(*id));
        }
        keys_.i32_array("tokenizer.ggml.suppress_tokens");  // libllama drops ids out of range itself
    }

    // libllama's defaults: bos 1 and eos 2 for SPM, both 11 for BPE, none where that is beyond the vocabulary.
    void check_bos_eos(VocabKind kind) {
        const bool is_spm = kind == VocabKind::spm;
        const auto has_id = [&](const char * key, size_t otherwise) { return keys_.has(key) || otherwise < n_tokens_; };
        const bool add_bos = keys_.boolean("tokenizer.ggml.add_bos_token").value_or(is_spm || pre_adds_bos(pre_));
        const bool add_eos = keys_.boolean("tokenizer.ggml.add_eos_token").value_or(false);
        const size_t default_bos = is_spm ? 1 : !pre_has_bos(pre_) ? SIZE_MAX : 11;
        if (add_bos && !has_id("tokenizer.ggml.bos_token_id", default_bos)) {
            keys_.missing("tokenizer.ggml.bos_token_id", "u32, as the vocabulary adds this token to every text");
        }
        if (add_eos && !has_id("tokenizer.ggml.eos_token_id", is_spm ? 2 : 11)) {
            keys_.missing("tokenizer.ggml.eos_token_id", "u32, as the vocabulary adds this token to every text");
        }
    }

    void check_flags() {
        keys_.u32("tokenizer.ggml.token_type_count");
        for (const char * key : {"tokenizer.ggml.add_sep_token", "tokenizer.ggml.add_space_prefix",
                                 "tokenizer.ggml.remove_extra_whitespaces", "tokenizer.ggml.normalizer.lowercase",
                                 "tokenizer.ggml.normalizer.strip_accents"}) {
            keys_.boolean(key);
        }
        keys_.text("general.name");
        keys_.u32("general.file_type");
    }

    bool right_length(const char * key, size_t n) {
        if (n == n_tokens_) return true;
        keys_.out_of_range(key, std::to_string(n_tokens_) + " values, one per token", std::to_string(n));
        return false;
    }

    void add_token(size_t id, const std::string & fault) {
        keys_.fault("tokenizer.ggml.tokens: token " + std::to_string(id) + ": " + fault);
    }

    Faults faults_;
    const GgufFile & file_;
    KeyReader keys_;
    const HParams & hp_;
    std::string pre_;
    size_t n_tokens_ = 0;
};

}  // namespace

void check_vocab(const GgufFile & file, const HParams & hp) { VocabCheck(file, hp).run(); }

}  // namespace pysa
