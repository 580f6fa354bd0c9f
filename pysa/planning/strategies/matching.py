"""From what the groups do to a plan: every follower head gets the source that changes its output least.

Which owners there are is the search's choice; whom a head follows among them, and with which mass bias, is decided
here, so that a plan is a function of its groups' kinds.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pysa.plan import Plan
from pysa.planning.strategies.bias import best_biases
from pysa.planning.strategies.groups import FOLLOWER, LOCAL, OWNER, Kinds, Shape
from pysa.planning.strategies.proxy import OutputTable

Errors = npt.NDArray[np.float32]


class Matcher:
    """Makes plans from kinds.

    Args:
        errors: per layer il (n_head, il * n_head): what following a head of an earlier layer changes of a head.
        local: (n_layer, n_head): what seeing the window alone changes of it.
        biases: per layer (n_head, il * n_head): the mass bias that goes with a source.
    """

    def __init__(
        self,
        shape: Shape,
        n_sink: int,
        n_recent: int,
        errors: list[Errors],
        local: Errors,
        biases: list[Errors],
    ) -> None:
        self.shape, self.n_sink, self.n_recent = shape, n_sink, n_recent
        self.errors, self.local, self.biases = errors, local, biases

    @classmethod
    def of(cls, table: OutputTable, n_sink: int, n_recent: int) -> Matcher:
        """By the change of the heads' outputs, with the best bias for each source."""
        fitted = [best_biases(table, il) for il in range(table.shape.n_layer)]
        errors, biases = [error for _, error in fitted], [bias for bias, _ in fitted]
        return cls(table.shape, n_sink, n_recent, errors, table.local_error(), biases)

    def sources(self, kinds: Kinds) -> npt.NDArray[np.int32] | None:
        """(n_layer, n_head): each follower head's source as layer * n_head + head, -1 for the others.

        None where a follower has no owner before it.
        """
        shape = self.shape
        owners = np.repeat(kinds == OWNER, shape.n_gqa, axis=1)
        sources = np.full((shape.n_layer, shape.n_head), -1, np.int32)
        for il in np.flatnonzero((kinds == FOLLOWER).any(1)).tolist():
            choice = np.flatnonzero(owners[:il].ravel())
            if not choice.size:
                return None
            best = choice[self.errors[il][:, choice].argmin(1)]
            heads = np.repeat(kinds[il] == FOLLOWER, shape.n_gqa)
            sources[il, heads] = best[heads]
        return sources

    def plan(self, kinds: Kinds, biased: npt.NDArray[np.bool_] | None = None) -> Plan | None:
        """The plan; None where a follower has no owner before it.

        Args:
            kinds: (n_layer, n_head_kv).
            biased: (n_layer, n_head_kv), whose followers get their mass bias; None: all of them.
        """
        sources = self.sources(kinds)
        if sources is None:
            return None
        shape = self.shape
        score_layer, score_head = np.indices((shape.n_layer, shape.n_head), dtype=np.int32)
        per_head = np.repeat(kinds, shape.n_gqa, axis=1)
        follows, local = per_head == FOLLOWER, per_head == LOCAL
        score_layer = np.where(follows, sources // shape.n_head, score_layer)
        score_head = np.where(follows, sources % shape.n_head, score_head)
        score_layer[local] = score_head[local] = -1
        plan = Plan("search", "scores", self.n_sink, self.n_recent, score_layer, score_head)
        if biased is not None:
            follows &= np.repeat(biased, shape.n_gqa, axis=1)
        plan.mass_bias = self._mass_bias(sources, follows)
        return plan

    def _mass_bias(
        self, sources: npt.NDArray[np.int32], where: npt.NDArray[np.bool_]
    ) -> npt.NDArray[np.float32] | None:
        bias = np.zeros(where.shape, np.float32)
        for il, head in np.argwhere(where).tolist():
            bias[il, head] = self.biases[il][head, sources[il, head]]
        return bias if bias.any() else None

    def group_errors(self, kinds: Kinds) -> npt.NDArray[np.float64]:
        """(n_layer, n_head_kv): relative squared change of each group's outputs, 0 for owners."""
        shape = self.shape
        sources = self.sources(kinds)
        errors = np.repeat(kinds == LOCAL, shape.n_gqa, axis=1) * self.local.astype(np.float64)
        if sources is not None:
            for il, head in np.argwhere(sources >= 0).tolist():
                errors[il, head] = self.errors[il][head, sources[il, head]]
        result: npt.NDArray[np.float64] = errors.reshape(shape.n_layer, shape.n_head_kv, -1).sum(2)
        return result
