"""A plan's attention in a transformers model: the attention implementation `pysa_shared` and `share_attention`.

For whole sequences, as in training: no KV cache, no padding. How a head's softmax is computed is in window_softmax.py.
A follower needs q and k of an earlier layer of the same forward pass: each pass has its own store for them, handed from
layer to layer as a keyword argument, so that gradient checkpointing computes a layer again with the tensors it had.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

from pysa.errors import ArgumentError, PlanError, UnsupportedModelError
from pysa.plan import Plan
from pysa_convert.adapt.window_softmax import Window, WindowSoftmax
from pysa_convert.architectures import BY_CLASS

_softmax: Callable[..., Tensor] = WindowSoftmax.apply

NAME = "pysa_shared"
STORE = "pysa_store"  # the keyword argument with which a pass's store travels


@dataclass
class Store:
    """q (n_rows, n_head, n_tokens, head_dim) and k of the layers of one forward pass that others follow."""

    with_gradients: bool
    layers: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)


@dataclass(frozen=True)
class HeadGroup:
    """Heads of one layer that are computed alike: their numbers, and each one's KV head, source and mass bias.

    `own`: all scores their own. `local`: the window's only. `sourced`: the distant ones another head's, or, with a
    mass bias, their own.
    """

    kind: str
    heads: list[int]
    kv_heads: list[int]
    sources: list[tuple[int, int]]
    bias: list[float]


class Sharing:
    """What the layers of one model do; attached to each attention module as `pysa_sharing`.

    Attributes:
        plan: an enabled one, or all owners.
        sources: layers whose q and k others need.
        is_on: False runs dense; see `off`.
    """

    def __init__(self, plan: Plan | None, n_layer: int, n_head: int, n_head_kv: int) -> None:
        dense = Plan.dense(n_layer, n_head)
        self.plan = plan if plan is not None and plan.enabled else dense
        self.is_on = True
        self._shared = [_groups(self.plan, il, n_head // n_head_kv) for il in range(n_layer)]
        self._dense = [_groups(dense, il, n_head // n_head_kv) for il in range(n_layer)]
        sourced = [group for layer in self._shared for group in layer if group.kind == "sourced"]
        self.sources = frozenset(layer for group in sourced for layer, _ in group.sources)

    @contextmanager
    def off(self) -> Iterator[None]:
        """Dense attention for a while."""
        self.is_on = False
        try:
            yield
        finally:
            self.is_on = True

    def groups(self, il: int) -> list[HeadGroup]:
        """The head groups of a layer as things stand."""
        return (self._shared if self.is_on else self._dense)[il]


def _groups(plan: Plan, il: int, n_gqa: int) -> list[HeadGroup]:
    biases = [0.0] * plan.n_head if plan.mass_bias is None else [float(b) for b in plan.mass_bias[il]]
    kinds = [
        "local" if kind == "local" else "own" if kind == "owner" and not bias else "sourced"
        for kind, bias in zip(plan.kinds()[il].tolist(), biases, strict=True)
    ]
    groups = []
    for kind in ("own", "local", "sourced"):
        heads = [h for h, found in enumerate(kinds) if found == kind]
        sources = [(int(plan.score_layer[il, h]), int(plan.score_head[il, h])) for h in heads]
        if heads:
            groups.append(HeadGroup(kind, heads, [h // n_gqa for h in heads], sources, [biases[h] for h in heads]))
    return groups


def share_attention(model: PreTrainedModel, plan: Plan | None) -> Sharing:
    """Makes a model compute a plan's attention; None or a disabled plan: dense.

    Args:
        model: llama, qwen2 or qwen3 for causal language modelling, not yet wrapped by peft.

    Returns:
        The switch: `with sharing.off(): ...` runs dense.

    Raises:
        PlanError: the plan does not fit the model, or has a gate, which cannot be trained through.
        UnsupportedModelError: another architecture.
    """
    name = type(model).__name__
    if name not in BY_CLASS:
        raise UnsupportedModelError(f"{name}: expected one of {', '.join(BY_CLASS)}")
    config = model.config
    n_layer, n_head, n_head_kv = config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads
    if plan is not None:
        plan.validate(n_head_kv, n_layer, n_head)
        if plan.enabled and plan.skip_gate < 1.0:
            raise PlanError(
                f"plan: skip_gate: expected 1.0 for training, got {plan.skip_gate}: a gate has no gradient; "
                "adapt without it and pass --skip-gate to pysa-convert"
            )
    sharing = Sharing(plan, n_layer, n_head, n_head_kv)
    for layer in model.model.layers:
        layer.self_attn.pysa_sharing = sharing
    if not getattr(model.model, "pysa_has_store", False):
        model.model.register_forward_pre_hook(_give_store, with_kwargs=True)
        model.model.pysa_has_store = True
    model.set_attn_implementation(NAME)
    return sharing


def _give_store(module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return args, {**kwargs, STORE: Store(torch.is_grad_enabled()), "use_cache": False}


def pysa_shared(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention of one layer, as transformers calls it.

    Shapes: query (n_rows, n_head, n_tokens, head_dim) and key (n_rows, n_head_kv, n_tokens, head_dim) after RoPE and
    QK norm, value as key; the result (n_rows, n_tokens, n_head, head_dim).
    """
    store: Store | None = kwargs.get(STORE)
    sharing: Sharing | None = getattr(module, "pysa_sharing", None)
    if store is None or sharing is None:
        raise ArgumentError(f"{NAME}: the model has no plan: call pysa_convert.adapt's share_attention(model, plan)")
    if dropout or attention_mask is not None or query.shape[2] != key.shape[2]:
        raise ArgumentError(f"{NAME}: expected whole sequences without padding, cache and dropout")
    if store.with_gradients != torch.is_grad_enabled():
        raise ArgumentError(f"{NAME}: reentrant checkpointing loses gradients of sources; pass use_reentrant=False")
    il = int(module.layer_idx)  # type: ignore[arg-type]
    # scores in float32 whatever the products before and after are in, as flash attention does
    exact = torch.float64 if query.dtype == torch.float64 else torch.float32
    with torch.autocast(query.device.type, enabled=False):
        q, k, v = query.to(exact), key.to(exact), value.to(exact)
        if il in sharing.sources and sharing.is_on and il not in store.layers:
            store.layers[il] = (q, k)
        groups = sharing.groups(il)
        parts = [_attend(group, sharing.plan, q, k, v, scaling, store) for group in groups]
        order = torch.tensor([h for group in groups for h in group.heads], device=q.device)
        out = parts[0] if len(parts) == 1 else torch.cat(parts, 1)[:, order.argsort()]
    return out.transpose(1, 2).to(value.dtype).contiguous(), None


def _attend(group: HeadGroup, plan: Plan, q: Tensor, k: Tensor, v: Tensor, scale: float, store: Store) -> Tensor:
    """The outputs (n_rows, n_heads of the group, n_tokens, head_dim)."""
    q, k, v = q[:, group.heads], k[:, group.kv_heads], v[:, group.kv_heads]
    if group.kind == "own" or plan.n_sink + plan.n_recent >= q.shape[2]:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
    window, near = Window(plan.n_sink, plan.n_recent), [x.flatten(0, 1) for x in (q * scale, k, v)]
    if group.kind == "local":
        return _softmax(*near, None, None, None, window).view(q.shape)
    k_far = torch.stack([_key(store, layer, head) for layer, head in group.sources], 1)
    q_far = q if plan.distant == "keys" else torch.stack([store.layers[a][0][:, h] for a, h in group.sources], 1)
    if plan.n_recent == 0:
        # the bias is on every score then, and changes nothing
        return F.scaled_dot_product_attention(q_far, k_far, v, is_causal=True, scale=scale)
    bias = q.new_tensor(group.bias).repeat(len(q))[:, None, None]
    far = ((q_far * scale).flatten(0, 1), k_far.flatten(0, 1), bias)
    return _softmax(*near, *far, window).view(q.shape)


def _key(store: Store, layer: int, head: int) -> Tensor:
    """(n_rows, n_tokens, head_dim): the key that a query head of an earlier layer meets."""
    q, k = store.layers[layer]
    return k[:, head * k.shape[1] // q.shape[1]]


def _no_mask(*, attention_mask: Tensor | None = None, **_: Any) -> None:
    """Plans are about positions in a whole sequence: transformers gets no mask from here, and padding is refused."""
    if attention_mask is not None and not bool(attention_mask.all()):
        raise ArgumentError(f"{NAME}: expected sequences without padding, got an attention mask with zeros")


AttentionInterface.register(NAME, pysa_shared)
AttentionMaskInterface.register(NAME, _no_mask)
