// Hyper-parameters of the architectures pysa runs, with libllama's defaults: dense mode must equal llama.cpp on the same file.
#include <cmath>
#include <limits>

#include "base/bytes.h"
#include "file/key_reader.h"
#include "file/readers.h"

namespace pysa {

namespace {

struct ArchRow {
    const char * name;
    RopeKind rope;
};

// For these rows libllama wants equal key and value lengths, all of them rotated, and reads neither attention.scale nor a
// sliding window.
constexpr ArchRow arch_table[] = {
    {"llama", RopeKind::norm},
    {"qwen2", RopeKind::neox},
    {"qwen3", RopeKind::neox},
};

constexpr int32_t max_layers = 512;
constexpr int32_t max_width = 1 << 20;
constexpr int32_t max_heads = 1 << 16;
constexpr int32_t max_head_dim = 1024;
constexpr int32_t max_positions = std::numeric_limits<int32_t>::max();

const ArchRow & find_arch(const GgufFile & file, KeyReader & keys, const Faults & faults) {
    const std::optional<std::string> name = keys.text("general.architecture");
    if (!name && !keys.has("general.architecture")) keys.missing("general.architecture", "string");
    faults.raise_if_any<ModelFileError>();
    std::string supported;
    for (const ArchRow & row : arch_table) {
        if (*name == row.name) return row;
        supported += (supported.empty() ? "" : ", ") + std::string(row.name);
    }
    throw UnsupportedModelError(file.path() + ": general.architecture: expected one of " + supported + ", got " +
                                quoted(*name));
}

void check_file_kind(KeyReader & keys, Faults & unsupported) {
    const std::optional<std::string> kind = keys.text("general.type");
    if (kind && *kind != "model") unsupported.add("general.type: expected 'model', got " + quoted(*kind));
    const std::optional<uint16_t> n_split = keys.u16("split.count");
    if (n_split && *n_split > 1) {
        unsupported.add("split.count: expected one file, got " + std::to_string(*n_split) + " shards; merge it first");
    }
}

// A head count that libllama also takes as one value per layer; pysa wants them uniform.
int32_t head_count(const GgufFile & file, KeyReader & keys, Faults & unsupported, const std::string & key,
                   int32_t n_layer, std::optional<int32_t> otherwise) {
    const GgufValue * value = file.find(key);
    if (value == nullptr || value->type != GgufType::array) return keys.count(key, 1, max_heads, otherwise);

    std::vector<int64_t> items;
    if (const auto * wide = std::get_if<std::vector<int64_t>>(&value->data)) items = *wide;
    if (const auto * wide = std::get_if<std::vector<uint64_t>>(&value->data)) items.assign(wide->begin(), wide->end());
    if (value->item_type != GgufType::i32 && value->item_type != GgufType::u32) {
        keys.fault(key + ": expected u32 or an array of i32 or u32, got " + type_of(*value));
        return 1;
    }
    if (items.size() != static_cast<size_t>(n_layer)) {
        keys.out_of_range(key, std::to_string(n_layer) + " values, one per layer", std::to_string(items.size()));
        return 1;
    }
    for (const int64_t item : items) {
        if (item != items.front()) {
            unsupported.add(key + ": expected the same count in every layer, got " + std::to_string(items.front()) +
                            " and " + std::to_string(item));
            return 1;
        }
    }
    if (items.front() < 1 || items.front() > max_heads) {
        keys.out_of_range(key, "1 to " + std::to_string(max_heads), std::to_string(items.front()));
        return 1;
    }
    return static_cast<int32_t>(items.front());
}

void read_head_dims(KeyReader & keys, Faults & unsupported, const std::string & arch, HParams & hp) {
    std::optional<int32_t> otherwise;
    if (hp.n_embd % hp.n_head == 0) otherwise = hp.n_embd / hp.n_head;
    const int32_t limit = max_head_dim;
    hp.n_embd_head_k = keys.count(arch + ".attention.key_length", 2, limit, otherwise);
    hp.n_embd_head_v = keys.count(arch + ".attention.value_length", 2, limit, otherwise);
    if (hp.n_embd_head_k > limit) {
        keys.out_of_range(arch + ".attention.head_count", "heads of at most 1024 values",
                          std::to_string(hp.n_embd_head_k));
    }
    hp.rope.n_rot = keys.count(arch + ".rope.dimension_count", 2, limit, hp.n_embd_head_k);
    if (hp.rope.n_rot != hp.n_embd_head_k) {
        unsupported.add(arch + ".rope.dimension_count: expected key_length, " + std::to_string(hp.n_embd_head_k) +
                        ", got " + std::to_string(hp.rope.n_rot));
    }
    if (hp.n_embd_head_k % 2 != 0) {
        keys.out_of_range(arch + ".attention.key_length", "an even number", std::to_string(hp.n_embd_head_k));
    }
    hp.kq_scale = 1.0f / std::sqrt(static_cast<float>(hp.n_embd_head_k));
}

// libllama: a factor of 0 means none, and the old key counts only where the new one is absent.
float rope_factor(KeyReader & keys, const std::string & arch) {
    const std::string current = arch + ".rope.scaling.factor";
    const std::string key = keys.has(current) ? current : arch + ".rope.scale_linear";
    const float factor = keys.f32(key).value_or(0.0f);
    if (std::isfinite(factor) && factor >= 0.0f) return factor == 0.0f ? 1.0f : factor;
    keys.out_of_range(key, "a finite number of at least 0", std::to_string(factor));
    return 1.0f;
}

void read_rope(KeyReader & keys, Faults & unsupported, const std::string & arch, HParams & hp) {
    RopeParams & rope = hp.rope;
    rope.freq_base = keys.positive(arch + ".rope.freq_base", 10000.0f);
    rope.n_ctx_orig = keys.count(arch + ".rope.scaling.original_context_length", 0, max_positions, hp.n_ctx_train);
    if (rope.n_ctx_orig == 0) rope.n_ctx_orig = hp.n_ctx_train;
    const std::string type = keys.text(arch + ".rope.scaling.type").value_or("linear");
    if (type == "longrope") {
        unsupported.add(arch + ".rope.scaling.type: expected none, linear or yarn, got 'longrope'");
    } else if (type != "none" && type != "linear" && type != "yarn") {
        keys.out_of_range(arch + ".rope.scaling.type", "none, linear or yarn", quoted(type));
    }
    rope.freq_scale = type == "none" ? 1.0f : 1.0f / rope_factor(keys, arch);

    if (type == "yarn") {
        rope.ext_factor = 1.0f;
        // ggml multiplies by 1 + 0.1 ln(factor) inside rope; libllama divides it out beforehand, so only mscale remains.
        const float factor = 1.0f / rope.freq_scale;
        rope.attn_factor = factor <= 1.0f ? 1.0f : 0.1f * std::log(factor) + 1.0f;
        rope.attn_factor *= 1.0f / (1.0f + 0.1f * std::log(factor));
    }
    rope.attn_factor *= keys.positive(arch + ".rope.scaling.attn_factor", 1.0f);
    if (!std::isfinite(rope.freq_scale) || !std::isfinite(rope.attn_factor) || rope.attn_factor <= 0.0f) {
        keys.fault(arch + ".rope.scaling.factor: expected a usable YaRN factor, got one whose magnitude is not finite");
    }
}

void check_features(KeyReader & keys, Faults & unsupported, const std::string & arch) {
    const auto refuse_above_zero = [&](const std::string & key, const std::string & what) {
        const std::optional<uint32_t> n = keys.u32(arch + key);
        if (n && *n > 0) unsupported.add(arch + key + ": expected 0, " + what + ", got " + std::to_string(*n));
    };
    refuse_above_zero(".expert_count", "a model without experts");
    refuse_above_zero(".expert_used_count", "a model without experts");
    refuse_above_zero(".expert_group_count", "a model without experts");
    refuse_above_zero(".nextn_predict_layers", "a model without next-token prediction layers");
    if (!keys.boolean(arch + ".attention.causal").value_or(true)) {
        unsupported.add(arch + ".attention.causal: expected true, got false");
    }
}

int32_t read_n_vocab(const GgufFile & file, KeyReader & keys) {
    keys.u32(*keys.text("general.architecture") + ".vocab_size");  // libllama goes by the tokens; only the type matters
    if (!keys.has("tokenizer.ggml.tokens")) keys.missing("tokenizer.ggml.tokens", "array of string");
    const std::vector<std::string> * tokens = keys.text_array("tokenizer.ggml.tokens");
    if (tokens == nullptr) return 1;
    if (tokens->empty()) keys.out_of_range("tokenizer.ggml.tokens", "at least one token", "none");
    const GgufTensor * embedding = file.find_tensor("token_embd.weight");
    if (embedding != nullptr && embedding->ne[1] != static_cast<int64_t>(tokens->size())) {
        keys.out_of_range("tokenizer.ggml.tokens",
                          std::to_string(embedding->ne[1]) + " tokens, one per row of token_embd.weight",
                          std::to_string(tokens->size()));
    }
    return static_cast<int32_t>(tokens->size());  // the parser bounds every array
}

}  // namespace

HParams read_hparams(const GgufFile & file) {
    Faults faults(file.path());
    Faults unsupported(file.path());
    KeyReader keys(file, faults);
    check_file_kind(keys, unsupported);
    unsupported.raise_if_any<UnsupportedModelError>();

    const ArchRow & row = find_arch(file, keys, faults);
    const std::string arch = row.name;
    HParams hp;
    hp.arch = arch;
    hp.rope.kind = row.rope;
    hp.n_ctx_train = keys.count(arch + ".context_length", 1, max_positions);
    hp.n_embd = keys.count(arch + ".embedding_length", 1, max_width);
    hp.n_layer = keys.count(arch + ".block_count", 1, max_layers);
    hp.n_ff = keys.count(arch + ".feed_forward_length", 1, max_width * 16);
    hp.n_head = head_count(file, keys, unsupported, arch + ".attention.head_count", hp.n_layer, std::nullopt);
    hp.n_head_kv = head_count(file, keys, unsupported, arch + ".attention.head_count_kv", hp.n_layer, hp.n_head);
    if (faults.empty() && hp.n_head % hp.n_head_kv != 0) {
        keys.out_of_range(arch + ".attention.head_count_kv", "a divisor of head_count, " + std::to_string(hp.n_head),
                          std::to_string(hp.n_head_kv));
    }
    hp.norm_eps = keys.positive(arch + ".attention.layer_norm_rms_epsilon");
    read_head_dims(keys, unsupported, arch, hp);
    read_rope(keys, unsupported, arch, hp);
    check_features(keys, unsupported, arch);
    hp.n_vocab = read_n_vocab(file, keys);

    faults.raise_if_any<ModelFileError>();
    unsupported.raise_if_any<UnsupportedModelError>();
    return hp;
}

}  // namespace pysa
