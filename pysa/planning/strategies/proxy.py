"""What a head's output becomes without its own distant scores, for a few queries: no model is run for it.

For every head and every head of an earlier layer: the output with that head's distant scores instead of its own, and
the output with the window alone. Ranks sources and groups before anything is measured; how much a change of the output
matters to the predictions, only measuring tells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pysa.planning.strategies.groups import Shape

if TYPE_CHECKING:
    from pysa.planning.trial import Trial

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]


@dataclass
class OutputTable:
    """Squared changes of heads' outputs, as quadratics in the distance's share of the softmax.

    With L that share, a head's output is (1 - L) near + L far, and its change from the dense output has the square
    near + 2 L cross + L^2 square. Positions of queries are the last axis everywhere.

    Attributes:
        near: (n_layer, n_head, n_queries) squared change with the window alone.
        output: (n_layer, n_head, n_queries) squared length of the dense output.
        cross, square, odds: per layer il (n_head, il * n_head, n_queries), for the source a * n_head + g; odds: the log
            of the distance's weight by the window's, so that L = sigmoid(odds + mass bias).
        is_recall: (n_queries,) whether a query is to give a recall answer.
    """

    shape: Shape
    near: Floats
    output: Floats
    cross: list[Floats]
    square: list[Floats]
    odds: list[Floats]
    is_recall: Bools

    @classmethod
    def join(cls, parts: Sequence[OutputTable]) -> OutputTable:
        """The queries of several samples together."""

        def joined(name: str) -> list[Floats]:
            return [np.concatenate(rows, 2) for rows in zip(*(getattr(p, name) for p in parts), strict=True)]

        return cls(
            parts[0].shape,
            np.concatenate([p.near for p in parts], 2),
            np.concatenate([p.output for p in parts], 2),
            joined("cross"),
            joined("square"),
            joined("odds"),
            np.concatenate([p.is_recall for p in parts]),
        )

    def weights(self) -> Floats:
        """(n_layer, n_queries): make squared changes shares of the layer's output; text and recall weigh alike."""
        weights = np.zeros((self.shape.n_layer, len(self.is_recall)), np.float32)
        for part in (self.is_recall, ~self.is_recall):
            if part.any():
                size = self.output[:, :, part].sum(1).mean(1)
                weights[:, part] = 1.0 / np.maximum(size, 1e-30)[:, None] / part.sum()
        return weights

    def local_error(self) -> Floats:
        """(n_layer, n_head): relative squared change of the output where the head sees its window only."""
        error: Floats = (self.near * self.weights()[:, None]).sum(2)
        return error

    def follower_error(self, il: int, bias: npt.ArrayLike = 0.0) -> Floats:
        """(n_head, il * n_head): the same with each source; bias: one for all, or one per head and source."""
        share = sigmoid(self.odds[il] + np.asarray(bias, np.float32)[..., None])
        change = self.near[il][:, None] + share * (2.0 * self.cross[il] + share * self.square[il])
        error: Floats = np.maximum(change @ self.weights()[il], 0.0)
        return error


def output_table(
    trial: Trial, shape: Shape, n_sink: int, n_recent: int, rows: npt.NDArray[np.int64], is_recall: Bools
) -> OutputTable:
    """The table of one sample.

    Args:
        trial: its last run was dense.
        rows: (n_queries,) which of the trial's queries are taken, 0 the first of those it kept.
        is_recall: (n_queries,) as in OutputTable.
    """
    n = trial.n_tokens
    t = (n - trial.n_queries + rows)[:, None]
    j = np.arange(n)
    near = ((j < n_sink) | (j > t - n_recent)) & (j <= t)
    far = (j <= t) & ~near
    n_q = len(rows)
    earlier, earlier_lse = np.empty((0, n), np.float32), np.empty((0, n_q), np.float32)
    columns: list[tuple[Floats, ...]] = []
    for il in range(shape.n_layer):
        scores = _scores(trial, shape, il, rows)
        values = trial.values(il)
        near_weights, near_lse = _softmax(scores, near)
        far_weights, far_lse = _softmax(scores, far)
        per_head = np.repeat(values, shape.n_gqa, axis=0)  # (n_head, n, n_embd_head_v)
        near_out, own_out = near_weights @ per_head, far_weights @ per_head
        share = sigmoid(far_lse - near_lse)[..., None]
        dense = near_out + share * (own_out - near_out)
        gap = near_out - dense
        n_source = len(earlier_lse)
        cross = np.empty((shape.n_head, n_source, n_q), np.float32)
        square = np.empty_like(cross)
        for group in range(shape.n_head_kv):
            out = (earlier @ values[group]).reshape(n_source, n_q, values.shape[-1])
            for head in shape.heads(group):
                step = out - near_out[head]
                cross[head] = np.einsum("sqd,qd->sq", step, gap[head])
                square[head] = np.einsum("sqd,sqd->sq", step, step)
        odds = earlier_lse[None] - near_lse[:, None]
        columns.append(((gap**2).sum(2), (dense**2).sum(2), cross, square, odds))
        earlier = np.concatenate([earlier, far_weights.reshape(-1, n)])
        earlier_lse = np.concatenate([earlier_lse, far_lse])
    near2, output2, crosses, squares, odds_of = (list(column) for column in zip(*columns, strict=True))
    return OutputTable(shape, np.stack(near2), np.stack(output2), crosses, squares, odds_of, is_recall)


def sigmoid(x: Floats) -> Floats:
    """1 / (1 + e^-x)."""
    one = np.float32(1.0)
    result: Floats = one / (one + np.exp(-np.clip(x, np.float32(-60.0), np.float32(60.0))))
    return result


def _scores(trial: Trial, shape: Shape, il: int, rows: npt.NDArray[np.int64]) -> Floats:
    """(n_head, n_queries, n_tokens)."""
    queries = trial.queries(il)[rows].transpose(1, 0, 2)
    keys = np.repeat(trial.keys(il), shape.n_gqa, axis=0)
    scores: Floats = (queries @ keys.transpose(0, 2, 1)) * np.float32(trial.kq_scale)
    return scores


def _softmax(scores: Floats, mask: Bools) -> tuple[Floats, Floats]:
    """Weights over the masked columns, and the logarithm of their sum of exponentials."""
    masked = np.where(mask, scores, np.float32(-np.inf))
    most = masked.max(-1, keepdims=True)
    weights = np.exp(masked - most)
    total = weights.sum(-1, keepdims=True)
    return weights / total, (most + np.log(total))[..., 0]
