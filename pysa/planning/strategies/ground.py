"""What growing and exchanging stand on: measuring, predicting, what is allowed, what may be changed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from pysa.plan import Plan
from pysa.planning.strategies.cost import Cost
from pysa.planning.strategies.estimator import Change, Estimator
from pysa.planning.strategies.groups import FOLLOWER, LOCAL, OWNER, Kinds, Saving
from pysa.planning.strategies.limits import Limits
from pysa.planning.strategies.matching import Matcher
from pysa.planning.strategies.meter import Meter
from pysa.planning.strategies.steps import Goal, Step, changed

KL_PER_PPL = 1.5  # text KL, in units of the allowed log increase of the perplexity, at which a plan is full in any case
NATS_PER_ANSWER = 3.0  # KL that a lost answer costs, about
LEAST = 1e-9  # nats


@dataclass
class Ground:
    """A search's surroundings.

    Attributes:
        time_s: seconds of measuring, as meter.seconds counts them.
        say: is told what was decided, a line each.
        refused: changes that did not fit on top of the plan.
        path: the plans taken.
    """

    meter: Meter
    matcher: Matcher
    saving: Saving
    limits: Limits
    goal: Goal
    time_s: float
    say: Callable[[str], None]
    estimator: Estimator = field(init=False)
    refused: set[Change] = field(init=False, default_factory=set)
    path: list[Step] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.estimator = Estimator(self.matcher)
        self._recalled = self.dense_step().cost.recalled
        self._gains = self._measure_gains()

    # ---- what is allowed

    def is_late(self) -> bool:
        """Whether the time is up."""
        return self.meter.seconds >= self.time_s

    def is_reached(self, step: Step) -> bool:
        """Whether the saving asked for is."""
        return self.goal.save is not None and step.saving >= self.goal.save

    def fits(self, cost: Cost) -> bool:
        """Whether a plan keeps to the budget as far as the samples tell; half a standard error is kept clear."""
        budget = self.goal.budget
        allowed = math.log1p(budget.max_ppl_increase)
        return (
            cost.kl_text <= min(budget.max_kl, KL_PER_PPL * allowed)
            and cost.nll_increase + cost.nll_error / 2 <= allowed
            and cost.kl_recall <= NATS_PER_ANSWER * budget.max_recall_drop
            and cost.recalled >= self._recalled - budget.max_recall_drop - LEAST
        )

    def full_cost(self) -> float:
        """The cost at which a plan is full, about."""
        budget = self.goal.budget
        allowed = KL_PER_PPL * math.log1p(budget.max_ppl_increase)
        return max(min(budget.max_kl, allowed) + min(allowed, NATS_PER_ANSWER * budget.max_recall_drop), LEAST)

    # ---- changes

    def changes(self) -> list[Change]:
        """Every group and kind that may be taken, late layers first: those are measured soonest."""
        kinds = (FOLLOWER,) if self.goal.share_only else (LOCAL, FOLLOWER)
        groups = np.argwhere(self.limits.groups())[::-1].tolist()
        return [(il, g, kind) for il, g in groups for kind in kinds if il > 0 or kind == LOCAL]

    def candidates(self, kinds: Kinds) -> list[Change]:
        """Changes that save more and were not refused."""
        return [c for c in self.changes() if c not in self.refused and self.gain(kinds, c) > 0.0]

    def gain(self, kinds: Kinds, change: Change) -> float:
        """Share of the bytes that a change saves."""
        return self._gains[change[2]] - self._gains[int(kinds[change[0], change[1]])]

    def ratio(self, kinds: Kinds, change: Change, before: float) -> float:
        """Predicted bytes per cost of one more change; -1 where it cannot be."""
        after = changed(kinds, [change])
        if self.matcher.sources(after) is None:
            return -1.0
        return self.gain(kinds, change) / max(self.estimator.predict(after) - before, LEAST)

    def saves(self, kinds: Kinds) -> float:
        """What kinds save, without making a plan of them."""
        return sum(self._gains[kind] * int((kinds == kind).sum()) for kind in (FOLLOWER, LOCAL))

    def _measure_gains(self) -> dict[int, float]:
        gains = {OWNER: 0.0}
        owners, last = self.matcher.shape.owners(), self.matcher.shape.n_layer - 1
        for kind in (FOLLOWER, LOCAL):
            plan = self.matcher.plan(changed(owners, [(last, 0, kind)]))  # all layers are alike
            gains[kind] = self.saving(plan) if plan is not None else 0.0
        return gains

    # ---- measuring

    def dense_step(self) -> Step:
        """Where a search begins."""
        dense = self.meter.dense
        return Step(self.matcher.shape.owners(), dense, self.meter.measure(dense), self.saving(dense))

    def measured(self, kinds: Kinds, base: Step, n_samples: int | None = None) -> Step | None:
        """The plan of some kinds, measured; None where there is none."""
        plan = self.matcher.plan(kinds)
        if plan is None:
            return None
        return Step(kinds, plan, self.meter.measure(plan, base.plan, n_samples), self.saving(plan))

    def cheaper(self, kinds: Kinds, plan: Plan, step: Step) -> Step | None:
        """The plan, measured, if it costs less than the step's and fits; on a few samples first, then on all."""
        n = self.meter.n_featured
        if self.meter.measure(plan, step.plan, n).total >= self.meter.measure(step.plan, None, n).total:
            return None
        cost = self.meter.measure(plan, step.plan)
        if cost.total >= step.cost.total or not self.fits(cost):
            return None
        return Step(kinds, plan, cost, self.saving(plan))

    def take(self, step: Step, what: str) -> Step:
        """The search stands here now."""
        self.estimator.set_anchor(step.kinds, step.cost)
        self.path.append(step)
        self.say(f"{what}: {step}")
        return step
