"""Makes the plan of the benchmarks: it saves a given share of the cache at a given length and measures no model.

    python bench/save_plan.py M.gguf -o plan.json --save 0.35 --at 32768

Heads follow head for head, whole KV groups at a time: in every KV head the first layer owns, and then every so many.
With a window of 16 + 4080 tokens, 80 % of the groups following save 35 % at 32K. Which heads of a real model may follow
is another question (docs/quality.md).
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np

import pysa
from pysa import Plan

N_SINK, N_RECENT = 16, 4080


def saving_plan(n_layer: int, n_head: int, n_head_kv: int, save: float, n: int = 32768) -> Plan:
    """The plan with the fewest followers that saves `save` of a cache of `n` tokens, its K and V rows equally long.

    Args:
        n_layer: layers.
        n_head: query heads of a layer.
        n_head_kv: KV heads of a layer.
        save: share of the dense cache's bytes, above 0.
        n: tokens held.

    Raises:
        ValueError: so much cannot be saved by following alone.
    """
    n_groups = n_layer * n_head_kv
    # A following group keeps the keys of its window only; keys are half of the bytes.
    by_one = 0.5 * (1.0 - min(n, N_SINK + N_RECENT) / n) / n_groups
    n_most = (n_layer - 1) * n_head_kv
    n_followers = math.ceil(save / by_one - 1e-9) if by_one > 0 else n_most + 1
    if not 0 < n_followers <= n_most:
        raise ValueError(f"save: expected above 0, at most {by_one * n_most:.3f} at {n} tokens, got {save}")

    n_owners = np.full(n_head_kv, (n_groups - n_followers) // n_head_kv)
    n_owners[: (n_groups - n_followers) % n_head_kv] += 1
    score_layer = np.empty((n_layer, n_head), np.int32)
    for h in range(n_head):
        n_blocks = int(n_owners[h // (n_head // n_head_kv)])
        starts = np.arange(n_blocks) * n_layer // n_blocks
        score_layer[:, h] = starts[np.searchsorted(starts, np.arange(n_layer), side="right") - 1]
    score_head = np.tile(np.arange(n_head, dtype=np.int32), (n_layer, 1))
    plan = Plan("pod", "scores", N_SINK, N_RECENT, score_layer, score_head)
    plan.validate(n_head_kv)
    return plan


def plan_of(model: pysa.Model, text: str) -> Plan | None:
    """The plan that an option names: `file` (the model's own), `saveNN` (NN % at 32K) or a plan.json."""
    if text == "file":
        if model.plan is None:
            raise SystemExit(f"--plan file: {model.path} has no plan: expected one; give a plan.json or save35")
        return model.plan
    if text.startswith("save") and text[4:].isdigit():
        try:
            return saving_plan(model.n_layer, model.n_head, model.n_head_kv, int(text[4:]) / 100)
        except ValueError as error:
            raise SystemExit(f"--plan {text}: {error}") from None
    return model.resolve_plan(text)


def main() -> None:
    """Writes a plan.json and says what it saves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--save", type=float, default=0.35, help="share of the dense cache (default 0.35)")
    parser.add_argument("--at", type=int, default=32768, metavar="N", help="tokens held (default 32768)")
    parser.add_argument("--force", action="store_true", help="replace an existing file")
    args = parser.parse_args()
    try:
        with pysa.Model(args.model, use_repack=False, device="cpu") as model:
            plan = saving_plan(model.n_layer, model.n_head, model.n_head_kv, args.save, args.at)
            plan.save(args.output, args.force)
            print(f"{args.output}: saves {saving(model, plan, args.at):.2%} at {args.at:,} tokens")
    except (ValueError, pysa.PysaError) as error:
        raise SystemExit(str(error)) from None


def saving(model: pysa.Model, plan: Plan, n: int) -> float:
    """Share of the dense cache's bytes that the plan saves at `n` tokens (f16)."""
    sizes = model.cache_bytes(n, plan)
    return 1.0 - sizes["total"] / sizes["dense"]


if __name__ == "__main__":
    main()
