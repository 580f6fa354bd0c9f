"""PoD's plan: head by head, blocks of consecutive layers whose distant attention is alike.

Source: arXiv 2412.02252: similarity 1 - Jensen-Shannon divergence, layers grouped greedily from the bottom up.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from pysa.errors import ArgumentError
from pysa.plan import Plan
from pysa.planning.strategies.groups import Saving
from pysa.planning.strategies.limits import Limits

LEAST_SIMILARITY = 0.5  # the paper's
Within = Literal["mean", "min"]

Similarity = npt.NDArray[np.floating]


def pod_plan(
    similarity: Similarity,
    limits: Limits,
    n_sink: int,
    n_recent: int,
    threshold: float = LEAST_SIMILARITY,
    within: Within = "mean",
) -> Plan:
    """Every head of a block follows the same head of the block's first layer.

    Args:
        similarity: (n_layer * n_head, n_layer * n_head), index il * n_head + h, as Calibration has it.
        limits: heads that may follow; another one begins a block.
        n_sink: leading tokens that each layer scores itself.
        n_recent: last tokens that each layer scores itself.
        threshold: a layer joins the block below it while the block's similarity is at least this.
        within: the block's similarity is the `mean` or the `min` over its pairs of layers.
    """
    shape = limits.shape
    score_layer = np.repeat(np.arange(shape.n_layer, dtype=np.int32)[:, None], shape.n_head, 1)
    score_head = np.repeat(np.arange(shape.n_head, dtype=np.int32)[None], shape.n_layer, 0)
    for head in range(shape.n_head):
        of_head = similarity[head :: shape.n_head, head :: shape.n_head]
        first = 0
        for il in range(1, shape.n_layer):
            if limits.free[il, head] and block_similarity(of_head, first, il, within) >= threshold:
                score_layer[il, head] = first
            else:
                first = il
    return Plan("pod", "scores", n_sink, n_recent, score_layer, score_head)


def block_similarity(of_head: Similarity, first: int, last: int, within: Within = "mean") -> float:
    """Similarity of the layers first..last of one head, over all pairs. of_head: (n_layer, n_layer)."""
    block = of_head[first : last + 1, first : last + 1]
    pairs = block[np.triu_indices(len(block), 1)]
    return float(pairs.min() if within == "min" else pairs.mean())


def pod_for_saving(
    similarity: Similarity,
    limits: Limits,
    n_sink: int,
    n_recent: int,
    saving: Saving,
    target: float,
    within: Within = "mean",
) -> tuple[Plan, float]:
    """The plan with the highest threshold that saves at least `target`, and that threshold.

    Keys can be dropped only where no query head of a KV group is an owner, so savings come in leaps: what is reached
    may be well above the target.

    Raises:
        ArgumentError: no threshold saves so much; says how much can be.
    """

    def plan_at(threshold: float) -> Plan:
        return pod_plan(similarity, limits, n_sink, n_recent, threshold, within)

    low, high = min(0.0, float(similarity.min())), float(similarity.max()) + 1e-6
    most = saving(plan_at(low))
    if most < target:
        raise ArgumentError(
            f"--save: not to be had: expected at most {most:.3f}, which one block of all layers saves, got {target:g}; "
            "sharing drops keys only, so ask for less, or use --strategy search with local heads"
        )
    for _ in range(40):
        middle = (low + high) / 2
        if saving(plan_at(middle)) >= target:
            low = middle
        else:
            high = middle
    return plan_at(low), low
