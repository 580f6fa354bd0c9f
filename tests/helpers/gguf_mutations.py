"""Damage to a GGUF, reproducible from a seed: of its bytes, and of its keys with a sound container around them."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFValueType
from helpers.tiny_gguf import bpe_vocab, random_plan, spm_vocab, write_tiny_gguf

SMALL: dict[str, Any] = {"n_layer": 1, "n_embd": 32, "n_head": 2, "n_head_kv": 1, "head_dim": 16, "n_ff": 64}
_NUMBERS = (0, 1, 2, 3, 7, 8, 12, 13, 31, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
_FLOATS = (0.0, -1.0, 1e-45, 3.4e38, float("inf"), float("-inf"), float("nan"), 0.5)
_TEXTS = (
    "",
    "a",
    " ",
    "llama",
    "gpt2",
    "none",
    "t5",
    "bert",
    "rwkv",
    "qwen2",
    "whitespace",
    "yarn",
    "keys",
    "\0",
    "x" * 5000,
)
_SCALARS: dict[GGUFValueType, tuple[int, int]] = {
    GGUFValueType.UINT8: (0, 2**8 - 1),
    GGUFValueType.INT8: (-(2**7), 2**7 - 1),
    GGUFValueType.UINT16: (0, 2**16 - 1),
    GGUFValueType.INT16: (-(2**15), 2**15 - 1),
    GGUFValueType.UINT32: (0, 2**32 - 1),
    GGUFValueType.INT32: (-(2**31), 2**31 - 1),
    GGUFValueType.UINT64: (0, 2**64 - 1),
    GGUFValueType.INT64: (-(2**63), 2**63 - 1),
}
_KEYS = (
    "general.architecture",
    "general.alignment",
    "general.type",
    "general.file_type",
    "general.name",
    "split.count",
    *(
        f"llama.{name}"
        for name in (
            "context_length",
            "embedding_length",
            "block_count",
            "feed_forward_length",
            "attention.head_count",
            "attention.head_count_kv",
            "attention.key_length",
            "attention.value_length",
            "attention.layer_norm_rms_epsilon",
            "attention.causal",
            "rope.dimension_count",
            "rope.freq_base",
            "rope.scaling.type",
            "rope.scaling.factor",
            "rope.scaling.attn_factor",
            "rope.scaling.original_context_length",
            "expert_count",
            "expert_used_count",
            "vocab_size",
        )
    ),
    *(
        f"tokenizer.ggml.{name}"
        for name in (
            "model",
            "pre",
            "tokens",
            "scores",
            "token_type",
            "merges",
            "bos_token_id",
            "eos_token_id",
            "padding_token_id",
            "unknown_token_id",
            "fim_pad_token_id",
            "add_bos_token",
            "add_eos_token",
            "add_space_prefix",
            "suppress_tokens",
            "token_type_count",
        )
    ),
    *(
        f"pysa.{name}"
        for name in (
            "version",
            "enabled",
            "method",
            "distant",
            "n_sink",
            "n_recent",
            "score_layer",
            "score_head",
            "mass_bias",
            "skip_gate",
            "pruned",
            "unheard_of",
        )
    ),
)


def mutate_bytes(data: bytes, rng: np.random.Generator, n_header: int) -> bytes:
    """Damages 1 to 4 places, mostly within the first `n_header` bytes."""
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        limit = max(1, min(len(out), n_header if rng.random() < 0.9 else len(out)))
        at = int(rng.integers(0, limit))
        kind = int(rng.integers(0, 7))
        if kind == 0:
            out[at] ^= 1 << int(rng.integers(0, 8))
        elif kind == 1:
            out[at] = int(rng.integers(0, 256))
        elif kind == 2:
            out[at : at + 8] = struct.pack("<Q", _NUMBERS[int(rng.integers(len(_NUMBERS)))])
        elif kind == 3:
            out[at : at + 4] = struct.pack("<I", _NUMBERS[int(rng.integers(len(_NUMBERS)))] & 0xFFFFFFFF)
        elif kind == 4:
            del out[at : at + int(rng.integers(1, 40))]
        elif kind == 5:
            start = int(rng.integers(0, limit))
            out[at:at] = out[start : start + int(rng.integers(1, 200))]
        else:
            del out[at:]
        if not out:
            break
    return bytes(out)


def random_value(rng: np.random.Generator) -> Any:
    """A typed value as write_tiny_gguf's extra_kv takes it; None, which removes the key, among them."""
    draw = int(rng.integers(0, 8))
    if draw == 0:
        return None
    if draw == 1:
        return bool(rng.integers(0, 2))
    if draw == 2:
        return _TEXTS[int(rng.integers(len(_TEXTS)))]
    if draw == 3:
        return float(_FLOATS[int(rng.integers(len(_FLOATS)))])
    kinds = list(_SCALARS)
    kind = kinds[int(rng.integers(len(kinds)))] if draw > 5 else GGUFValueType.UINT32
    low, high = _SCALARS[kind]
    numbers = [n for n in (*_NUMBERS, -1, -2, low) if low <= n <= high]
    picked = [int(numbers[int(i)]) for i in rng.integers(0, len(numbers), int(rng.integers(1, 6)))]
    if draw == 7:
        if rng.random() < 0.3:
            return [_TEXTS[int(i)] for i in rng.integers(0, len(_TEXTS), len(picked))]
        return ((GGUFValueType.ARRAY, kind), picked)
    return (kind, picked[0])


def damaged_array(values: list[Any], rng: np.random.Generator) -> list[Any]:
    """`values` with some items replaced, repeated, swapped or dropped."""
    out = list(values)
    for _ in range(int(rng.integers(1, 4))):
        at, other = (int(i) for i in rng.integers(0, len(out), 2))
        kind = int(rng.integers(0, 4))
        if kind == 0:
            out[at] = out[other]
        elif kind == 1:
            del out[at]
        elif kind == 2:
            out.insert(at, out[other])
        elif isinstance(out[at], str):
            out[at] = _TEXTS[int(rng.integers(len(_TEXTS)))]
        else:
            out[at] = type(out[at])(rng.integers(-3, 9))
        if not out:
            return [values[0]]
    return out


def write_damaged_keys(path: Path, rng: np.random.Generator) -> Path:
    """A sound container whose keys are wrong: other types, other values, missing, arrays damaged."""
    vocab = "gpt2" if rng.random() < 0.5 else "llama"
    keys = bpe_vocab() if vocab == "gpt2" else spm_vocab()
    arrays = [key for key, value in keys.items() if isinstance(value, list)]
    extra: dict[str, Any] = {}
    for _ in range(int(rng.integers(1, 4))):
        if rng.random() < 0.4:
            key = arrays[int(rng.integers(len(arrays)))]
            extra[key] = damaged_array(keys[key], rng)
        else:
            extra[_KEYS[int(rng.integers(len(_KEYS)))]] = random_value(rng)
    extra.pop("general.architecture", None)  # the writer's own
    plan = random_plan(1, 2, 1, seed=int(rng.integers(100)))
    # The writer pads vocabularies by these arrays, so they are given whole.
    return write_tiny_gguf(path, vocab=vocab, plan=plan, extra_kv=extra, **SMALL)


def exercise(native: Any, path: Path) -> str:
    """Opens `path` in every way that reads a file. Returns the outcome: "ok" or the PysaError's name."""
    from pysa.errors import PysaError

    outcome = "ok"
    for step in (native.gguf_read, native.gguf_plan, native.Vocab):
        try:
            result = step(str(path))
        except PysaError as error:
            outcome = type(error).__name__
            if not str(error).startswith(str(path)):
                raise AssertionError(f"the message does not name the file: {error}") from error
            continue
        if step is native.Vocab:
            try:
                tokens = result.tokenize("Hello, the world 123 \n ü 你好 <|im_end|></s>")
                result.detokenize(tokens)
            except PysaError as error:
                outcome = type(error).__name__
    return outcome
