"""Measures what single groups cost; where time does not allow that, whole layers, then halves of the dear ones."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby

from pysa.planning.strategies.estimator import Change, Estimator
from pysa.planning.strategies.groups import Kinds
from pysa.planning.strategies.matching import Matcher
from pysa.planning.strategies.meter import Meter

SHARE_OF_TIME = 0.45  # that goes into single groups
MAX_SAMPLES = 3  # for a single group; whole plans are measured on all
DEAR = 0.04  # of the budget: what a unit costs at least to be looked at more closely

Unit = list[Change]  # changes of one layer and one kind that are measured together


def measure_effects(
    meter: Meter,
    matcher: Matcher,
    estimator: Estimator,
    changes: list[Change],
    budget: float,
    time_s: float,
    say: Callable[[str], None],
) -> None:
    """Fills estimator.effects.

    Args:
        changes: in the order in which they are measured.
        budget: cost of a plan that is full.
        time_s: seconds for the whole search.
    """
    ends_s = meter.seconds + SHARE_OF_TIME * (time_s - meter.seconds)
    n_samples = _n_samples(meter, matcher, changes, ends_s - meter.seconds)
    meter.n_featured = max(n_samples, 1)
    if n_samples:
        say(f"measuring {len(changes)} groups one by one on {n_samples} samples")
        for change in changes:
            if meter.seconds < ends_s:
                _measure(meter, matcher, estimator, [change], n_samples)
        return
    units = [
        list(unit) for _, unit in groupby(sorted(changes, key=lambda c: (-c[0], c[2])), key=lambda c: (c[0], c[2]))
    ]
    say(f"measuring {len(units)} layers as a whole on one sample, then parts of the dear ones")
    costs: dict[tuple[Change, ...], float] = {}
    for unit in units:
        if meter.seconds < ends_s:
            costs[tuple(unit)] = _measure(meter, matcher, estimator, unit, 1)
    while meter.seconds < ends_s:
        dear = [unit for unit, cost in costs.items() if len(unit) > 1 and cost > DEAR * budget]
        if not dear:
            return
        dearest = max(dear, key=lambda u: (len(u), u[0][0]))
        del costs[dearest]
        for half in _halves(matcher, list(dearest)):
            costs[tuple(half)] = _measure(meter, matcher, estimator, half, 1)


def _n_samples(meter: Meter, matcher: Matcher, changes: list[Change], seconds: float) -> int:
    """On how many samples all single changes can be measured in the time; 0: on none."""
    n_layer = matcher.shape.n_layer
    runs = sum((n_layer - il) / n_layer for il, _, _ in changes)
    n, needed = 0, 0.0
    while n < min(len(meter.samples), MAX_SAMPLES):
        needed += runs * meter.dense_seconds(n)
        if needed > seconds:
            break
        n += 1
    return n


def _measure(meter: Meter, matcher: Matcher, estimator: Estimator, unit: Unit, n_samples: int) -> float:
    kinds = _kinds(matcher, unit)
    plan = matcher.plan(kinds)
    if plan is None:
        return 0.0
    cost = meter.measure(plan, meter.dense, n_samples)
    estimator.learn(unit, cost, kinds)
    return cost.total


def _kinds(matcher: Matcher, unit: Unit) -> Kinds:
    kinds = matcher.shape.owners()
    for il, group, kind in unit:
        kinds[il, group] = kind
    return kinds


def _halves(matcher: Matcher, unit: Unit) -> tuple[Unit, Unit]:
    """The groups whose outputs change least, and the others."""
    errors = matcher.group_errors(_kinds(matcher, unit))
    ranked = sorted(unit, key=lambda c: float(errors[c[0], c[1]]))
    return ranked[: len(ranked) // 2], ranked[len(ranked) // 2 :]
