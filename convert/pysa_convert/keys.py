"""The keys of a GGUF, apart from the vocabulary's: `general.*` and the architecture's own, from config.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from gguf.constants import GGML_QUANT_VERSION, LlamaFileType

from pysa_convert.architectures.base import Architecture, Dims, KeyValue
from pysa_convert.faults import Faults

FILE_TYPES = {
    "f32": LlamaFileType.ALL_F32,
    "f16": LlamaFileType.MOSTLY_F16,
    "bf16": LlamaFileType.MOSTLY_BF16,
    "q8_0": LlamaFileType.MOSTLY_Q8_0,
    "q4_0": LlamaFileType.MOSTLY_Q4_0,
}
F32_MAX = 3.4e38
QUANTISED = ("q8_0", "q4_0")


def general_keys(row: Architecture, name: str, outtype: str, n_params: int) -> list[KeyValue]:
    """The `general.*` keys of a converted model."""
    keys: list[KeyValue] = [
        ("general.architecture", "string", row.name),
        ("general.type", "string", "model"),
        ("general.name", "string", name),
        ("general.size_label", "string", size_label(n_params)),
        ("general.file_type", "u32", int(FILE_TYPES[outtype])),
    ]
    if outtype in QUANTISED:
        keys.append(("general.quantization_version", "u32", GGML_QUANT_VERSION))
    return keys


def size_label(n_params: int) -> str:
    """`7.2B`, `135M`, `4.5M`: parameters in the unit that keeps one to three digits before the point."""
    for unit, scale in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if n_params >= scale:
            value = n_params / scale
            return f"{value:.0f}{unit}" if value >= 9.95 else f"{value:.1f}{unit}"
    return str(n_params)


def model_keys(row: Architecture, dims: Dims, config: Mapping[str, Any], faults: Faults) -> list[KeyValue]:
    """The architecture's keys, as llama.cpp reads them; what config.json lacks is added to `faults`."""
    a = row.name
    eps = _positive(config, "rms_norm_eps", None, faults)
    keys: list[KeyValue] = [
        (f"{a}.block_count", "u32", dims.n_layer),
        (f"{a}.context_length", "u32", dims.n_ctx),
        (f"{a}.embedding_length", "u32", dims.n_embd),
        (f"{a}.feed_forward_length", "u32", dims.n_ff),
        (f"{a}.attention.head_count", "u32", dims.n_head),
        (f"{a}.attention.head_count_kv", "u32", dims.n_head_kv),
        (f"{a}.attention.layer_norm_rms_epsilon", "f32", eps),
    ]
    if config.get("head_dim") is not None:
        keys.append((f"{a}.attention.key_length", "u32", dims.head_dim))
        keys.append((f"{a}.attention.value_length", "u32", dims.head_dim_v))
    if row.writes_vocab_size:
        keys.append((f"{a}.vocab_size", "u32", dims.n_vocab))
        keys.append((f"{a}.rope.dimension_count", "u32", dims.head_dim))
    return keys + rope_keys(row, read_rope(row, config, faults), faults)


def read_rope(row: Architecture, config: Mapping[str, Any], faults: Faults) -> dict[str, Any]:
    """rope_parameters (transformers 5) or rope_scaling + rope_theta (before), with `rope_type` and `rope_theta` set."""
    raw = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(raw, Mapping):
        faults.add(f"config.json: rope_scaling: expected an object, got {type(raw).__name__}")
        raw = {}
    rope = dict(raw)
    rope["rope_type"] = str(rope.get("rope_type", rope.get("type", "default"))).lower()
    rope["rope_theta"] = _positive({"rope_theta": config.get("rope_theta"), **rope}, "rope_theta", 10000.0, faults)
    if rope["rope_type"] not in row.rope_types:
        expected = ", ".join(row.rope_types)
        faults.add(f"config.json: rope type of {row.name}: expected one of {expected}, got {rope['rope_type']!r}")
        rope["rope_type"] = "default"
    if rope.get("partial_rotary_factor", config.get("partial_rotary_factor")) not in (None, 1, 1.0):
        faults.add("config.json: partial_rotary_factor: expected 1, got another value")
    required = {
        "linear": ("factor",),
        "yarn": ("factor",),
        "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    }
    for key in required.get(rope["rope_type"], ()):
        rope[key] = _positive(rope, key, None, faults)
    if rope["rope_type"] == "llama3" and rope["high_freq_factor"] <= rope["low_freq_factor"]:
        faults.add("config.json: high_freq_factor: expected more than low_freq_factor, got no more")
        rope["high_freq_factor"] = rope["low_freq_factor"] + 1.0
    if rope["rope_type"] == "yarn":
        n_ctx = rope.get("original_max_position_embeddings") or config.get("max_position_embeddings")
        if type(n_ctx) is not int or not 1 <= n_ctx < 2**31:
            faults.add(f"config.json: original_max_position_embeddings: expected a number of tokens, got {n_ctx!r}")
            n_ctx = 1
        rope["original_max_position_embeddings"] = n_ctx
    return rope


def rope_keys(row: Architecture, rope: Mapping[str, Any], faults: Faults) -> list[KeyValue]:
    """The `rope.*` keys; llama3's scaling becomes a tensor instead."""
    prefix = f"{row.name}.rope"
    keys: list[KeyValue] = [(f"{prefix}.freq_base", "f32", rope["rope_theta"])]
    if rope["rope_type"] not in ("linear", "yarn"):
        return keys
    keys.append((f"{prefix}.scaling.type", "string", rope["rope_type"]))
    keys.append((f"{prefix}.scaling.factor", "f32", rope["factor"]))
    if rope["rope_type"] == "yarn":
        n_ctx = rope["original_max_position_embeddings"]
        keys.append((f"{prefix}.scaling.original_context_length", "u32", n_ctx))
        # llama.cpp fixes these for the architectures of the table, so another value could not be honoured
        for name, fixed in (("beta_fast", 32), ("beta_slow", 1), ("mscale", 1), ("mscale_all_dim", 0)):
            if rope.get(name) not in (None, fixed):
                faults.add(f"config.json: yarn {name}: expected {fixed}, got {rope[name]!r}")
        usual = 0.1 * math.log(rope["factor"]) + 1.0 if rope["factor"] > 1 else 1.0
        attention = rope.get("attention_factor")
        if attention is not None and not (
            isinstance(attention, (int, float)) and math.isclose(attention, usual, rel_tol=1e-4)
        ):
            faults.add(f"config.json: yarn attention_factor: expected {usual:.6g}, got {attention!r}")
    return keys


def _positive(config: Mapping[str, Any], key: str, default: float | None, faults: Faults) -> float:
    value = config.get(key)
    value = default if value is None else value
    # NaN fails the comparison; f32 keys hold no more than F32_MAX
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= F32_MAX:
        faults.add(f"config.json: {key}: expected a number above 0, got {value!r}")
        return 1.0
    return float(value)
