"""`--prune`: drops the q and k weights that a plan without a window never reads.

Stock llama.cpp refuses a file that lacks them, so this is the one option that gives up running dense there.
"""

from __future__ import annotations

import numpy as np

from pysa.errors import ConvertError
from pysa.plan import Plan

DROPPED = ("attn_q.weight", "attn_q.bias", "attn_k.weight", "attn_k.bias", "attn_q_norm.weight", "attn_k_norm.weight")
NOTE = "--prune: stock llama.cpp can no longer load this file, and it cannot run dense"


def pruned_names(plan: Plan | None) -> frozenset[str]:
    """The tensors that `plan` makes useless.

    Raises:
        ConvertError: the plan has a window or needs own queries, or no layer follows as a whole.
    """
    if plan is None or plan.n_recent > 0 or not plan.enabled or plan.distant != "scores":
        raise ConvertError("--prune: expected a plan without a window that shares scores (--share sa), got another one")
    layers = np.flatnonzero((plan.kinds() == "follower").all(axis=1))
    if not len(layers):
        raise ConvertError("--prune: expected a layer in which every head follows, got none")
    return frozenset(f"blk.{il}.{name}" for il in layers for name in DROPPED)
