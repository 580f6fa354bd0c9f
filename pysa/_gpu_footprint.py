"""What the layers on a GPU take there, and what that leaves to the host: as the engine counts when it places them.

native/src/engine/placement.cpp is the engine's side. pysa/memory.py chooses a context by both.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pysa._footprint import Shape, cache_bytes
from pysa.plan import Plan


@dataclass(frozen=True)
class Room:
    """Memory of a GPU, and the layers that are to be there, the output counted as one; -1: as many as fit."""

    device: str
    n_bytes: int
    n_layers: int = -1


NO_GPU = Room("cpu", 0, 0)


@dataclass(frozen=True)
class Part:
    """What is on the GPU. Sizes in bytes; `host_weights_bytes` is what that leaves to the host."""

    n_layers: int
    weights_bytes: int
    cache_bytes: int
    compute_bytes: int
    host_weights_bytes: int

    @property
    def total_bytes(self) -> int:
        """Of the GPU's memory."""
        return self.weights_bytes + self.cache_bytes + self.compute_bytes


@dataclass(frozen=True)
class Load:
    """What a model's sessions are: as pysa.fit has them."""

    shape: Shape
    plan: Plan
    n_ctx: int
    types: tuple[str, str]
    n_sessions: int
    n_ubatch: int
    distant_budget_bytes: int

    def on_gpu(self, n_layers: int) -> Part:
        """With so many of the last layers there, the output counted as one."""
        shape = self.shape
        if n_layers == 0:
            return Part(0, 0, 0, 0, shape.weights_bytes)
        first = shape.n_layer + 1 - n_layers
        layers = sum(shape.layer_bytes[first:])
        host = shape.weights_bytes - layers - shape.output_bytes - shape.repacked_bytes
        cut = attention_cut(self.plan, first)
        cache, _ = cache_bytes(shape, self.plan, self.n_ctx, *self.types, first_layer=cut)
        growing = cache // max(1, shape.n_layer - cut)  # one layer is there twice then
        compute = step_bytes(shape, self.plan, self.n_ctx, self.n_ubatch, self.distant_budget_bytes) + growing
        weights = layers + shape.output_bytes + shape.tied_bytes
        return Part(n_layers, weights, self.n_sessions * cache, self.n_sessions * compute, host)

    def placed(self, room: Room) -> Part:
        """As the room says; of -1, the most layers that fit."""
        n_all = self.shape.n_layer + 1
        if room.n_layers >= 0:
            return self.on_gpu(min(room.n_layers, n_all))
        fits, too_many = 0, n_all + 1
        while too_many - fits > 1:
            middle = (fits + too_many) // 2
            if self.on_gpu(middle).total_bytes <= room.n_bytes:
                fits = middle
            else:
                too_many = middle
        return self.on_gpu(fits)


def attention_cut(plan: Plan, first: int) -> int:
    """The first layer >= `first` from which on no head reads the scores of a layer before it: no score crosses over."""
    cut = min(first, plan.n_layer)
    if not plan.enabled:
        return cut
    layers, heads = np.nonzero(plan.kinds() == "follower")
    sources = plan.score_layer[layers, heads]
    while (crossing := layers[(layers >= cut) & (sources < cut)]).size:
        cut = int(crossing.max()) + 1
    return cut


def step_bytes(shape: Shape, plan: Plan, n_ctx: int, n_ubatch: int, distant_budget_bytes: int) -> int:
    """Bytes that a session's evaluations take on the GPU besides the cache: an estimate, rather too high."""
    n_q = shape.n_head * shape.n_embd_head_k
    widest = max(4 * shape.n_embd + 4 * n_q, 3 * shape.n_embd + 4 * shape.n_ff)
    shared = distant_budget_bytes if plan.enabled and (plan.kinds() != "owner").any() else 0
    return 6 * min(n_ubatch, n_ctx) * widest + 8 * shape.n_vocab + 8 * n_ctx * shape.n_head + shared
