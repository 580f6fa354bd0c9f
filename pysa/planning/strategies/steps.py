"""What a search goes by: its goal, and plans on the way to it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from pysa.plan import Plan
from pysa.planning.budget import Budget
from pysa.planning.strategies.cost import Cost
from pysa.planning.strategies.estimator import Change
from pysa.planning.strategies.groups import FOLLOWER, KIND_NAMES, LOCAL, OWNER, Kinds


@dataclass(frozen=True)
class Goal:
    """What a plan is to reach; a search stops at the saving or at the budget, whichever comes first.

    Attributes:
        save: share of the cache's bytes; None: as much as the budget allows.
        budget: what the plan may cost.
        share_only: no local heads.
    """

    save: float | None = None
    budget: Budget = field(default_factory=Budget)
    share_only: bool = False


@dataclass(frozen=True)
class Step:
    """A plan on the way, measured."""

    kinds: Kinds
    plan: Plan
    cost: Cost
    saving: float

    def __str__(self) -> str:
        counts = ", ".join(f"{int((self.kinds == k).sum())} {KIND_NAMES[k]}" for k in (OWNER, FOLLOWER, LOCAL))
        cost = self.cost
        return (
            f"saves {100 * self.saving:.1f} %, KL {cost.kl_text:.5f} text {cost.kl_recall:.5f} recall, perplexity "
            f"{100 * cost.ppl_increase:+.2f} %, recalls {100 * cost.recalled:.1f} % ({counts})"
        )


def changed(kinds: Kinds, changes: Iterable[Change]) -> Kinds:
    """The kinds with some changes."""
    after: Kinds = kinds.copy()
    for il, group, kind in changes:
        after[il, group] = kind
    return after
