"""Predicts what any assignment of kinds costs, from what single groups cost.

A measured plan leaves features: a vector whose squared length is twice the plan's KL divergence, and which for two
changes together is near the sum of both. So the interactions of all pairs are known from measuring each change once,
and from a plan that was measured as a whole (the anchor) only what differs has to be predicted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pysa.planning.strategies.cost import Cost
from pysa.planning.strategies.groups import OWNER, Kinds
from pysa.planning.strategies.matching import Matcher

Floats = npt.NDArray[np.float32]
Change = tuple[int, int, int]  # layer, group, kind

MAX_SCALE = 16.0  # by how much a worse source may make a group dearer than measured


@dataclass(frozen=True)
class Effect:
    """What one group's change does.

    Attributes:
        features: its direction, None where it was only measured together with others.
        rest: cost without a direction: it adds up.
        error: the change of the group's outputs under the sources that it was measured with.
        size: measured with so many groups at once; 0: not measured.
    """

    features: Floats | None
    rest: float
    error: float
    size: int


class Estimator:
    """Effects of changes, and the anchor from which assignments are predicted."""

    def __init__(self, matcher: Matcher) -> None:
        self._matcher = matcher
        self.effects: dict[Change, Effect] = {}
        self._errors: dict[bytes, npt.NDArray[np.float64]] = {}
        self._anchor = matcher.shape.owners()
        self._features = np.zeros(0, np.float32)
        self._cost = 0.0

    def errors(self, kinds: Kinds) -> npt.NDArray[np.float64]:
        """Matcher.group_errors, remembered."""
        key = kinds.tobytes()
        if key not in self._errors:
            self._errors[key] = self._matcher.group_errors(kinds)
        return self._errors[key]

    def learn(self, changes: list[Change], cost: Cost, kinds: Kinds) -> None:
        """Changes measured together in an otherwise dense plan.

        One has its own direction; several share the cost by the proxy, the change of the groups' outputs.
        """
        errors = self.errors(kinds)
        if len(changes) == 1:
            il, group, _ = changes[0]
            self.effects[changes[0]] = Effect(cost.features, 0.0, max(errors[il, group], 1e-12), 1)
            return
        total = sum(errors[il, group] for il, group, _ in changes) or 1.0
        for il, group, kind in changes:
            known = self.effects.get((il, group, kind))
            if known is None or known.size > len(changes):
                share = max(errors[il, group], 1e-12)
                self.effects[il, group, kind] = Effect(None, cost.total * share / total, share, len(changes))

    def learn_here(self, change: Change, cost: Cost, kinds: Kinds) -> None:
        """One change measured on top of the anchor, which gave `kinds`."""
        il, group, _ = change
        if len(self._features) == len(cost.features) and self._changed(self._anchor, kinds) == [(il, group)]:
            features, _ = self._contribution(self._anchor, il, group)
            step = cost.features - self._features + (0.0 if features is None else features)
            self.effects[change] = Effect(step, 0.0, max(float(self.errors(kinds)[il, group]), 1e-12), 1)

    def learn_undone(self, where: tuple[int, int], cost: Cost, kinds: Kinds) -> None:
        """The anchor `kinds` measured with one group an owner again."""
        il, group = where
        step = self._features - cost.features
        error = max(float(self.errors(kinds)[il, group]), 1e-12)
        self.effects[il, group, int(kinds[il, group])] = Effect(step, 0.0, error, 1)

    def set_anchor(self, kinds: Kinds, cost: Cost) -> None:
        """Predictions start from this plan now. A change of one group teaches what it does here."""
        changed = self._changed(self._anchor, kinds)
        if len(changed) == 1 and (kind := int(kinds[changed[0]])) != OWNER:
            self.learn_here((*changed[0], kind), cost, kinds)
        self._anchor, self._features, self._cost = kinds.copy(), cost.features, cost.total

    def predict(self, kinds: Kinds) -> float:
        """The cost of these kinds; groups about which nothing is known count nothing."""
        step = np.zeros_like(self._features)
        rest = 0.0
        for il, group in self._changed(self._anchor, kinds):
            for where, sign in ((kinds, 1.0), (self._anchor, -1.0)):
                features, more = self._contribution(where, il, group)
                rest += sign * more
                if features is not None:
                    step += np.float32(sign) * features
        # |anchor + step|^2 / 2 less |anchor|^2 / 2, on the samples that features are of.
        change = float(step @ self._features) + float(step @ step) / 2
        return max(self._cost + change + rest, 0.0)

    def _changed(self, before: Kinds, after: Kinds) -> list[tuple[int, int]]:
        """Groups of another kind, or of the same with other sources."""
        other = (before != after) | ~np.isclose(self.errors(before), self.errors(after), rtol=1e-3, atol=0.0)
        return [(int(il), int(group)) for il, group in np.argwhere(other)]

    def _contribution(self, kinds: Kinds, il: int, group: int) -> tuple[Floats | None, float]:
        kind = int(kinds[il, group])
        effect = self.effects.get((il, group, kind))
        if kind == OWNER or effect is None:
            return None, 0.0
        scale = min(max(float(self.errors(kinds)[il, group]) / effect.error, 1.0 / MAX_SCALE), MAX_SCALE)
        if effect.features is None:
            return None, effect.rest * scale
        return effect.features * np.float32(np.sqrt(scale)), effect.rest * scale
