"""Decode and prompt speed of pysa beside llama.cpp (llama_decode of the same build), alternating in one run.

    python bench/decode_speed.py M.gguf -d 0,4096 --type f16 [--plan plan.json] -n 16

Needs a build with PYSA_TESTS=ON. The depth is reached by evaluating a prompt. llama.cpp runs with flash attention as it
chooses itself (auto), or as --flash says. Both use the same number of threads and the same type for K and V.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

os.environ.setdefault("LLAMA_ATTN_ROT_DISABLE", "1")

import pysa
from pysa import _oracle

N_TURN = 4  # tokens in a row, of which the first is not counted


def timed(call: Callable[..., Any], *arguments: Any, **options: Any) -> float:
    """Seconds that one call takes."""
    start = time.perf_counter()
    call(*arguments, **options)
    return time.perf_counter() - start


def compare(model: pysa.Model, args: argparse.Namespace, depth: int, n_ctx: int) -> str:
    """One row of the table: the prompt that reaches the depth, then single tokens in turn."""
    options = {"n_ctx": n_ctx, "type_k": args.type, "type_v": args.type}
    rng = np.random.default_rng(depth)
    prompt = rng.integers(0, 256, max(depth, 1))
    ours, theirs = [], []
    with model.session(plan=args.plan, **options) as session:
        other = _oracle.Oracle(args.model, n_threads=model.n_threads, flash_attn=args.flash, **options)
        prompts = (
            len(prompt) / timed(session.eval, prompt, "none"),
            len(prompt) / timed(other.eval, prompt.tolist(), "last"),
        )
        for tokens in rng.integers(0, 256, (args.n // N_TURN, N_TURN)).tolist():
            time.sleep(0.1)  # a pool's threads look for work for a while before they sleep
            ours += [timed(session.eval, [token]) for token in tokens][1:]
            time.sleep(0.1)
            theirs += [timed(other.eval, [token], "last") for token in tokens][1:]
    a, b = statistics.median(ours) * 1e3, statistics.median(theirs) * 1e3
    ratio = f"{prompts[0]:.1f} | {prompts[1]:.1f} | {prompts[0] / prompts[1]:.2f}" if depth else "| |"
    return f"| {depth} | {ratio} | {a:.1f} | {b:.1f} | {b / a:.2f} |"


def main() -> None:
    """Prints one line per depth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("-d", "--depths", default="0,4096")
    parser.add_argument("-n", type=int, default=16, help="tokens decoded by each, four at a time in turn (default 16)")
    parser.add_argument("-t", "--threads", type=int, default=0)
    parser.add_argument("--type", default="f16", help="of K and V (default f16)")
    parser.add_argument("--flash", default="auto", choices=("auto", "on", "off"))
    parser.add_argument("--plan", default="dense")
    args = parser.parse_args()

    depths = [int(d) for d in args.depths.split(",")]
    print("| depth | prompt tokens/s: pysa | llama.cpp | ratio | ms per token: pysa | llama.cpp | ratio |")
    print("|---|---|---|---|---|---|---|")
    with pysa.Model(args.model, n_threads=args.threads) as model:
        for depth in depths:
            print(compare(model, args, depth, n_ctx=max(depths) + args.n + 16), flush=True)


if __name__ == "__main__":
    main()
