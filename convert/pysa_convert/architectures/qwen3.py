"""qwen3: no biases, q and k normalised per head before rope, head size of its own."""

from __future__ import annotations

from pysa_convert.architectures.base import COMMON, Architecture, TensorRow

ROW = Architecture(
    name="qwen3",
    classes=("Qwen3ForCausalLM",),
    permute_qk=False,
    rope_types=("default", "linear", "yarn"),
    writes_vocab_size=False,
    tensors=(
        *COMMON,
        TensorRow("model.layers.{}.self_attn.q_norm.weight", "blk.{}.attn_q_norm.weight", ("head_dim",)),
        TensorRow("model.layers.{}.self_attn.k_norm.weight", "blk.{}.attn_k_norm.weight", ("head_dim",)),
    ),
)
