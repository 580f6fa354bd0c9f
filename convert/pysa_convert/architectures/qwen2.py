"""qwen2: Qwen 1.5, 2 and 2.5, DeepSeek-R1-Distill-Qwen. Biases on q, k and v, rope over halves."""

from __future__ import annotations

from pysa_convert.architectures.base import COMMON, Architecture, TensorRow

ROW = Architecture(
    name="qwen2",
    classes=("Qwen2ForCausalLM",),
    permute_qk=False,
    rope_types=("default", "linear", "yarn"),
    writes_vocab_size=False,
    tensors=(
        *COMMON,
        TensorRow("model.layers.{}.self_attn.q_proj.bias", "blk.{}.attn_q.bias", ("n_q",)),
        TensorRow("model.layers.{}.self_attn.k_proj.bias", "blk.{}.attn_k.bias", ("n_kv",)),
        TensorRow("model.layers.{}.self_attn.v_proj.bias", "blk.{}.attn_v.bias", ("n_v",)),
    ),
)
