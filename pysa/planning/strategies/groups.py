"""KV groups, the unit in which a plan saves bytes: all query heads of one KV head of one layer.

A group owns (keeps K and V), follows (keeps V) or is local (keeps neither); in between nothing is saved.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pysa.plan import Plan

if TYPE_CHECKING:
    from pysa.model import Model

OWNER, FOLLOWER, LOCAL = 0, 1, 2
KIND_NAMES = ("owner", "follower", "local")

Kinds = npt.NDArray[np.int8]  # (n_layer, n_head_kv): what each group does
Saving = Callable[[Plan], float]  # the share of the dense cache's bytes that a plan does not need


@dataclass(frozen=True)
class Shape:
    """What of a model's shape plans depend on."""

    n_layer: int
    n_head: int
    n_head_kv: int

    @classmethod
    def of(cls, model: Model) -> Shape:
        """A model's."""
        return cls(model.n_layer, model.n_head, model.n_head_kv)

    @property
    def n_gqa(self) -> int:
        """Query heads of a group."""
        return self.n_head // self.n_head_kv

    def heads(self, group: int) -> range:
        """The query heads of a group."""
        return range(group * self.n_gqa, (group + 1) * self.n_gqa)

    def owners(self) -> Kinds:
        """Every group an owner."""
        return np.zeros((self.n_layer, self.n_head_kv), np.int8)


def saving_at(model: Model, n: int) -> Saving:
    """How much plans save at `n` tokens, by Model.cache_bytes."""

    def saving(plan: Plan) -> float:
        report = model.cache_bytes(n, plan)
        return 1.0 - report["total"] / report["dense"]

    return saving


def group_kinds(plan: Plan, n_head_kv: int) -> Kinds:
    """What each group of a plan comes to: an owner if one of its heads is, local if all are."""
    kinds = plan.kinds().reshape(plan.n_layer, n_head_kv, -1)
    follows = np.where((kinds == "local").all(2), LOCAL, FOLLOWER)
    return np.where((kinds == "owner").any(2), OWNER, follows).astype(np.int8)
