"""Measures what single groups cost; where time does not allow that, whole layers, then halves of the dear ones."""

from __future__ import annotations

from itertools import groupby

from pysa.planning.strategies.estimator import Change
from pysa.planning.strategies.ground import Ground
from pysa.planning.strategies.matching import Matcher
from pysa.planning.strategies.steps import changed

SHARE_OF_TIME = 0.45  # that goes into single groups
MAX_SAMPLES = 3  # for a single group; whole plans are measured on all
DEAR = 0.04  # of a full plan's cost: what a unit costs at least to be looked at more closely

Unit = list[Change]  # changes of one layer and one kind that are measured together


def measure_effects(ground: Ground) -> None:
    """Fills the estimator's effects."""
    meter, changes = ground.meter, ground.changes()
    ends_s = meter.seconds + SHARE_OF_TIME * (ground.time_s - meter.seconds)
    n_samples = _n_samples(ground, ends_s - meter.seconds)
    meter.n_featured = max(n_samples, 1)
    if n_samples:
        ground.say(f"measuring {len(changes)} changes one by one on {n_samples} documents")
        for change in changes:
            if meter.seconds < ends_s:
                _measure(ground, [change], n_samples)
    else:
        _measure_layers(ground, changes, ends_s)


def _measure_layers(ground: Ground, changes: list[Change], ends_s: float) -> None:
    """Layers as a whole, late ones first; then halves of the dear ones, the largest first."""
    ranked = sorted(changes, key=lambda c: (-c[0], c[2]))
    units = [list(unit) for _, unit in groupby(ranked, key=lambda c: (c[0], c[2]))]
    ground.say(f"measuring {len(units)} changes of whole layers on one document, then halves of the dear ones")
    costs: dict[tuple[Change, ...], float] = {}
    for unit in units:
        if ground.meter.seconds < ends_s:
            costs[tuple(unit)] = _measure(ground, unit, 1)
    while ground.meter.seconds < ends_s:
        dear = [unit for unit, cost in costs.items() if len(unit) > 1 and cost > DEAR * ground.full_cost()]
        if not dear:
            return
        dearest = max(dear, key=lambda u: (len(u), u[0][0]))
        del costs[dearest]
        for half in _halves(ground.matcher, list(dearest)):
            costs[tuple(half)] = _measure(ground, half, 1)


def _n_samples(ground: Ground, seconds: float) -> int:
    """On how many samples all single changes can be measured in the time; 0: on none."""
    n_layer = ground.limits.shape.n_layer
    runs = sum((n_layer - il) / n_layer for il, _, _ in ground.changes())
    n, needed = 0, 0.0
    while n < min(len(ground.meter.samples), MAX_SAMPLES):
        needed += runs * ground.meter.dense_seconds(n)
        if needed > seconds:
            break
        n += 1
    return n


def _measure(ground: Ground, unit: Unit, n_samples: int) -> float:
    kinds = changed(ground.matcher.shape.owners(), unit)
    plan = ground.matcher.plan(kinds)
    if plan is None:
        return 0.0
    cost = ground.meter.measure(plan, ground.meter.dense, n_samples)
    ground.estimator.learn(unit, cost, kinds)
    return cost.total


def _halves(matcher: Matcher, unit: Unit) -> tuple[Unit, Unit]:
    """The groups whose outputs change least, and the others."""
    errors = matcher.group_errors(changed(matcher.shape.owners(), unit))
    ranked = sorted(unit, key=lambda c: float(errors[c[0], c[1]]))
    return ranked[: len(ranked) // 2], ranked[len(ranked) // 2 :]
