"""Small random checkpoints in Hugging Face format, with tokenizers trained on the spot.

`make_checkpoint` is the one entry. Norms and biases are random too and the dimensions differ where the architecture
lets them, so that a swapped or dropped tensor shows. It needs transformers, torch, tokenizers and sentencepiece.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

LLAMA3_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN2_REGEX = LLAMA3_REGEX.replace(r"\p{N}{1,3}", r"\p{N}")
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CORPUS = (  # several scripts: the trained tokenizers must meet what the proof of the vocabulary contains
    "The quick brown fox jumps over the lazy dog, and the dog doesn't mind at all. It's 1234567 o'clock.\n"
    "def read(path: str) -> bytes:\n    with open(path, 'rb') as file:\n        return file.read()\n"
    "Größe und Höhe; l'été à la plage; señor año; Привет, мир! Γειά σου Κόσμε.\n"
    "日本語の文章です。中文句子。한국어 문장입니다. العربية هنا. עברית כאן. हिन्दी भी।\n"
    "if (n_head % n_head_kv == 0) { return n_head / n_head_kv; }\t// 3.14159 * 2.71828\n"
)


def make_checkpoint(
    folder: Path,
    arch: str = "llama",
    *,
    tokenizer: str | None = None,
    n_layer: int = 3,
    n_embd: int = 96,
    n_head: int = 6,
    n_head_kv: int = 2,
    head_dim: int | None = None,
    n_ff: int = 160,
    n_ctx: int = 512,
    n_vocab_extra: int = 0,
    rope: dict[str, Any] | None = None,
    rope_theta: float = 10000.0,
    tie: bool = False,
    attention_bias: bool = False,
    dtype: str = "float32",
    max_shard_size: str = "5GB",
    seed: int = 0,
) -> Path:
    """Writes one checkpoint and returns its folder.

    Args:
        folder: made if missing.
        arch: `llama`, `qwen2` or `qwen3`.
        tokenizer: `gpt2`, `llama3`, `qwen2`, `smollm`, `spm` (tokenizer.json alone) or `sentencepiece` (tokenizer.model
            alone); by default the architecture's own.
        head_dim: by default n_embd / n_head; 48 for qwen3, where it is free.
        n_vocab_extra: rows of the embedding beyond the tokenizer's tokens.
        rope: transformers' rope parameters, for example LLAMA3_ROPE.
        max_shard_size: as in transformers; "100KB" makes several shards.
    """
    import torch
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    kind = tokenizer or {"llama": "gpt2", "qwen2": "qwen2", "qwen3": "qwen2"}[arch]
    n_vocab, ids = make_tokenizer(folder, kind, seed=seed)
    keys: dict[str, Any] = {
        "vocab_size": n_vocab + n_vocab_extra,
        "hidden_size": n_embd,
        "intermediate_size": n_ff,
        "num_hidden_layers": n_layer,
        "num_attention_heads": n_head,
        "num_key_value_heads": n_head_kv,
        "max_position_embeddings": n_ctx,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": tie,
        "rope_parameters": {"rope_type": "default", **(rope or {}), "rope_theta": rope_theta},
        **ids,
    }
    if arch == "qwen3":
        keys["head_dim"] = head_dim or 48
    elif head_dim is not None:
        keys["head_dim"] = head_dim
    if arch != "qwen2":
        keys["attention_bias"] = attention_bias
    name = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}[arch]
    config = getattr(transformers, f"{name}Config")(**keys)
    torch.manual_seed(seed)
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "norm" in key:
                parameter.copy_(1.0 + 0.2 * torch.randn_like(parameter))
            elif key.endswith("bias"):
                parameter.copy_(0.3 * torch.randn_like(parameter))
            else:
                # attention that peaks and logits that spread need more than the usual 0.02
                parameter.copy_(torch.randn_like(parameter) * 1.5 / parameter.shape[-1] ** 0.5)
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=max_shard_size)
    return folder


def make_tokenizer(folder: Path, kind: str, seed: int = 0) -> tuple[int, dict[str, int]]:
    """Writes the tokenizer's files; returns the number of tokens and the special ids for config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    makers = {"spm": _byte_fallback, "sentencepiece": _sentencepiece}
    n_vocab, bos, eos = makers[kind](folder, seed) if kind in makers else _byte_level(folder, kind, seed)
    return n_vocab, {"bos_token_id": bos, "eos_token_id": eos}


def training_lines(seed: int = 0) -> list[str]:
    """The corpus, with its words in a random order too."""
    rng = random.Random(seed)
    words = CORPUS.split()
    return [CORPUS] * 3 + [" ".join(rng.choices(words, k=12)) for _ in range(60)]


def _byte_level(folder: Path, kind: str, seed: int) -> tuple[int, int, int]:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE(ignore_merges=kind == "llama3"))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind in ("gpt2", "smollm"))
    split = {"llama3": LLAMA3_REGEX, "qwen2": QWEN2_REGEX}.get(kind)
    parts: list[Any] = [byte_level]
    if split:
        parts.insert(0, pre_tokenizers.Split(Regex(split), "isolated"))
    if kind == "smollm":
        parts.insert(0, pre_tokenizers.Digits(individual_digits=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts) if len(parts) > 1 else byte_level
    if kind == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(training_lines(seed), trainer)
    bos, eos = 0, 2
    if kind == "llama3":
        tokenizer.post_processor = processors.Sequence(
            [
                processors.ByteLevel(trim_offsets=False),
                processors.TemplateProcessing(
                    single="<|endoftext|> $A",
                    pair="<|endoftext|> $A <|endoftext|> $B",
                    special_tokens=[(SPECIALS[0], 0)],
                ),
            ]
        )
    else:
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_config(folder, {"bos_token": SPECIALS[bos], "eos_token": SPECIALS[eos], "pad_token": SPECIALS[0]})
    return tokenizer.get_vocab_size(), bos, eos


def _byte_fallback(folder: Path, seed: int) -> tuple[int, int, int]:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(
        training_lines(seed), trainers.BpeTrainer(vocab_size=500, show_progress=False, limit_alphabet=150)
    )
    learned = json.loads(trained.to_str())["model"]
    merged = ["".join(pair) for pair in learned["merges"]]
    chars = [piece for piece in learned["vocab"] if piece not in merged]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *merged, *chars]
    known = set(merged) | set(chars)
    # every way to make a piece is a merge, as in vocabularies that come from sentencepiece
    merges = [
        [piece[:i], piece[i:]]
        for piece in merged
        for i in range(1, len(piece))
        if piece[:i] in known and piece[i:] in known
    ]
    added = [
        {"id": i, "content": pieces[i], "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        | {"special": True}
        for i in range(3)
    ]
    data = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {piece: i for i, piece in enumerate(pieces)},
            "merges": merges,
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
    _write_config(folder, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "legacy": True})
    return len(pieces), 1, 2


def _sentencepiece(folder: Path, seed: int) -> tuple[int, int, int]:
    import sentencepiece

    corpus = folder / "corpus.txt"
    corpus.write_text("\n".join(training_lines(seed)), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=560,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        character_coverage=0.99,
        num_threads=1,
        minloglevel=2,
    )
    corpus.unlink()
    (folder / "tokenizer.vocab").unlink()
    _write_config(folder, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True})
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    return processor.get_piece_size(), 1, 2


def _write_config(folder: Path, tokens: dict[str, Any]) -> None:
    data = {"chat_template": CHATML, "model_max_length": 512, "tokenizer_class": "PreTrainedTokenizerFast", **tokens}
    (folder / "tokenizer_config.json").write_text(json.dumps(data, indent=2), encoding="utf-8")
