"""The search: takes groups, cheapest per byte first, measuring as it goes; then exchanges what turned out dear.

Cost is measured (meter.py), the order comes from predictions (estimator.py), whom a head follows from matching.py. A
plan grows until it saves what is asked for or its cost reaches the budget.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from pysa.plan import Plan
from pysa.planning.budget import Budget
from pysa.planning.strategies.cost import Cost
from pysa.planning.strategies.effects import measure_effects
from pysa.planning.strategies.estimator import Change, Estimator
from pysa.planning.strategies.groups import FOLLOWER, KIND_NAMES, LOCAL, OWNER, Kinds, Saving
from pysa.planning.strategies.limits import Limits
from pysa.planning.strategies.matching import Matcher
from pysa.planning.strategies.meter import Meter

N_STEPS = 12  # in which a budget or a target is used up at least
MAX_CHUNK = 16  # groups taken between two measurements
N_PROBES = 4  # candidates measured for one step
N_REFUSED = 6  # dear candidates in a row after which a plan is taken as full
N_EXCHANGES = 6  # exchanges tried in vain before it ends
N_PAIRED = 24  # changes of each kind that exchanges are made of
KL_PER_PPL = 1.5  # text KL, in units of the allowed log increase of the perplexity, at which a plan is full in any case
NATS_PER_ANSWER = 3.0  # KL that a lost answer costs, about
LEAST = 1e-9  # nats


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


@dataclass
class Found:
    """What a search came to.

    Attributes:
        step: the best plan.
        path: the plans taken on the way, each saving more than the one before.
        reason: why it stopped, as part of a sentence.
    """

    step: Step
    path: list[Step]
    reason: str


@dataclass
class Search:
    """One search; `run` does it.

    Attributes:
        time_s: seconds of measuring, as meter.seconds counts them.
        say: is told what was decided, a line each.
    """

    meter: Meter
    matcher: Matcher
    saving: Saving
    limits: Limits
    goal: Goal
    time_s: float = 3600.0
    say: Callable[[str], None] = lambda line: None
    _estimator: Estimator = field(init=False)
    _dense: Cost = field(init=False)
    _gains: dict[int, float] = field(init=False)
    _path: list[Step] = field(init=False, default_factory=list)
    _refused: set[Change] = field(init=False, default_factory=set)
    _refreshed: bytes = field(init=False, default=b"")

    def run(self) -> Found:
        """Searches."""
        self._estimator = Estimator(self.matcher)
        step = self._dense_step()
        self._dense = step.cost
        self._gains = self._measure_gains(step)
        measure_effects(
            self.meter, self.matcher, self._estimator, self._changes(), self._budget(), self.time_s, self.say
        )
        step = self._dense_step()
        self._estimator.set_anchor(step.kinds, step.cost)
        step = self._grow(step)
        while not self._is_late():
            better = self._exchange(step)
            if better is None:
                break
            step = self._grow(better)
        reason = self._reason(step)
        step = self._with_biases(step)
        return Found(step, [s for s in self._path if s.saving < step.saving] + [step], reason)

    # ---- what is allowed

    def _is_late(self) -> bool:
        return self.meter.seconds >= self.time_s

    def _is_reached(self, step: Step) -> bool:
        return self.goal.save is not None and step.saving >= self.goal.save

    def _fits(self, cost: Cost) -> bool:
        """Whether a plan is within the limits, as far as the samples tell; half a standard error is kept clear."""
        allowed = math.log1p(self.goal.budget.max_ppl_increase)
        return (
            cost.kl_text <= min(self.goal.budget.max_kl, KL_PER_PPL * allowed)
            and cost.nll_increase + cost.nll_error / 2 <= allowed
            and cost.kl_recall <= NATS_PER_ANSWER * self.goal.budget.max_recall_drop
            and cost.recalled >= self._dense.recalled - self.goal.budget.max_recall_drop - LEAST
        )

    def _budget(self) -> float:
        """The cost at which a plan is full, about."""
        allowed = KL_PER_PPL * math.log1p(self.goal.budget.max_ppl_increase)
        return max(
            min(self.goal.budget.max_kl, allowed) + min(allowed, NATS_PER_ANSWER * self.goal.budget.max_recall_drop),
            LEAST,
        )

    def _reason(self, step: Step) -> str:
        if self._is_reached(step):
            return "the saving asked for is reached"
        if self._is_late():
            return "the time is up"
        return "every further group costs more than allowed"

    # ---- changes

    def _changes(self) -> list[Change]:
        """Every group and kind that may be taken, late layers first: those are measured soonest."""
        kinds = (FOLLOWER,) if self.goal.share_only else (LOCAL, FOLLOWER)
        groups = np.argwhere(self.limits.groups())[::-1].tolist()
        return [(il, g, kind) for il, g in groups for kind in kinds if il > 0 or kind == LOCAL]

    def _measure_gains(self, dense: Step) -> dict[int, float]:
        """Bytes that one group saves, as a share; all layers are alike."""
        gains = {OWNER: 0.0}
        last = self.limits.shape.n_layer - 1
        for kind in (FOLLOWER, LOCAL):
            plan = self.matcher.plan(_changed(dense.kinds, [(last, 0, kind)]))
            gains[kind] = self.saving(plan) - dense.saving if plan is not None else 0.0
        return gains

    def _gain(self, kinds: Kinds, change: Change) -> float:
        return self._gains[change[2]] - self._gains[int(kinds[change[0], change[1]])]

    def _candidates(self, kinds: Kinds) -> list[Change]:
        """Changes that save more."""
        return [c for c in self._changes() if c not in self._refused and self._gain(kinds, c) > 0.0]

    def _ratio(self, kinds: Kinds, change: Change, before: float) -> float:
        """Predicted bytes per cost of one more change."""
        after = _changed(kinds, [change])
        if self.matcher.sources(after) is None:
            return -1.0
        return self._gain(kinds, change) / max(self._estimator.predict(after) - before, LEAST)

    # ---- measuring

    def _dense_step(self) -> Step:
        kinds = self.matcher.shape.owners()
        plan = self.meter.dense
        return Step(kinds, plan, self.meter.measure(plan), self.saving(plan))

    def _measured(self, kinds: Kinds, base: Step, n_samples: int | None = None) -> Step | None:
        plan = self.matcher.plan(kinds)
        if plan is None:
            return None
        return Step(kinds, plan, self.meter.measure(plan, base.plan, n_samples), self.saving(plan))

    def _take(self, step: Step, what: str) -> Step:
        self._estimator.set_anchor(step.kinds, step.cost)
        self._path.append(step)
        self.say(f"{what}: {_text(step)}")
        return step

    # ---- growing

    def _grow(self, step: Step) -> Step:
        """Takes changes until the goal is reached, nothing fits, or the time is up."""
        n_refused = 0
        while not self._is_reached(step) and not self._is_late() and n_refused < N_REFUSED:
            chunk = self._chunk(step)
            taken = None
            while len(chunk) > 1 and taken is None and not self._is_late():
                grown = self._measured(_changed(step.kinds, chunk), step)
                if (
                    grown is not None
                    and self._fits(grown.cost)
                    and grown.cost.total <= step.cost.total + 2 * self._stride(step)
                ):
                    taken = self._take(grown, f"take {len(chunk)} groups")
                else:
                    chunk = chunk[: len(chunk) // 2]
            if taken is None and not self._is_late():
                taken, n_tried = self._one(step)
                if n_tried == 0:
                    break
                n_refused = 0 if taken else n_refused + n_tried
            if taken is not None:
                step, n_refused = taken, 0
        return step

    def _stride(self, step: Step) -> float:
        """How much cost may be added unmeasured."""
        return max(self._budget() / N_STEPS, 0.1 * step.cost.total)

    def _chunk(self, step: Step) -> list[Change]:
        """The cheapest changes by prediction that add up to one stride."""
        kinds, before = step.kinds, step.cost.total
        chunk: list[Change] = []
        limit = before + self._stride(step)
        ranked = sorted(((self._ratio(kinds, c, before), c) for c in self._candidates(kinds)), reverse=True)
        wanted = self.goal.save - step.saving if self.goal.save is not None else math.inf
        # Lazily: only the first few are worth predicting again on top of what the chunk has.
        while ranked and len(chunk) < MAX_CHUNK and wanted > 0.0:
            head = [(self._ratio(kinds, c, before), c) for _, c in ranked[:N_PROBES] if self._gain(kinds, c) > 0.0]
            ranked = ranked[N_PROBES:]
            if not head:
                continue
            ranked = sorted([*head, *ranked], reverse=True)
            ratio, change = ranked.pop(0)
            after = _changed(kinds, [change])
            if ratio <= 0.0 or self._estimator.predict(after) > limit:
                break
            wanted -= self._gain(kinds, change)
            kinds, before = after, self._estimator.predict(after)
            chunk.append(change)
        return chunk

    def _one(self, step: Step) -> tuple[Step | None, int]:
        """Measures the likeliest changes on top of the plan, takes the best that fits; also how many were measured."""
        before = step.cost.total
        ranked = sorted(((self._ratio(step.kinds, c, before), c) for c in self._candidates(step.kinds)), reverse=True)
        best: tuple[float, Step] | None = None
        n_tried = 0
        for predicted, change in ranked:
            if predicted <= 0.0 or n_tried == N_PROBES or self._is_late() or (best and best[0] >= predicted):
                break
            probed = self._measured(_changed(step.kinds, [change]), step)
            if probed is None:
                continue
            n_tried += 1
            self._estimator.learn_here(change, probed.cost, probed.kinds)
            if not self._fits(probed.cost):
                self._refused.add(change)
                continue
            ratio = self._gain(step.kinds, change) / max(probed.cost.total - before, LEAST)
            if best is None or ratio > best[0]:
                best = ratio, probed
        return (self._take(best[1], "take a group") if best else None), n_tried

    # ---- exchanging

    def _exchange(self, step: Step) -> Step | None:
        """One group given back for another, where that costs less and saves no less."""
        self._refresh(step)
        pairs = self._pairs(step)
        for n_tried, (_, kinds) in enumerate(pairs[:N_EXCHANGES]):
            if self._is_late():
                return None
            other = self._measured(kinds, step)
            if other is not None and self._fits(other.cost) and other.cost.total < 0.99 * step.cost.total:
                self._refused.clear()
                return self._take(other, f"exchange after {n_tried + 1}")
        return None

    def _pairs(self, step: Step) -> list[tuple[float, Kinds]]:
        """Exchanges by predicted cost."""
        undone = self._undone(step.kinds)
        need = step.saving if self.goal.save is None else min(step.saving, self.goal.save)
        undone = sorted(undone, key=lambda c: self._estimator.predict(_changed(step.kinds, [c])))[:N_PAIRED]
        added = [c for c in self._changes() if self._gain(step.kinds, c) > 0.0]
        added = sorted(added, key=lambda c: -self._ratio(step.kinds, c, step.cost.total))[:N_PAIRED]
        found: dict[bytes, tuple[float, Kinds]] = {}
        for back in undone:
            for more in [None, *added]:
                if more is not None and more[:2] == back[:2]:
                    continue
                kinds = _changed(step.kinds, [back] if more is None else [back, more])
                if self._saves(kinds) < need - LEAST or self.matcher.sources(kinds) is None:
                    continue
                predicted = self._estimator.predict(kinds)
                if predicted < 0.98 * step.cost.total:
                    found[kinds.tobytes()] = predicted, kinds
        return sorted(found.values(), key=lambda pair: pair[0])

    def _saves(self, kinds: Kinds) -> float:
        return sum(self._gains[kind] * int((kinds == kind).sum()) for kind in (FOLLOWER, LOCAL))

    def _undone(self, kinds: Kinds) -> list[Change]:
        """Changes that save less: back to an owner, or from local to follower."""
        taken = [(int(il), int(g)) for il, g in np.argwhere(kinds != OWNER)]
        back = [(il, g, OWNER) for il, g in taken]
        return back + [(il, g, FOLLOWER) for il, g in taken if il > 0 and kinds[il, g] == LOCAL]

    def _refresh(self, step: Step) -> None:
        """What each group of the plan costs within it, if there is time: exchanges begin with the dearest."""
        taken = [c for c in self._undone(step.kinds) if c[2] == OWNER]
        n_layer, n_samples = self.limits.shape.n_layer, self.meter.n_featured
        seconds = sum(self.meter.dense_seconds(i) for i in range(n_samples))
        need_s = sum(seconds * (n_layer - il) / n_layer for il, _, _ in taken)
        if step.kinds.tobytes() == self._refreshed or need_s > 0.25 * (self.time_s - self.meter.seconds):
            return
        self._refreshed = step.kinds.tobytes()
        for change in taken:
            if self._is_late():
                return
            without = self._measured(_changed(step.kinds, [change]), step, n_samples)
            if without is not None:
                self._estimator.learn_undone(change[:2], without.cost, step.kinds)

    # ---- mass bias

    def _with_biases(self, step: Step) -> Step:
        """Mass biases for the followers of all layers, or of those where the measured cost falls."""
        follows = step.kinds == FOLLOWER
        biased = np.zeros_like(follows)
        layers = [il for il in range(self.limits.shape.n_layer - 1, -1, -1) if follows[il].any()]
        for chosen in [layers, *([il] for il in layers)]:
            if self._is_late() or not chosen or (biased.any() and len(chosen) == len(layers)):
                break
            tried: npt.NDArray[np.bool_] = biased.copy()
            tried[chosen] = follows[chosen]
            plan = self.matcher.plan(step.kinds, tried)
            if plan is None or plan.mass_bias is None or (tried == biased).all():
                continue
            cost = self.meter.measure(plan, step.plan)
            if cost.total < step.cost.total and self._fits(cost):
                step, biased = replace(step, plan=plan, cost=cost), tried
                self.say(f"mass bias in {len(chosen)} layers: {_text(step)}")
                if len(chosen) == len(layers):
                    break
        return step


def _changed(kinds: Kinds, changes: list[Change]) -> Kinds:
    after: Kinds = kinds.copy()
    for il, group, kind in changes:
        after[il, group] = kind
    return after


def _text(step: Step) -> str:
    counts = ", ".join(f"{int((step.kinds == k).sum())} {KIND_NAMES[k]}" for k in (OWNER, FOLLOWER, LOCAL))
    cost = step.cost
    return (
        f"saves {100 * step.saving:.1f} %, KL {cost.kl_text:.5f} text {cost.kl_recall:.5f} recall, perplexity "
        f"{100 * cost.ppl_increase:+.2f} %, recalls {100 * cost.recalled:.1f} % ({counts})"
    )
