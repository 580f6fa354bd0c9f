"""The model as a small torch module with Llama's arithmetic, and its export to a Hugging Face checkpoint.

Written out rather than taken from transformers because it trains faster on a CPU; `export` is checked against
transformers by make_example_model.py.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .vocabulary import BOS, END_OF_TEXT, IM_END, N_VOCAB, PAD


@dataclass(frozen=True)
class Config:
    n_layer: int = 12
    n_embd: int = 192
    n_head: int = 6
    n_head_kv: int = 3
    head_dim: int = 32
    n_ff: int = 512
    n_vocab: int = N_VOCAB
    n_ctx: int = 2048
    rope_theta: float = 500000.0
    rms_eps: float = 1e-5


def rope_table(config: Config) -> tuple[Tensor, Tensor]:
    """Cosines and sines (n_ctx, head_dim), the two halves alike as Hugging Face pairs them."""
    half = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
    angles = torch.arange(config.n_ctx, dtype=torch.float64)[:, None] * config.rope_theta**-half
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Applies RoPE to x (..., n_tokens, head_dim)."""
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-b, a), dim=-1) * sin


class Attention(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        n_q, n_kv = config.n_head * config.head_dim, config.n_head_kv * config.head_dim
        self.q_proj = nn.Linear(config.n_embd, n_q, bias=False)
        self.k_proj = nn.Linear(config.n_embd, n_kv, bias=False)
        self.v_proj = nn.Linear(config.n_embd, n_kv, bias=False)
        self.o_proj = nn.Linear(n_q, config.n_embd, bias=False)

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q (n_batch, n_head, n_tokens, head_dim), k and v (n_batch, n_head_kv, n_tokens, head_dim)."""
        n_batch, n_tokens, _ = x.shape
        shape = (n_batch, n_tokens, -1, self.config.head_dim)
        q, k, v = (p(x).view(shape).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        return rotate(q, cos, sin).to(v.dtype), rotate(k, cos, sin).to(v.dtype), v

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k, v = self.project(x, cos, sin)
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.o_proj(o.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.n_embd, config.n_ff, bias=False)
        self.up_proj = nn.Linear(config.n_embd, config.n_ff, bias=False)
        self.down_proj = nn.Linear(config.n_ff, config.n_embd, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.n_embd, eps=config.rms_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.n_embd, eps=config.rms_eps)
        self.mlp = Mlp(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class TinyLlama(nn.Module):
    """Llama with tied embeddings. Parameter names are those of transformers' LlamaForCausalLM, less `model.`."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.n_vocab, config.n_embd)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.n_layer))
        self.norm = nn.RMSNorm(config.n_embd, eps=config.rms_eps)
        cos, sin = rope_table(config)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        for name, p in self.named_parameters():
            if p.ndim == 2:
                nn.init.normal_(p, std=0.02)
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                nn.init.normal_(p, std=0.02 / (2 * self.config.n_layer) ** 0.5)
        nn.init.normal_(self.embed_tokens.weight, std=0.1)

    def hidden(self, ids: Tensor) -> Tensor:
        """The last layer's normalised output (n_batch, n_tokens, n_embd)."""
        n_tokens = ids.shape[1]
        cos, sin = self.cos[:n_tokens], self.sin[:n_tokens]
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.embed_tokens.weight)

    def forward(self, ids: Tensor) -> Tensor:
        """ids (n_batch, n_tokens) -> logits (n_batch, n_tokens, n_vocab)."""
        return self.logits(self.hidden(ids))


def export(model: TinyLlama, folder: Path) -> None:
    """Writes config.json, generation_config.json and model.safetensors (bf16) for transformers."""
    c = model.config
    config = {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": BOS,
        "eos_token_id": IM_END,
        "head_dim": c.head_dim,
        "hidden_act": "silu",
        "hidden_size": c.n_embd,
        "initializer_range": 0.02,
        "intermediate_size": c.n_ff,
        "max_position_embeddings": c.n_ctx,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": c.n_head,
        "num_hidden_layers": c.n_layer,
        "num_key_value_heads": c.n_head_kv,
        "pad_token_id": PAD,
        "rms_norm_eps": c.rms_eps,
        "rope_scaling": None,
        "rope_theta": c.rope_theta,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": c.n_vocab,
    }
    generation = {"bos_token_id": BOS, "eos_token_id": [IM_END, END_OF_TEXT], "pad_token_id": PAD}
    for name, content in (("config.json", config), ("generation_config.json", generation)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    tensors = {f"model.{name}": p.detach().to(torch.bfloat16).contiguous() for name, p in model.named_parameters()}
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})


def load(folder: Path) -> TinyLlama:
    """Reads a checkpoint written by `export`, in f32 arithmetic."""
    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = Config(
        n_layer=raw["num_hidden_layers"],
        n_embd=raw["hidden_size"],
        n_head=raw["num_attention_heads"],
        n_head_kv=raw["num_key_value_heads"],
        head_dim=raw["head_dim"],
        n_ff=raw["intermediate_size"],
        n_vocab=raw["vocab_size"],
        n_ctx=raw["max_position_embeddings"],
    )
    model = TinyLlama(config)
    tensors = load_file(str(folder / "model.safetensors"))
    model.load_state_dict({name.removeprefix("model."): t.float() for name, t in tensors.items()})
    return model.eval().requires_grad_(False)
