"""What a plan changes on a text: perplexity dense and shared, KL divergence and the share of equal first choices.

Both run in pysa's own engine over the same windows of n_ctx tokens; the second half of each window is scored, so that
every scored token has distant ones. Usage:

    python bench/compare_plan.py M.gguf --text FILE [--text FILE ...] --windows 10
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
from held_out import log_softmax, text_windows

import pysa


def main() -> None:
    """Prints one table row per model: dense, then with the file's plan."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--text", action="append", required=True, type=Path)
    parser.add_argument("--windows", type=int, default=10, help="windows of n_ctx tokens (default 10)")
    parser.add_argument("--plan", help="a plan.json instead of the file's own plan")
    args = parser.parse_args()

    with pysa.Model(args.model) as model:
        windows = text_windows(model, args.text, args.windows)
        n_windows, n_ctx = windows.shape
        first = n_ctx // 2
        nll: dict[str, list[float]] = {"dense": [], "plan": []}
        kl, same = [], []
        for window in windows:
            rows = {}
            for which, plan in (("dense", "dense"), ("plan", args.plan)):
                session = model.session(plan=plan)
                session.eval(window[:first], logits="none")
                rows[which] = log_softmax(session.eval(window[first:-1], logits="all"))
                nll[which] += list(-rows[which][np.arange(n_ctx - first - 1), window[first + 1 :]])
            kl += list((np.exp(rows["dense"]) * (rows["dense"] - rows["plan"])).sum(axis=1))
            same += list(rows["dense"].argmax(axis=1) == rows["plan"].argmax(axis=1))

    dense, shared = (math.exp(float(np.mean(nll[which]))) for which in ("dense", "plan"))
    difference = np.array(nll["plan"]) - np.array(nll["dense"])
    error = float(difference.std() / math.sqrt(len(difference)))
    print(f"{args.model}: {n_windows} windows of {n_ctx} tokens, {len(kl)} predictions")
    print(f"perplexity dense {dense:.3f}, with the plan {shared:.3f}: {shared / dense - 1:+.2%} (+- {error:.2%})")
    print(f"KL divergence {np.mean(kl):.5f} nats, same first choice {np.mean(same):.1%}")


if __name__ == "__main__":
    main()
