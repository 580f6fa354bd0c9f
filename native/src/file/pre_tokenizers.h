// The BPE pre-tokenizers (`tokenizer.ggml.pre`) that the pinned libllama knows, with what they imply for BOS.
#pragma once

#include <set>
#include <string>

namespace pysa {

// Left out are those for which libllama hands BPE raw text in place of byte-level text: a space there ends the process.
// clang-format off
inline const std::set<std::string> known_pre = {
    "default", "minicpm5", "llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2",
    "jina-v5-nano", "deepseek-llm", "deepseek-coder", "deepseek-v3", "spark2_5", "youtu", "falcon", "mpt", "starcoder",
    "gpt-2", "phi-2", "jina-es", "jina-de", "gigachat", "jina-v2-es", "jina-v2-de", "a.x-4.0", "mellum", "modern-bert",
    "jais-2", "jina-v1-en", "jina-v2-code", "roberta-bpe", "refact", "command-r", "qwen2", "deepseek-r1-qwen", "kormo",
    "f2llmv2", "qwen35", "stablelm2", "olmo", "dbrx", "smaug-bpe", "poro-chat", "chatglm-bpe", "glm4", "glm5", "viking",
    "jais", "tekken", "smollm", "codeshell", "bloom", "gpt3-finnish", "exaone", "exaone4", "exaone-moe", "chameleon",
    "minerva-7b", "megrez", "gpt-4o", "llama4", "kanana2", "talkie", "granite-embed-multi-97m", "tiny_aya",
    "cohere2moe", "superbpe", "trillion", "granite-docling", "bailingmoe", "bailingmoe2", "llada-moe", "seed-coder",
    "hunyuan", "hunyuan-dense", "hy_v4", "joyai-llm", "kimi-k2", "ufakzeka", "grok-2", "afmoe", "laguna", "minimax-m2",
    "solar-open", "mellum2",
};
inline const std::set<std::string> pre_with_bos = {
    "llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "tekken", "jina-v5-nano",
    "chameleon",
};
inline const std::set<std::string> pre_without_bos_id = {"chatglm-bpe", "glm4", "glm5"};
// clang-format on

// The empty name is libllama's default.
inline bool is_known_pre(const std::string & pre) { return pre.empty() || known_pre.count(pre) != 0; }

// Unless tokenizer.ggml.add_bos_token says otherwise.
inline bool pre_adds_bos(const std::string & pre) { return pre_with_bos.count(pre) != 0; }

// False: there is no BOS token without tokenizer.ggml.bos_token_id.
inline bool pre_has_bos(const std::string & pre) { return pre_without_bos_id.count(pre) == 0; }

}  // namespace pysa
