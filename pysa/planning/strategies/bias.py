"""The mass bias: a constant added to a follower's distant scores, so that the distance gets the weight that it had.

Fitted per head and source by least squares of the change of the head's output; the mean difference of log-sums, which
suggests itself, helped once and hurt twice.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pysa.planning.strategies.proxy import OutputTable

BIASES = np.linspace(-3.0, 3.0, 49).astype(np.float32)  # e^3 either way, in steps of an eighth


def best_biases(table: OutputTable, il: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """(n_head, il * n_head) each: for every head of a layer and every source the best bias, and the change left."""
    best = np.zeros((table.shape.n_head, il * table.shape.n_head), np.float32)
    least = table.follower_error(il)
    for bias in BIASES:
        errors = table.follower_error(il, bias)
        better = errors < least
        best[better], least[better] = bias, errors[better]
    return best, least
