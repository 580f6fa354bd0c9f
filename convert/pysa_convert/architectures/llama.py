"""llama: Llama 1/2/3.x, Mistral, SmolLM2, Yi, Falcon3, TinyLlama, DeepSeek-R1-Distill-Llama."""

from __future__ import annotations

from pysa_convert.architectures.base import COMMON, Architecture, TensorRow

ROW = Architecture(
    name="llama",
    classes=("LlamaForCausalLM", "LLaMAForCausalLM", "MistralForCausalLM"),
    # ggml's llama rotates adjacent pairs, transformers rotates halves
    permute_qk=True,
    rope_types=("default", "linear", "yarn", "llama3"),
    writes_vocab_size=True,
    tensors=(
        *COMMON,
        TensorRow("model.layers.{}.self_attn.q_proj.bias", "blk.{}.attn_q.bias", ("n_q",), "attention_bias", "n_head"),
        TensorRow(
            "model.layers.{}.self_attn.k_proj.bias", "blk.{}.attn_k.bias", ("n_kv",), "attention_bias", "n_head_kv"
        ),
        TensorRow("model.layers.{}.self_attn.v_proj.bias", "blk.{}.attn_v.bias", ("n_v",), "attention_bias"),
        TensorRow("model.layers.{}.self_attn.o_proj.bias", "blk.{}.attn_output.bias", ("n_embd",), "attention_bias"),
        TensorRow("model.layers.{}.mlp.gate_proj.bias", "blk.{}.ffn_gate.bias", ("n_ff",), "mlp_bias"),
        TensorRow("model.layers.{}.mlp.up_proj.bias", "blk.{}.ffn_up.bias", ("n_ff",), "mlp_bias"),
        TensorRow("model.layers.{}.mlp.down_proj.bias", "blk.{}.ffn_down.bias", ("n_embd",), "mlp_bias"),
    ),
)
