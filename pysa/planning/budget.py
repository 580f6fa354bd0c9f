"""What a plan may cost: the limits that a search stops at and that the gate holds a finished plan to."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """Limits.

    Attributes:
        max_kl: mean KL divergence to the dense model on text, nats.
        max_ppl_increase: relative increase of the perplexity: 0.01 is one percent.
        max_recall_drop: share of recall questions, and of needles, that may be lost.
    """

    max_kl: float = math.inf
    max_ppl_increase: float = 0.01
    max_recall_drop: float = 0.02

    def n_lost(self, n_asked: int) -> int:
        """Answers that may be lost of so many: of a few questions, one, since less cannot be measured."""
        return math.ceil(self.max_recall_drop * n_asked - 1e-9)
