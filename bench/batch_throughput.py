"""Tokens a second of several sessions that decode together in one batch, beside the same sessions one after another.

    python bench/batch_throughput.py M.gguf
    python bench/batch_throughput.py M.gguf --sessions 1,2,4,8 --depth 64,4096 -n 32 --json figures.json
    python bench/batch_throughput.py M.gguf --cancel 20

Each session holds `depth` tokens (the first few evaluated, the rest copies of their rows) and decodes `n` tokens. Both
ways run in turns of a few tokens in the same process, on the same sessions, so that what else happens on the machine
meets both. A figure is the median over the turns; `gain` is together over alone.

`--cancel` measures how long the scheduler takes from a cancel() to the end of the request, so often while its prompt
is read, and so often while it decodes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from machine import add_device_options, device_text, machine_facts, open_model

import pysa
from pysa._arguments import CACHE_TYPES
from pysa.batch import Batch
from pysa.cli.bench import PAUSE_S
from pysa.scheduler import Scheduler

N_EVALUATED = 64  # of the depth; the rest is filled
N_WARM = 1


@dataclass(frozen=True)
class Row:
    """One number of sessions at one depth: tokens a second of all of them."""

    depth: int
    n_sessions: int
    alone_per_s: float
    together_per_s: float
    alone_spread_per_s: float  # from the lower to the upper quartile of the turns
    together_spread_per_s: float

    @property
    def gain(self) -> float:
        """How many times as fast they are together."""
        return self.together_per_s / self.alone_per_s


def spread(samples: list[float]) -> float:
    """From the lower to the upper quartile."""
    if len(samples) < 2:
        return 0.0
    low, _, high = statistics.quantiles(samples, n=4)
    return high - low


def measure(model: pysa.Model, args: argparse.Namespace, depth: int, n_sessions: int) -> Row:
    """Both ways in turns on the same sessions."""
    n_turns = max(2, args.n // args.turn)
    n_ctx = depth + 2 * (n_turns + 1) * (args.turn + N_WARM) + 1
    rng = np.random.default_rng(depth + n_sessions)
    tokens = rng.integers(0, model.n_vocab, (n_sessions, n_ctx))
    with ExitStack() as stack:
        sessions = [
            stack.enter_context(
                model.session(n_ctx, args.type, args.type, plan=args.plan, v_skip=args.v_skip, attention=args.attention)
            )
            for _ in range(n_sessions)
        ]
        for session, row in zip(sessions, tokens, strict=True):
            session.eval(row[: min(depth, N_EVALUATED)], logits="none")
            if depth > N_EVALUATED:
                session._fill(depth, seed=depth)
        batch = Batch(model)

        def alone(n: int) -> None:
            for session, row in zip(sessions, tokens, strict=True):
                for _ in range(n):
                    session.eval(row[session.n_past : session.n_past + 1])

        def together(n: int) -> None:
            for _ in range(n):
                batch.step(
                    [(s, row[s.n_past : s.n_past + 1], True) for s, row in zip(sessions, tokens, strict=True)],
                )

        samples: dict[Callable[[int], None], list[float]] = {alone: [], together: []}
        for turn in range(n_turns + 1):
            for way, times in samples.items():
                time.sleep(PAUSE_S)  # an engine's threads look for work for a while before they sleep
                way(N_WARM)
                start = time.perf_counter()
                way(args.turn)
                if turn:  # the first warms up
                    times.append(args.turn * n_sessions / (time.perf_counter() - start))
    return Row(
        depth,
        n_sessions,
        statistics.median(samples[alone]),
        statistics.median(samples[together]),
        spread(samples[alone]),
        spread(samples[together]),
    )


class Endless:
    """A request that never ends by itself."""

    wants_prompt_logits = False

    def __init__(self, prompt: list[int]) -> None:
        self.prompt_tokens, self.finish_reason, self.n_picked = prompt, None, 0

    def pick(self, logits: Any) -> int:
        self.n_picked += 1
        return int(np.argmax(logits))

    def finish(self, reason: str) -> None:
        self.finish_reason = reason

    def take_chunks(self) -> list[dict[str, Any]]:
        return []

    def set_reuse(self, reuse: object) -> None:
        """Of no interest here."""


def cancel_times(model: pysa.Model, args: argparse.Namespace) -> dict[str, list[float]]:
    """Milliseconds from cancel() to the end, in a prompt and in decoding."""
    rng = np.random.default_rng(0)
    times: dict[str, list[float]] = {"prompt": [], "decode": []}
    n_ctx = min(model.n_ctx_train, 2048)

    def make_session() -> pysa.Session:
        return model.session(n_ctx, args.type, args.type, plan=args.plan, v_skip=args.v_skip, attention=args.attention)

    with Scheduler(model, make_session, n_parallel=1) as scheduler:
        for phase, samples in times.items():
            for _ in range(args.cancel):
                n_prompt = n_ctx - 1 if phase == "prompt" else 4
                request = Endless(rng.integers(0, model.n_vocab, n_prompt).tolist())
                n_steps = scheduler.stats().n_steps
                ticket = scheduler.submit(request)
                while request.n_picked < 2 if phase == "decode" else scheduler.stats().n_busy == 0:
                    time.sleep(0.001)
                # Anywhere in a step, not only at its beginning.
                time.sleep(rng.random() * (0.2 if phase == "prompt" else 0.02))
                assert not ticket.done, f"{scheduler.stats().n_steps - n_steps} steps were too quick to be cancelled"
                start = time.perf_counter()
                ticket.cancel()
                ticket.wait()
                samples.append((time.perf_counter() - start) * 1e3)
    return times


def cancel_lines(times: dict[str, list[float]]) -> list[str]:
    """What cancel_times() found."""
    return [
        f"cancelled in {phase}: {statistics.median(ms):.1f} ms, at most {max(ms):.1f} ms ({len(ms)} times)"
        for phase, ms in times.items()
    ]


def lines(title: str, rows: list[Row]) -> list[str]:
    """A table in markdown."""
    table = [
        title,
        "",
        "| tokens held | sessions | one after another, tokens/s | together, tokens/s | gain |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        alone = f"{row.alone_per_s:.1f} ({row.alone_spread_per_s:.1f})"
        together = f"{row.together_per_s:.1f} ({row.together_spread_per_s:.1f})"
        table.append(f"| {row.depth:,} | {row.n_sessions} | {alone} | {together} | {row.gain:.2f} |")
    return [*table, "", "In brackets: from the lower to the upper quartile of the turns."]


def integers(text: str) -> list[int]:
    """`1,2,4,8`."""
    return [int(part) for part in text.split(",")]


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("-s", "--sessions", type=integers, default=[1, 2, 4, 8], help="default 1,2,4,8")
    parser.add_argument("-d", "--depth", type=integers, default=[64], help="tokens held by each (default 64)")
    parser.add_argument("-n", type=int, default=32, help="tokens decoded by each session, each way (default 32)")
    parser.add_argument(
        "--turn", type=int, default=4, help="of which before the other way's turn (default 4); more for a small model"
    )
    parser.add_argument("-t", "--threads", type=int, default=0)
    add_device_options(parser)
    parser.add_argument("--type", choices=CACHE_TYPES, default="f16", help="of K and V (default f16)")
    parser.add_argument("--plan", help="a plan.json, or dense (default: the file's own)")
    parser.add_argument("--v-skip", type=float, help="as for Model.session (default: the engine's choice)")
    parser.add_argument("--attention", choices=("auto", "fused", "composed"), default="auto")
    parser.add_argument("--cancel", type=int, default=0, metavar="N", help="measure cancelling N times instead")
    parser.add_argument("--json", metavar="FILE", help="write the figures there; - is stdout, in place of the table")
    args = parser.parse_args()
    if min(*args.sessions, *args.depth, args.n, args.turn) < 1:
        parser.error("--sessions, --depth, -n and --turn: expected numbers of 1 or more")
    return args


def main() -> None:
    """Measures, prints, writes."""
    args = parsed()
    rows, cancelled = [], {}
    try:
        n_ctx = max(args.sessions) * (max(args.depth) + 2 * (args.n + args.turn + N_WARM))
        with open_model(args, n_ctx, args.type) as model:
            facts = {
                "model": args.model,
                "n_threads": model.n_threads,
                "type": args.type,
                "plan": args.plan,
                "n": args.n,
                "turn": args.turn,
                **machine_facts(model),
            }
            if args.cancel:
                cancelled = cancel_times(model, args)
            for depth in [] if args.cancel else args.depth:
                for n_sessions in args.sessions:
                    print(f"{n_sessions} sessions of {depth:,} tokens", file=sys.stderr)
                    rows.append(measure(model, args, depth, n_sessions))
    except pysa.PysaError as error:
        raise SystemExit(str(error)) from None
    found = {"rows": [{**asdict(row), "gain": row.gain} for row in rows], "cancel_ms": cancelled}
    figures = json.dumps({**facts, **found}, indent=1)
    if args.json == "-":
        print(figures)
        return
    title = f"{Path(args.model).name}, {facts['n_threads']} threads, {args.type} cache{device_text(facts)}"
    print("\n".join([title, *cancel_lines(cancelled)] if args.cancel else lines(title, rows)))
    if args.json:
        Path(args.json).write_text(figures + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
