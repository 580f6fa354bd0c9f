"""Tiny random GGUF models for tests: every dimension differs, attention peaks, logits spread.

The files are complete: stock llama.cpp runs them. Weights are random, so nothing here tests quality.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGUFValueType, TokenType

DTYPES = {
    "f32": gguf.GGMLQuantizationType.F32,
    "f16": gguf.GGMLQuantizationType.F16,
    "bf16": gguf.GGMLQuantizationType.BF16,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
    "q4_0": gguf.GGMLQuantizationType.Q4_0,
}
_MERGES = ("t h", "th e", "Ġ the", "i n", "in g", "e r", "Ġ a", "o n", "r e", "Ġ s", "a n", "an d", "Ġ and")
_SPM_PIECES = ("▁", "t", "h", "e", "i", "n", "g", "a", "th", "the", "▁the", "in", "ing", "an", "and", "▁and", "d")


def byte_alphabet() -> list[str]:
    """The 256 printable characters that byte-level BPE writes for the bytes 0..255, in byte order."""
    kept = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    moved = iter(range(256, 512))
    return [chr(b) if b in kept else chr(next(moved)) for b in range(256)]


def bpe_vocab() -> dict[str, Any]:
    """Keys of a byte-level BPE vocabulary: 256 bytes, some merges, four special tokens."""
    tokens = [*byte_alphabet(), *(merge.replace(" ", "") for merge in _MERGES)]
    special = ["<|bos|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
    types = [int(TokenType.NORMAL)] * len(tokens) + [int(TokenType.CONTROL)] * len(special)
    bos = len(tokens)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens + special,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": list(_MERGES),
        "tokenizer.ggml.bos_token_id": bos,
        "tokenizer.ggml.eos_token_id": bos + 2,
        "tokenizer.ggml.padding_token_id": bos + 3,
        "tokenizer.ggml.add_bos_token": False,
    }


def spm_vocab() -> dict[str, Any]:
    """Keys of a SentencePiece vocabulary with byte fallback."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *_SPM_PIECES]
    types = [int(TokenType.UNKNOWN), int(TokenType.CONTROL), int(TokenType.CONTROL)]
    types += [int(TokenType.BYTE)] * 256 + [int(TokenType.NORMAL)] * len(_SPM_PIECES)
    scores = [0.0] * 259 + [-float(i) for i in range(len(_SPM_PIECES))]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
    }


def plan_keys(plan: Mapping[str, Any]) -> dict[str, Any]:
    """A plan.json dict as `pysa.*` keys."""
    keys: dict[str, Any] = {
        "pysa.version": plan.get("version", 1),
        "pysa.enabled": plan.get("enabled", True),
        "pysa.method": plan.get("method", "custom"),
        "pysa.distant": plan.get("distant", "scores"),
        "pysa.n_sink": plan["n_sink"],
        "pysa.n_recent": plan["n_recent"],
        "pysa.score_layer": np.asarray(plan["score_layer"]).reshape(-1).tolist(),
        "pysa.score_head": np.asarray(plan["score_head"]).reshape(-1).tolist(),
        "pysa.skip_gate": float(plan.get("skip_gate", 1.0)),
    }
    if plan.get("mass_bias") is not None:
        keys["pysa.mass_bias"] = [float(b) for b in np.asarray(plan["mass_bias"]).reshape(-1)]
    return keys


def random_plan(n_layer: int, n_head: int, n_head_kv: int, seed: int = 0, **fields: Any) -> dict[str, Any]:
    """A valid plan.json dict that mixes owners, followers and local heads. `fields` replace its values."""
    rng = np.random.default_rng(seed)
    layer = np.repeat(np.arange(n_layer)[:, None], n_head, axis=1)
    head = np.repeat(np.arange(n_head)[None, :], n_layer, axis=0)
    keys_mode = fields.get("distant", "scores") == "keys"
    may_be_local = fields.get("n_recent", 24) > 0
    n_gqa = n_head // n_head_kv
    for il in range(n_layer):
        for g in range(n_head_kv):
            group = range(g * n_gqa, (g + 1) * n_gqa)
            source_layer = int(rng.integers(0, il + 1))
            for h in group:
                draw = rng.random()
                if draw < 0.25 and may_be_local:
                    layer[il, h] = head[il, h] = -1
                    continue
                if not keys_mode:
                    source_layer = int(rng.integers(0, il + 1)) if draw < 0.75 else il
                if source_layer == il:
                    continue
                owners = [o for o in (group if keys_mode else range(n_head)) if layer[source_layer, o] == source_layer]
                if owners:
                    layer[il, h], head[il, h] = source_layer, rng.choice(owners)
                elif may_be_local:
                    layer[il, h] = head[il, h] = -1
    plan: dict[str, Any] = {
        "version": 1,
        "enabled": True,
        "method": "custom",
        "distant": "scores",
        "n_sink": 4,
        "n_recent": 24,
        "n_layer": n_layer,
        "n_head": n_head,
        "skip_gate": 1.0,
        "score_layer": layer.tolist(),
        "score_head": head.tolist(),
        "mass_bias": rng.normal(0, 0.5, (n_layer, n_head)).astype(np.float32).tolist(),
    }
    return {**plan, **fields}


def write_tiny_gguf(
    path: str | Path,
    arch: str = "llama",
    *,
    n_layer: int = 2,
    n_embd: int | None = None,
    n_head: int = 6,
    n_head_kv: int = 2,
    head_dim: int = 32,
    head_dim_v: int | None = None,
    n_ff: int = 160,
    n_vocab: int | None = None,
    n_ctx: int = 2048,
    qkv_bias: bool | None = None,
    qk_norm: bool | None = None,
    rope_freqs: bool = False,
    tied: bool = False,
    dtype: str = "f32",
    seed: int = 0,
    vocab: str = "gpt2",
    extra_kv: Mapping[str, Any] | None = None,
    plan: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a random model.

    Args:
        path: the file to write; replaced if it exists.
        arch: "llama", "qwen2" or "qwen3".
        n_embd: 96, or n_head * head_dim for qwen2, whose loader wants that.
        head_dim_v: head size of the values; None: head_dim.
        n_vocab: padded up to this with unused tokens; None: the vocabulary as it is.
        qkv_bias: default True for qwen2 only.
        qk_norm: default True for qwen3 only.
        rope_freqs: adds `rope_freqs.weight`, as llama 3 has it.
        tied: no `output.weight`.
        dtype: of the matrices, a key of `DTYPES`; vectors stay f32.
        vocab: "gpt2" (byte-level BPE) or "llama" (SentencePiece).
        extra_kv: keys that are added or replaced; None removes one; (GGUFValueType, value) sets a type. Otherwise
            int is u32, float f32, a list of int i32, a list of float f32.
        plan: a plan.json dict, written as `pysa.*` keys.

    Returns:
        `path`.
    """
    path = Path(path)
    rng = np.random.default_rng(seed)
    if n_embd is None:
        n_embd = n_head * head_dim if arch == "qwen2" else 96
    qkv_bias = arch == "qwen2" if qkv_bias is None else qkv_bias
    qk_norm = arch == "qwen3" if qk_norm is None else qk_norm

    keys: dict[str, Any] = {
        "general.name": f"tiny-{arch}",
        "general.file_type": 0,
        f"{arch}.context_length": n_ctx,
        f"{arch}.embedding_length": n_embd,
        f"{arch}.block_count": n_layer,
        f"{arch}.feed_forward_length": n_ff,
        f"{arch}.attention.head_count": n_head,
        f"{arch}.attention.head_count_kv": n_head_kv,
        f"{arch}.attention.key_length": head_dim,
        f"{arch}.attention.value_length": head_dim_v or head_dim,
        f"{arch}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{arch}.rope.dimension_count": head_dim,
        f"{arch}.rope.freq_base": 10000.0,
    }
    keys |= bpe_vocab() if vocab == "gpt2" else spm_vocab()
    tokens = keys["tokenizer.ggml.tokens"]
    n_pad = 0 if n_vocab is None else n_vocab - len(tokens)
    if n_pad < 0:
        raise ValueError(f"n_vocab: expected at least {len(tokens)}, got {n_vocab}")
    tokens += [f"<unused_{i}>" for i in range(n_pad)]
    keys["tokenizer.ggml.token_type"] += [int(TokenType.UNUSED)] * n_pad
    if "tokenizer.ggml.scores" in keys:
        keys["tokenizer.ggml.scores"] += [-1000.0] * n_pad
    n_vocab = len(tokens)
    if plan is not None:
        keys |= plan_keys(plan)
    keys |= extra_kv or {}

    writer = gguf.GGUFWriter(path, arch)
    for key, value in keys.items():
        if value is not None:
            _add_key(writer, key, value)

    def matrix(name: str, n_out: int, n_in: int, std: float) -> None:
        weight = rng.normal(0, std, (n_out, n_in)).astype(np.float32)
        kind = DTYPES[dtype]
        if dtype == "f32":
            writer.add_tensor(name, weight)
        elif dtype == "f16":
            writer.add_tensor(name, weight.astype(np.float16))
        else:
            writer.add_tensor(name, gguf.quants.quantize(weight, kind), raw_dtype=kind)

    def vector(name: str, n: int, mean: float, std: float) -> None:
        writer.add_tensor(name, rng.normal(mean, std, n).astype(np.float32))

    n_q, n_kv = n_head * head_dim, n_head_kv * head_dim
    n_v, n_out = n_head_kv * (head_dim_v or head_dim), n_head * (head_dim_v or head_dim)
    # q.k / sqrt(head_dim) of random rows has std = std_qk^2 * n_embd: 3 makes the softmax peak.
    std_qk = float(np.sqrt(3.0 / n_embd))
    matrix("token_embd.weight", n_vocab, n_embd, 3.0 / float(np.sqrt(n_embd)))
    vector("output_norm.weight", n_embd, 1.0, 0.1)
    if not tied:
        matrix("output.weight", n_vocab, n_embd, 3.0 / float(np.sqrt(n_embd)))
    if rope_freqs:
        writer.add_tensor("rope_freqs.weight", np.linspace(1.0, 8.0, head_dim // 2, dtype=np.float32))
    for il in range(n_layer):
        blk = f"blk.{il}."
        vector(blk + "attn_norm.weight", n_embd, 1.0, 0.1)
        matrix(blk + "attn_q.weight", n_q, n_embd, std_qk)
        matrix(blk + "attn_k.weight", n_kv, n_embd, std_qk)
        matrix(blk + "attn_v.weight", n_v, n_embd, float(n_embd**-0.5))
        matrix(blk + "attn_output.weight", n_embd, n_out, float(n_out**-0.5))
        if qkv_bias:
            vector(blk + "attn_q.bias", n_q, 0.0, 0.2)
            vector(blk + "attn_k.bias", n_kv, 0.0, 0.2)
            vector(blk + "attn_v.bias", n_v, 0.0, 0.2)
        if qk_norm:
            vector(blk + "attn_q_norm.weight", head_dim, 1.7, 0.1)
            vector(blk + "attn_k_norm.weight", head_dim, 1.7, 0.1)
        vector(blk + "ffn_norm.weight", n_embd, 1.0, 0.1)
        matrix(blk + "ffn_gate.weight", n_ff, n_embd, float(n_embd**-0.5))
        matrix(blk + "ffn_up.weight", n_ff, n_embd, float(n_embd**-0.5))
        matrix(blk + "ffn_down.weight", n_embd, n_ff, float(n_ff**-0.5))

    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_key(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, tuple):
        kind, value = value
        if isinstance(kind, tuple):
            writer.add_key_value(key, value, kind[0], sub_type=kind[1])
        else:
            writer.add_key_value(key, value, kind)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        items = list(value)
        kinds = {bool: GGUFValueType.BOOL, int: GGUFValueType.INT32, float: GGUFValueType.FLOAT32}
        kind = GGUFValueType.STRING if not items or isinstance(items[0], str) else kinds[type(items[0])]
        writer.add_key_value(key, items, GGUFValueType.ARRAY, sub_type=kind)
