"""StreamingLLM as a plan: sinks and a window for every head that may change, nothing distant. A baseline.

Source: arXiv 2309.17453.
"""

from __future__ import annotations

import numpy as np

from pysa.plan import Plan
from pysa.planning.strategies.limits import Limits


def streaming_plan(limits: Limits, n_sink: int, n_recent: int) -> Plan:
    """Every head local, except those that may not change."""
    layer, head = np.indices(limits.free.shape, dtype=np.int32)
    local = np.int32(-1)
    return Plan(
        "streaming",
        "scores",
        n_sink,
        n_recent,
        np.where(limits.free, local, layer),
        np.where(limits.free, local, head),
    )
