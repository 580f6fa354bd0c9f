"""Exchanges: a group that turned out dear is given back, for another one that costs less and saves as much."""

from __future__ import annotations

import numpy as np

from pysa.planning.strategies.estimator import Change
from pysa.planning.strategies.ground import LEAST, Ground
from pysa.planning.strategies.groups import FOLLOWER, LOCAL, OWNER, Kinds
from pysa.planning.strategies.steps import Step, changed

N_EXCHANGES = 6  # tried in vain before it ends
N_PAIRED = 24  # changes of each kind that exchanges are made of
GAIN = 0.02  # of the cost that an exchange must promise
REFRESH_SHARE = 0.25  # of the time left that measuring every group of the plan may take


def exchange(ground: Ground, step: Step, is_refreshed: bool) -> Step | None:
    """The best exchange that measuring bears out; None if there is none.

    Args:
        is_refreshed: whether the groups of this plan were measured within it before.
    """
    if not is_refreshed:
        _refresh(ground, step)
    for n_tried, kinds in enumerate(_pairs(ground, step)[:N_EXCHANGES]):
        plan = ground.matcher.plan(kinds)
        other = None if plan is None or ground.is_late() else ground.cheaper(kinds, plan, step)
        if other is not None:
            ground.refused.clear()
            return ground.take(other, f"exchange (the {n_tried + 1}. tried)")
    return None


def _pairs(ground: Ground, step: Step) -> list[Kinds]:
    """What exchanges lead to, by predicted cost; where more is saved than need be, also what is given back alone."""
    predict, kinds = ground.estimator.predict, step.kinds
    need = step.saving if ground.goal.save is None else min(step.saving, ground.goal.save)
    back = sorted(_given_back(kinds), key=lambda c: predict(changed(kinds, [c])))[:N_PAIRED]
    more = [c for c in ground.changes() if ground.gain(kinds, c) > 0.0]
    more = sorted(more, key=lambda c: -ground.ratio(kinds, c, step.cost.total))[:N_PAIRED]
    found: dict[bytes, tuple[float, Kinds]] = {}
    for one in back:
        for other in [(), *((c,) for c in more if c[:2] != one[:2])]:
            after = changed(kinds, [one, *other])
            if ground.saves(after) < need - LEAST or ground.matcher.sources(after) is None:
                continue
            predicted = predict(after)
            if predicted < (1.0 - GAIN) * step.cost.total:
                found[after.tobytes()] = predicted, after
    return [after for _, after in sorted(found.values(), key=lambda pair: pair[0])]


def _given_back(kinds: Kinds) -> list[Change]:
    """Changes that save less: back to an owner, or from local to follower."""
    taken = [(int(il), int(g)) for il, g in np.argwhere(kinds != OWNER)]
    return [(il, g, OWNER) for il, g in taken] + [
        (il, g, FOLLOWER) for il, g in taken if il > 0 and kinds[il, g] == LOCAL
    ]


def _refresh(ground: Ground, step: Step) -> None:
    """Measures what each group of the plan costs within it, if there is time: exchanges begin with the dearest."""
    taken = [c for c in _given_back(step.kinds) if c[2] == OWNER]
    n_layer, n_samples = ground.limits.shape.n_layer, ground.meter.n_featured
    dense_s = sum(ground.meter.dense_seconds(i) for i in range(n_samples))
    need_s = sum(dense_s * (n_layer - il) / n_layer for il, _, _ in taken)
    if need_s > REFRESH_SHARE * (ground.time_s - ground.meter.seconds):
        return
    for change in taken:
        if ground.is_late():
            return
        without = ground.measured(changed(step.kinds, [change]), step, n_samples)
        if without is not None:
            ground.estimator.learn_undone(change[:2], without.cost, step.kinds)
