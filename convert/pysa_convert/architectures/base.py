"""What a row of the table holds, and how a checkpoint is read with it: dimensions, keys, tensors.

An architecture is data: names, shapes and a few flags. Everything missing or of a wrong shape is reported at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pysa_convert.faults import Faults
from pysa_convert.sources.checkpoint import SafeTensor

KeyValue = tuple[str, str, Any]  # key, GGUF type, value


@dataclass(frozen=True)
class TensorRow:
    """One tensor: its two names (`{}` is the layer), its shape in numpy order, and what it depends on.

    `when` names a config flag that must be true; `permute` the head count by which llama's rotary pairs are reordered.
    """

    hf: str
    gguf: str
    shape: tuple[str, ...]
    when: str = ""
    permute: str = ""


@dataclass(frozen=True)
class Dims:
    """The dimensions of a model; `head_dim` is of a key, `head_dim_v` of a value."""

    n_layer: int
    n_ctx: int
    n_embd: int
    n_head: int
    n_head_kv: int
    head_dim: int
    head_dim_v: int
    n_ff: int
    n_vocab: int

    def size(self, name: str) -> int:
        """A dimension by the name that rows use."""
        derived = {
            "n_q": self.n_head * self.head_dim,
            "n_kv": self.n_head_kv * self.head_dim,
            "n_v": self.n_head_kv * self.head_dim_v,
        }
        return derived[name] if name in derived else int(getattr(self, name))


@dataclass(frozen=True)
class Architecture:
    """One row: GGUF's name, the Hugging Face classes, the tensors, and what differs otherwise."""

    name: str
    classes: tuple[str, ...]
    permute_qk: bool
    rope_types: tuple[str, ...]
    writes_vocab_size: bool
    tensors: tuple[TensorRow, ...]


@dataclass(frozen=True)
class MappedTensor:
    """A tensor of the checkpoint with its name and its head permutation in the GGUF (0: none)."""

    name: str
    source: SafeTensor
    n_head_permuted: int


COMMON = (
    TensorRow("model.embed_tokens.weight", "token_embd.weight", ("n_vocab", "n_embd")),
    TensorRow("model.layers.{}.input_layernorm.weight", "blk.{}.attn_norm.weight", ("n_embd",)),
    TensorRow("model.layers.{}.self_attn.q_proj.weight", "blk.{}.attn_q.weight", ("n_q", "n_embd"), permute="n_head"),
    TensorRow(
        "model.layers.{}.self_attn.k_proj.weight", "blk.{}.attn_k.weight", ("n_kv", "n_embd"), permute="n_head_kv"
    ),
    TensorRow("model.layers.{}.self_attn.v_proj.weight", "blk.{}.attn_v.weight", ("n_v", "n_embd")),
    TensorRow("model.layers.{}.self_attn.o_proj.weight", "blk.{}.attn_output.weight", ("n_embd", "n_q")),
    TensorRow("model.layers.{}.post_attention_layernorm.weight", "blk.{}.ffn_norm.weight", ("n_embd",)),
    TensorRow("model.layers.{}.mlp.gate_proj.weight", "blk.{}.ffn_gate.weight", ("n_ff", "n_embd")),
    TensorRow("model.layers.{}.mlp.up_proj.weight", "blk.{}.ffn_up.weight", ("n_ff", "n_embd")),
    TensorRow("model.layers.{}.mlp.down_proj.weight", "blk.{}.ffn_down.weight", ("n_embd", "n_ff")),
    TensorRow("model.norm.weight", "output_norm.weight", ("n_embd",)),
    TensorRow("lm_head.weight", "output.weight", ("n_vocab", "n_embd"), when="untied"),
)


def read_dims(config: Mapping[str, Any], faults: Faults) -> Dims:
    """The dimensions from config.json; what is missing or impossible is added to `faults`."""

    def natural(key: str, default: int | None = None, most: int = 2**31 - 1) -> int:
        value = config.get(key)
        value = default if value is None else value
        if type(value) is not int or not 1 <= value <= most:
            limit = "" if most == 2**31 - 1 else f", at most {most}"
            faults.add(f"config.json: {key}: expected a number above 0{limit}, got {value!r}")
            return 1
        return value

    n_head, n_embd = natural("num_attention_heads"), natural("hidden_size")
    head_dim = natural("head_dim", n_embd // n_head or 1)
    dims = Dims(
        n_layer=natural("num_hidden_layers", most=512),  # llama.cpp's own limit
        n_ctx=natural("max_position_embeddings"),
        n_embd=n_embd,
        n_head=n_head,
        n_head_kv=natural("num_key_value_heads", n_head),
        head_dim=head_dim,
        head_dim_v=head_dim,
        n_ff=natural("intermediate_size"),
        n_vocab=natural("vocab_size", most=2**24),
    )
    if dims.n_head % dims.n_head_kv:
        faults.add(f"config.json: num_key_value_heads: expected a divisor of {n_head}, got {dims.n_head_kv}")
    if head_dim % 2:
        faults.add(f"config.json: head_dim: expected an even number for rope, got {head_dim}")
    activation = config.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        faults.add(f"config.json: hidden_act: expected silu, got {activation!r}")
    return dims


def map_tensors(
    row: Architecture, dims: Dims, config: Mapping[str, Any], tensors: Mapping[str, SafeTensor], faults: Faults
) -> list[MappedTensor]:
    """Every tensor of the row in the order of writing; missing, misshapen and unknown ones are added to `faults`."""
    mapped: list[MappedTensor] = []
    seen: set[str] = set()
    blocks = [entry for entry in row.tensors if "{}" in entry.hf]
    plan = [(entry, entry.hf, entry.gguf) for entry in row.tensors[:1]]
    plan += [(entry, entry.hf.format(il), entry.gguf.format(il)) for il in range(dims.n_layer) for entry in blocks]
    plan += [(entry, entry.hf, entry.gguf) for entry in row.tensors[1:] if "{}" not in entry.hf]
    for entry, hf, name in plan:
        seen.add(hf)
        if not _is_wanted(entry, config):
            continue
        tensor = tensors.get(hf)
        shape = tuple(dims.size(size) for size in entry.shape)
        if tensor is None:
            faults.add(f"{hf}: tensor missing")
        elif tensor.shape != shape:
            faults.add(f"{hf}: expected shape {shape}, got {tensor.shape}")
        elif tensor.dtype not in ("F64", "F32", "F16", "BF16"):
            faults.add(f"{hf}: expected floats, got {tensor.dtype}")
        else:
            n_head = dims.size(entry.permute) if entry.permute and row.permute_qk else 0
            mapped.append(MappedTensor(name, tensor, n_head))
    unknown = [name for name in tensors if name not in seen and not name.endswith("rotary_emb.inv_freq")]
    for name in sorted(unknown):
        faults.add(f"{name}: no such tensor in {row.name}; config.json may belong to another model")
    return mapped


def _is_wanted(entry: TensorRow, config: Mapping[str, Any]) -> bool:
    if entry.when == "untied":
        return not config.get("tie_word_embeddings", False)
    return not entry.when or bool(config.get(entry.when, False))


def rope_factors(rope: Mapping[str, Any], head_dim: int) -> npt.NDArray[np.float32]:
    """(head_dim / 2,) factors by which llama3's scaling divides the angles. Source: Llama 3.1's reference code."""
    base, factor = float(rope["rope_theta"]), float(rope["factor"])
    low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    n_ctx_orig = float(rope["original_max_position_embeddings"])
    angles = base ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    turns = n_ctx_orig * angles / (2.0 * math.pi)  # full turns within the original context
    blend = (turns - low) / (high - low)
    between = 1.0 / ((1.0 - blend) / factor + blend)
    return np.where(turns > high, 1.0, np.where(turns < low, factor, between)).astype(np.float32)
