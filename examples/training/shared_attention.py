"""Runs a model with a sharing plan: one softmax over a head's own window and its source's distant scores.

For measuring only: nothing is saved here, whole score matrices are formed. The trace that a run leaves lets the next
one start at the first layer whose plan differs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .model import Attention, TinyLlama
from .plan import Plan


@dataclass
class Trace:
    """One sequence's intermediate values: the input of every layer and its q and k, and the final output."""

    x: list[Tensor]  # n_layer x (1, n_tokens, n_embd)
    q: list[Tensor]  # n_layer x (1, n_head, n_tokens, head_dim)
    k: list[Tensor]  # n_layer x (1, n_head_kv, n_tokens, head_dim)
    hidden: Tensor  # (1, n_tokens, n_embd), normalised


def proximal(n_tokens: int, n_sink: int, n_recent: int) -> Tensor:
    """bool (n_tokens, n_tokens): row t is True where the layer itself scores."""
    j = torch.arange(n_tokens)
    t = j[:, None]
    return ((j < n_sink) | (j > t - n_recent)) & (j <= t)


def scores(trace: Trace, layer: int, head: int) -> Tensor:
    """A head's scaled scores (n_tokens, n_tokens), unmasked."""
    q, k = trace.q[layer], trace.k[layer]
    group = head * k.shape[1] // q.shape[1]
    return q[0, head] @ k[0, group].T * q.shape[-1] ** -0.5


def _attend(attention: Attention, v: Tensor, trace: Trace, layer: int, plan: Plan) -> Tensor:
    """The heads' outputs (1, n_head, n_tokens, head_dim) of the layer whose q and k were added to the trace last."""
    q, k = trace.q[layer], trace.k[layer]
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    n_tokens = q.shape[2]
    causal = torch.ones(n_tokens, n_tokens, dtype=torch.bool).tril()
    near = proximal(n_tokens, plan.n_sink, plan.n_recent)
    for head in range(attention.config.n_head):
        kind = plan.kind(layer, head)
        if kind == "owner":
            continue
        group = head * attention.config.n_head_kv // attention.config.n_head
        s = scores(trace, layer, head)
        if kind == "local":
            s = s.masked_fill(~near, -torch.inf)
        else:
            source = scores(trace, int(plan.score_layer[layer, head]), int(plan.score_head[layer, head]))
            s = torch.where(near, s, source).masked_fill(~causal, -torch.inf)
        out[0, head] = s.softmax(-1) @ v[0, group]
    return out


@torch.inference_mode()
def run(model: TinyLlama, ids: Tensor, plan: Plan, start: int = 0, previous: Trace | None = None) -> Trace:
    """Evaluates ids (n_tokens,) under the plan, from layer `start` on if an earlier trace agrees up to there."""
    n_tokens = len(ids)
    cos, sin = model.cos[:n_tokens], model.sin[:n_tokens]
    if previous is None or start == 0:
        x, trace = model.embed_tokens(ids[None]), Trace([], [], [], torch.empty(0))
    else:
        x = previous.x[start]
        trace = Trace(previous.x[:start], previous.q[:start], previous.k[:start], torch.empty(0))
    for il in range(len(trace.x), len(model.layers)):
        layer = model.layers[il]
        attention: Attention = layer.self_attn
        trace.x.append(x)
        q, k, v = attention.project(layer.input_layernorm(x), cos, sin)
        trace.q.append(q)
        trace.k.append(k)
        out = _attend(attention, v, trace, il, plan)
        x = x + attention.o_proj(out.transpose(1, 2).flatten(2))
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    trace.hidden = model.norm(x)
    return trace
