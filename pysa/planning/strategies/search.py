"""The search: takes groups, cheapest per byte first, measuring as it goes; then exchanges what turned out dear.

Cost is measured (meter.py), the order comes from predictions (estimator.py), whom a head follows from matching.py. A
plan grows until it saves what is asked for or its cost reaches the budget.
"""

from __future__ import annotations

from dataclasses import dataclass

from pysa.planning.strategies.effects import measure_effects
from pysa.planning.strategies.exchange import exchange
from pysa.planning.strategies.ground import Ground
from pysa.planning.strategies.groups import FOLLOWER
from pysa.planning.strategies.grow import grow
from pysa.planning.strategies.steps import Step


@dataclass
class Found:
    """What a search came to.

    Attributes:
        step: the best plan.
        path: the plans taken on the way, each saving more than the one before; the best is the last.
        reason: why it stopped, as part of a sentence.
    """

    step: Step
    path: list[Step]
    reason: str


def search(ground: Ground) -> Found:
    """Searches.

    Source: ours. Greedy by bytes per cost, with the cost of a group in the plan as it is, not alone; KL on text and on
    recall together, since text alone would give up the heads that retrieve.
    """
    measure_effects(ground)
    step = ground.dense_step()
    ground.estimator.set_anchor(step.kinds, step.cost)
    step = grow(ground, step)
    is_refreshed = False
    while not ground.is_late():
        better = exchange(ground, step, is_refreshed)
        if better is None:
            break
        step, is_refreshed = grow(ground, better), True
    reason = _reason(ground, step)
    step = _without_biases(ground, step)
    return Found(step, _rising(ground.path, step), reason)


def _reason(ground: Ground, step: Step) -> str:
    if ground.is_reached(step):
        return "the saving asked for is reached"
    if ground.is_late():
        return "the time is up"
    return "every further group costs more than allowed"


def _rising(path: list[Step], last: Step) -> list[Step]:
    """Of the plans taken, those that cost less than every one that saves as much or more."""
    rising = [last]
    for step in sorted(path, key=lambda s: (-s.saving, s.cost.total)):
        if step.saving < rising[0].saving and step.cost.total < rising[0].cost.total:
            rising.insert(0, step)
    return rising


def _without_biases(ground: Ground, step: Step) -> Step:
    """Drops the mass biases of all followers, or of those layers where the measured cost falls without them."""
    follows = step.kinds == FOLLOWER
    layers = [il for il in range(ground.limits.shape.n_layer - 1, -1, -1) if follows[il].any()]
    biased = follows.copy()
    for chosen in [layers, *([il] for il in layers)]:
        tried = biased.copy()
        tried[chosen] = False
        plan = ground.matcher.plan(step.kinds, tried)
        if ground.is_late() or plan is None or (tried == biased).all():
            continue
        cheaper = ground.cheaper(step.kinds, plan, step)
        if cheaper is not None:
            step, biased = cheaper, tried
            ground.say(f"no mass bias in {len(chosen)} layers: {step}")
    return step
