"""SA's plan: whole layers reuse the attention of the layer before their span, for all tokens.

Source: arXiv 2407.12866: layers whose attention matrices have a high cosine similarity are grouped into spans.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pysa.errors import ArgumentError
from pysa.plan import Plan
from pysa.planning.strategies.groups import Shape
from pysa.planning.strategies.limits import Limits

LEAST_COSINE = 0.9

Cosine = npt.NDArray[np.floating]


def sa_plan(shape: Shape, spans: Sequence[tuple[int, int]], n_sink: int = 0, n_recent: int = 0) -> Plan:
    """Spans of followers (first and last layer, inclusive), each after the layer that they follow.

    With a window (n_recent > 0) every layer scores that itself, so that SA can be compared at equal windows.
    """
    if n_recent > 0:
        plan = Plan.pod_spans(shape.n_layer, shape.n_head, spans, n_sink, n_recent)
        plan.method = "sa"
        return plan
    return Plan.sa(shape.n_layer, shape.n_head, spans)


def spans_by_threshold(layer_cosine: Cosine, limits: Limits, threshold: float = LEAST_COSINE) -> list[tuple[int, int]]:
    """From the bottom up, a layer joins the span while it is similar enough to the layer that the span follows.

    Args:
        layer_cosine: (n_layer, n_layer), as Calibration has it.
        limits: a layer with a head that may not change owns.
        threshold: least cosine.
    """
    free = limits.layers()
    spans: list[tuple[int, int]] = []
    owner = 0
    for il in range(1, limits.shape.n_layer):
        if not free[il] or layer_cosine[owner, il] < threshold:
            owner = il
        elif spans and spans[-1] == (owner + 1, il - 1):
            spans[-1] = (owner + 1, il)
        else:
            spans.append((il, il))
    return spans


def spans_by_count(layer_cosine: Cosine, limits: Limits, n_follow: int) -> tuple[list[tuple[int, int]], float]:
    """The spans of the highest threshold at which at least `n_follow` layers follow, and that threshold.

    Raises:
        ArgumentError: so many layers cannot follow.
    """
    most = sum(limits.layers()[1:])
    if not 1 <= n_follow <= most:
        raise ArgumentError(f"--n-layers: expected 1..{most} layers that may follow, got {n_follow}")
    for threshold in np.unique(layer_cosine)[::-1].tolist():
        spans = spans_by_threshold(layer_cosine, limits, threshold)
        if sum(last - first + 1 for first, last in spans) >= n_follow:
            return spans, threshold
    raise AssertionError("the lowest similarity lets every free layer follow")
