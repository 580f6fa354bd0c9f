"""Grows a plan: takes the changes that save most bytes for their cost, by prediction, and measures what came of it."""

from __future__ import annotations

import math

from pysa.planning.strategies.estimator import Change
from pysa.planning.strategies.ground import LEAST, Ground
from pysa.planning.strategies.steps import Step, changed

N_STEPS = 12  # in which a budget, or all groups, are used up at least
N_PROBES = 4  # candidates measured for one step
N_REFUSED = 6  # dear candidates in a row after which a plan is taken as full

Ranked = list[tuple[float, Change]]


def grow(ground: Ground, step: Step) -> Step:
    """Takes changes until the goal is reached, nothing fits, or the time is up."""
    n_refused = 0
    while not ground.is_reached(step) and not ground.is_late() and n_refused < N_REFUSED:
        taken = _several(ground, step)
        if taken is None and not ground.is_late():
            taken, n_tried = _one(ground, step)
            if n_tried == 0:
                break
            n_refused += n_tried
        if taken is not None:
            step, n_refused = taken, 0
    return step


def _several(ground: Ground, step: Step) -> Step | None:
    """Takes as many changes at once as prediction lets, or half of them, if measuring bears it out."""
    chunk = _chunk(ground, step)
    while len(chunk) > 1 and not ground.is_late():
        grown = ground.measured(changed(step.kinds, chunk), step)
        limit = step.cost.total + 2 * _stride(ground, step)
        if grown is not None and ground.fits(grown.cost) and grown.cost.total <= limit:
            return ground.take(grown, f"take {len(chunk)} groups")
        chunk = chunk[: len(chunk) // 2]
    return None


def _stride(ground: Ground, step: Step) -> float:
    """How much cost may be added unmeasured."""
    return max(ground.full_cost() / N_STEPS, 0.1 * step.cost.total)


def _chunk(ground: Ground, step: Step) -> list[Change]:
    """The cheapest changes by prediction that add up to one stride."""
    kinds, before = step.kinds, step.cost.total
    limit = before + _stride(ground, step)
    wanted = math.inf if ground.goal.save is None else ground.goal.save - step.saving
    n_most = max(2, math.ceil(kinds.size / N_STEPS))
    ranked = _ranked(ground, step)
    chunk: list[Change] = []
    # Lazily: only the first few are worth predicting again on top of what the chunk has.
    while ranked and len(chunk) < n_most and wanted > 0.0:
        first, ranked = ranked[:N_PROBES], ranked[N_PROBES:]
        again = [(ground.ratio(kinds, c, before), c) for _, c in first if ground.gain(kinds, c) > 0.0]
        if not again:
            continue
        ranked = sorted([*again, *ranked], reverse=True)
        ratio, change = ranked.pop(0)
        after = changed(kinds, [change])
        if ratio <= 0.0 or ground.estimator.predict(after) > limit:
            break
        wanted -= ground.gain(kinds, change)
        kinds, before = after, ground.estimator.predict(after)
        chunk.append(change)
    return chunk


def _one(ground: Ground, step: Step) -> tuple[Step | None, int]:
    """Measures the likeliest changes on top of the plan, takes the best that fits; also how many were measured."""
    best: tuple[float, Step] | None = None
    n_tried = 0
    for predicted, change in _ranked(ground, step):
        if predicted <= 0.0 or n_tried == N_PROBES or ground.is_late() or (best and best[0] >= predicted):
            break
        probed = ground.measured(changed(step.kinds, [change]), step)
        if probed is None:
            continue
        n_tried += 1
        ground.estimator.learn_here(change, probed.cost, probed.kinds)
        if not ground.fits(probed.cost):
            ground.refused.add(change)
            continue
        ratio = ground.gain(step.kinds, change) / max(probed.cost.total - step.cost.total, LEAST)
        if best is None or ratio > best[0]:
            best = ratio, probed
    return (ground.take(best[1], "take a group") if best else None), n_tried


def _ranked(ground: Ground, step: Step) -> Ranked:
    """Candidates by predicted bytes per cost, the best first."""
    before = step.cost.total
    return sorted(((ground.ratio(step.kinds, c, before), c) for c in ground.candidates(step.kinds)), reverse=True)
