"""Attention statistics in float64, straight from their definitions: what tests hold native/src/planning against."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def softmax(scores: Array) -> Array:
    e = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def attention(queries: Array, keys: Array, kq_scale: float) -> list[Array]:
    """Per query, oldest first, the scores (n_head, t + 1) of what it sees."""
    n_queries, n_head, _ = queries.shape
    n_head_kv, n_tokens, _ = keys.shape
    own = np.repeat(keys.astype(np.float64), n_head // n_head_kv, axis=0)
    scores = kq_scale * np.einsum("qhd,hjd->qhj", queries.astype(np.float64), own)
    return [scores[q][:, : n_tokens - n_queries + q + 1] for q in range(n_queries)]


def divergence(p: Array, q: Array) -> float:
    """Jensen-Shannon, in bits."""
    m = (p + q) / 2
    terms = [np.sum(x[x > 0] * np.log2(x[x > 0] / m[x > 0])) for x in (p, q)]
    return float(sum(terms) / 2)


@dataclass
class Sums:
    """The sums over the queries of all samples added; heads of all layers in one row."""

    n_sink: int
    n_recent: int
    n_queries: int = 0
    n_distant: int = 0
    similarity: Array = field(default_factory=lambda: np.zeros(()))
    layer_dots: Array = field(default_factory=lambda: np.zeros(()))
    mass: Array = field(default_factory=lambda: np.zeros(()))

    def add(self, layers: list[tuple[Array, Array]], kq_scale: float) -> None:
        """One sample: queries (n_queries, n_head, d) and keys (n_head_kv, n_tokens, d) of each layer."""
        scores = [attention(queries, keys, kq_scale) for queries, keys in layers]
        for q in range(len(scores[0])):
            of_query = np.stack([layer[q] for layer in scores])  # (n_layer, n_head, t + 1)
            weights = softmax(of_query)
            j = np.arange(weights.shape[-1])
            distant = (j >= self.n_sink) & (j <= len(j) - 1 - self.n_recent)
            sinks = j < self.n_sink
            parts = (sinks, ~sinks & ~distant, distant)
            self.n_queries += 1
            self.mass = self.mass + np.stack([weights[..., part].sum(axis=-1) for part in parts], axis=-1)
            self.layer_dots = self.layer_dots + np.einsum("ahj,bhj->ab", weights, weights)
            if distant.any():
                far = softmax(of_query[..., distant]).reshape(-1, int(distant.sum()))
                self.n_distant += 1
                self.similarity = self.similarity + np.array([[1 - divergence(a, b) for b in far] for a in far])
