"""What leaving out negligible values (v_skip) does: perplexity, mass dropped, rows read, and speed at full context.

Values are left out where single tokens are evaluated, so the second half of the text is evaluated token by token, and
the speed is that of the last tokens, the bounds taken in turns. Usage:

    python bench/value_skip.py M.gguf --text FILE [--text FILE ...] --windows 4
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from machine import add_device_options, device_text, machine_facts
from numpy.typing import NDArray

import pysa
from pysa.planning.scoring import log_softmax

N_TIMED = 64  # tokens at the end of the context


def text_windows(model: pysa.Model, files: Sequence[Path], n_most: int) -> NDArray[np.int64]:
    """The files' tokens, (n_windows, n_ctx_train), at most `n_most` windows.

    Raises:
        SystemExit: there are not enough for one.
    """
    text = "\n".join(path.read_text(encoding="utf-8") for path in files)
    tokens = np.array(model.tokenize(text, add_special=False, parse_special=False), dtype=np.int64)
    n_ctx = model.n_ctx_train
    n_windows = min(n_most, len(tokens) // n_ctx)
    if n_windows == 0:
        raise SystemExit(f"--text: expected at least {n_ctx} tokens, got {len(tokens)}")
    return tokens[: n_windows * n_ctx].reshape(n_windows, n_ctx)


def score(session: pysa.Session, window: NDArray[np.int64]) -> tuple[list[float], list[float]]:
    """Negative log-likelihoods of the window's second half, token by token, and the seconds of its last N_TIMED."""
    first = len(window) // 2
    session.eval(window[:first], logits="none")
    losses, seconds = [], []
    for at in range(first, len(window) - 1):
        start = time.perf_counter()
        logits = session.eval(window[at : at + 1])
        seconds.append(time.perf_counter() - start)
        losses.append(-float(log_softmax(logits)[0, window[at + 1]]))
    return losses, seconds[-N_TIMED:]


def main() -> None:
    """Prints one line per bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--text", action="append", required=True, type=Path)
    parser.add_argument("--windows", type=int, default=4, help="windows of n_ctx tokens (default 4)")
    parser.add_argument("--plan", help="dense or a plan.json instead of the file's own plan")
    parser.add_argument("--bounds", default="0,0.0001,0.0003,0.001,0.003,0.01,0.03")
    parser.add_argument("-t", "--threads", type=int, default=1, help="1: a small model's threads wait for each other")
    add_device_options(parser)
    args = parser.parse_args()

    bounds = [float(bound) for bound in args.bounds.split(",")]
    losses: dict[float, list[float]] = {bound: [] for bound in bounds}
    seconds: dict[float, list[float]] = {bound: [] for bound in bounds}
    reports: dict[float, list[dict[str, float]]] = {bound: [] for bound in bounds}
    with pysa.Model(args.model, args.threads, device=args.device, n_gpu_layers=args.gpu_layers) as model:
        where = device_text(machine_facts(model))
        windows = text_windows(model, args.text, args.windows)
        n_windows, n_ctx = windows.shape
        for window in windows:
            for bound in bounds:
                with model.session(plan=args.plan, v_skip=bound) as session:
                    loss, time_s = score(session, window)
                    losses[bound] += loss
                    seconds[bound] += time_s
                    reports[bound].append(session.skip_report())

    print(f"{args.model}: {n_windows} windows of {n_ctx} tokens, the second half token by token{where}")
    print("| v_skip | perplexity | change | mass dropped, mean | at most | values read | ms per token at the end |")
    print("|---|---|---|---|---|---|---|")
    exact = math.exp(float(np.mean(losses[bounds[0]])))
    for bound in bounds:
        perplexity = math.exp(float(np.mean(losses[bound])))
        report = reports[bound]
        read = sum(r["n_values_read"] for r in report) / max(1.0, sum(r["n_values"] for r in report))
        mean = float(np.mean([r["dropped_mass_mean"] for r in report]))
        most = max(r["dropped_mass_max"] for r in report)
        ms = statistics.median(seconds[bound]) * 1e3
        print(
            f"| {bound:g} | {perplexity:.4f} | {perplexity / exact - 1:+.4%} | {mean:.2%} | {most:.2%} | {read:.1%} "
            f"| {ms:.3f} |"
        )


if __name__ == "__main__":
    main()
