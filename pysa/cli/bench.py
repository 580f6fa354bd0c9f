"""`pysa bench`: speed of prompts and of decoding at some depths, and how near attention comes to the speed of memory.

Of the host's, which threads read in the same run, or of the GPU's, which it copies; whichever the cache is in.

The measuring alone; bench_table.py draws it. Speed beside llama.cpp is bench/against_llama_cpp.py of the repository.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pysa import _native
from pysa.cli.bench_table import bench_lines
from pysa.cli.console import Console
from pysa.cli.options import open_model, open_session
from pysa.cli.placement import Placement, card_facts
from pysa.cli.render import CACHE_PARTS
from pysa.device import find_device
from pysa.errors import DeviceError
from pysa.plan import Plan
from pysa.session import Session

if TYPE_CHECKING:
    from pysa.model import Model

N_HELD = 64  # tokens evaluated before the rest of the cache is filled with copies of their rows
N_BATCH = 2048  # prompt tokens evaluated between two looks at the bar
PAUSE_S = 0.1  # an engine's threads look for work for a while before they sleep
BANDWIDTH_BYTES, THREAD_BYTES = 256 << 20, 64 << 20  # many times the caches that a thread can have
COPY_BYTES, COPY_BYTES_LEAST = 1 << 30, 64 << 20  # less would stay in a GPU's caches
N_WARM = 2  # tokens decoded before the clock counts

Advance = Callable[[int], object]


@dataclass
class Row:
    """What was measured at one depth. Sizes in bytes; `prompt_per_s` is None where no prompt was asked for."""

    depth: int
    prompt_per_s: float | None
    ms: list[float]  # of each token decoded
    n_rows: int
    cache: dict[str, int]
    read_bytes: int  # of the cache, for one token
    values_read: float  # share of the value rows in reach; the rest weighs too little, as v_skip says
    attention_gb_per_s: float | None = None  # None at depth 0, and where the noise is larger than attention's time
    device_bytes: int | None = None  # of the GPU's memory, taken since the session began: as the driver says

    @property
    def ms_per_token(self) -> float:
        """The median."""
        return statistics.median(self.ms)

    @property
    def noise_ms(self) -> float:
        """From the lower to the upper quartile."""
        low, _, high = statistics.quantiles(self.ms, n=4) if len(self.ms) > 1 else (0.0, 0.0, 0.0)
        return high - low

    @property
    def saving(self) -> float:
        """Share of the dense cache's bytes that was not needed."""
        return 1.0 - self.cache["total"] / self.cache["dense"]

    def to_json(self) -> dict[str, Any]:
        """With the figures that follow from others."""
        figures = {"ms_per_token": self.ms_per_token, "tokens_per_s": 1e3 / self.ms_per_token, "saving": self.saving}
        return {**asdict(self), **figures}


@dataclass
class Bench:
    """One run: what ran, how fast memory was read meanwhile (1e9 bytes per second), and a row per depth."""

    model: dict[str, Any]
    depth_by: str  # fill, prompt
    type_k: str
    type_v: str
    bandwidth_gb_per_s: float | None = None  # None where the cache is partly on a GPU, or the GPU has no room for it
    bandwidth_of: str | None = None  # cpu: the host's memory, read; a GPU's name: its memory, copied: read and written
    rows: list[Row] = field(default_factory=list)
    device_weights_bytes: int | None = None  # of the GPU's memory, taken to open the model: as the driver says

    def share(self, row: Row) -> float | None:
        """Attention's part of that speed."""
        attention, memory = row.attention_gb_per_s, self.bandwidth_gb_per_s
        return None if attention is None or memory is None else attention / memory

    def to_json(self) -> dict[str, Any]:
        """As one JSON object."""
        return {**asdict(self), "rows": [{**row.to_json(), "share": self.share(row)} for row in self.rows]}


def reach(session: Session, tokens: npt.NDArray[np.int64], fill: bool, advance: Advance) -> None:
    """Makes an empty session hold len(tokens) positions, by evaluating them or by copying the rows of the first few."""
    n_evaluated = min(N_HELD, len(tokens)) if fill else len(tokens)
    evaluate(session, tokens[:n_evaluated], advance)
    if n_evaluated < len(tokens):
        session._fill(len(tokens), seed=len(tokens))


def evaluate(session: Session, tokens: npt.NDArray[np.int64], advance: Advance) -> float:
    """Evaluates a prompt; seconds."""
    start = time.perf_counter()
    for first in range(0, len(tokens), N_BATCH):
        batch = tokens[first : first + N_BATCH]
        session.eval(batch, logits="last")
        advance(len(batch))
    return time.perf_counter() - start


def decode(session: Session, tokens: npt.NDArray[np.int64], advance: Advance) -> list[float]:
    """Evaluates tokens one by one; milliseconds of each."""
    times_ms = []
    for token in tokens:
        start = time.perf_counter()
        session.eval(np.array([token]))
        times_ms.append((time.perf_counter() - start) * 1e3)
        advance(1)
    return times_ms


def measure(model: Model, options: argparse.Namespace, depth: int, advance: Advance) -> Row:
    """One depth: reach it, decode, then evaluate a prompt on top."""
    n_decode = N_WARM + options.tokens
    n_ctx = n_ctx_of(options, depth)
    tokens = np.random.default_rng(depth).integers(0, model.n_vocab, n_ctx)
    free_bytes = free_on(model.device)
    with open_session(model, options, n_ctx) as session:
        reach(session, tokens[:depth], options.depth_by == "fill", advance)
        reader = Reading(session)
        ms = decode(session, tokens[depth : depth + n_decode], advance)[N_WARM:]
        read_bytes, values_read = reader.finish(n_decode)
        memory = session.memory()
        prompt = tokens[depth + n_decode :]
        prompt_per_s = len(prompt) / evaluate(session, prompt, advance) if len(prompt) else None
        taken = taken_on(model.device, free_bytes)
    cache = {part: memory[part] for part in CACHE_PARTS}
    return Row(depth, prompt_per_s, ms, memory["n_rows"], cache, read_bytes, values_read, device_bytes=taken)


class Reading:
    """Counts what decoding reads of a session's cache, from here to finish()."""

    def __init__(self, session: Session) -> None:
        self._session, self._start, self._n_past = session, session.skip_report(), session.n_past

    def finish(self, n_tokens: int) -> tuple[int, float]:
        """Bytes that one of the `n_tokens` decoded since read on average, and the share of the value rows it read."""
        session, model = self._session.native, self._session.model
        now = session.skip_report()
        n_values = now["n_values"] - self._start["n_values"]
        n_left_out = n_values - (now["n_values_read"] - self._start["n_values_read"])
        dense, types = Plan.dense(model.n_layer, model.n_head).to_json(), (session.type_k, session.type_v)
        row_bytes = model.native.cache_bytes(1, dense, *types)["values"] / (model.n_layer * model.n_head_kv)
        held = model.native.cache_bytes(self._n_past + n_tokens // 2, session.plan, *types)["total"]
        return int(held - n_left_out / n_tokens * row_bytes), 1.0 - n_left_out / n_values if n_values else 1.0


def attention_gb_per_s(base: Row, row: Row) -> float | None:
    """Cache bytes that a token reads more than at depth 0, by the time it takes more; None where noise hides that."""
    attention_ms = row.ms_per_token - base.ms_per_token
    if attention_ms <= max(row.noise_ms, base.noise_ms):
        return None
    return (row.read_bytes - base.read_bytes) / attention_ms / 1e6


def facts(session: Session) -> dict[str, Any]:
    """What runs."""
    model, plan = session.model, session.plan
    return {
        "file": model.path,
        "architecture": model.arch,
        "n_layer": model.n_layer,
        "n_threads": model.n_threads,
        "attention": session.attention,
        "kernel": session.kernel,
        "plan": "dense" if (plan.kinds() == "owner").all() else plan.method,
        "n_sink": plan.n_sink,
        "n_recent": plan.n_recent,
        "placement": asdict(Placement.of(session)),
        **card_facts(model.device),
    }


def read_bandwidth(n_threads: int) -> float:
    """1e9 bytes per second that so many threads read from memory, as _native.read_bandwidth."""
    time.sleep(PAUSE_S)
    return _native.read_bandwidth(n_threads, max(BANDWIDTH_BYTES, n_threads * THREAD_BYTES), repeats=5)


def copy_bandwidth(device: str) -> float | None:
    """1e9 bytes per second that a GPU reads and writes to copy its own memory; None where it has too little room."""
    n_bytes = COPY_BYTES
    while n_bytes >= COPY_BYTES_LEAST:
        try:
            return _native.copy_bandwidth(device, n_bytes)
        except DeviceError:
            n_bytes //= 2
    return None


def cache_side(session: Session) -> str | None:
    """Whose memory a session's cache is in: `cpu`, or a GPU's name; None if both have a part."""
    return {0: session.model.device, session.model.n_layer: "cpu"}.get(session.first_gpu_layer)


def bandwidth(side: str | None, n_threads: int) -> list[float]:
    """How fast that memory is now, in 1e9 bytes per second: read by the CPU, or copied by a GPU; empty if unknown."""
    if side is None:
        return []
    found = read_bandwidth(n_threads) if side == "cpu" else copy_bandwidth(side)
    return [] if found is None else [found]


def run_bench(model: Model, options: argparse.Namespace, advance: Advance) -> Bench:
    """Measures every depth asked for, and depth 0, which the others are compared with."""
    with open_session(model, options, 1) as session:
        side, what = cache_side(session), facts(session)
    bench = Bench(what, options.depth_by, options.type_k, options.type_v)
    speeds = bandwidth(side, model.n_threads)
    for depth in depths(options):
        row = measure(model, options, depth, advance)
        bench.rows.append(row)
        row.attention_gb_per_s = attention_gb_per_s(bench.rows[0], row)
        speeds += bandwidth(side, model.n_threads)
    if speeds:
        bench.bandwidth_gb_per_s, bench.bandwidth_of = statistics.median(speeds), side
    return bench


def free_on(device: str) -> int | None:
    """Bytes of a GPU's memory that are free now; None for cpu."""
    found = find_device(device)
    return None if found is None else found.free_bytes


def taken_on(device: str, free_before: int | None) -> int | None:
    """Bytes of a GPU's memory that are gone since then."""
    free = free_on(device)
    return None if free is None or free_before is None else free_before - free


def depths(options: argparse.Namespace) -> list[int]:
    """0, then what was asked for."""
    return sorted({0, *options.depth})


def n_ctx_of(options: argparse.Namespace, depth: int | None = None) -> int:
    """Tokens that a session comes to at a depth, the deepest unless told otherwise."""
    n_ctx: int = (max(depths(options)) if depth is None else depth) + N_WARM + options.tokens + options.prompt_tokens
    return n_ctx


def n_steps(options: argparse.Namespace) -> int:
    """Tokens that the run evaluates."""
    per_depth: int = N_WARM + options.tokens + options.prompt_tokens
    reached = [min(N_HELD, n) if options.depth_by == "fill" else n for n in depths(options)]
    return per_depth * len(reached) + sum(reached)


def run(options: argparse.Namespace, console: Console) -> int:
    """Measures and prints; the exit status."""
    from tqdm import tqdm  # noqa: PLC0415  only here, and pysa starts quickly

    layout = "{percentage:3.0f} % {bar} {n_fmt}/{total_fmt} tokens"
    bar = tqdm(total=n_steps(options), bar_format=layout, file=console.err, disable=None, leave=False)
    chosen = find_device(options.device)
    with bar, open_model(options, n_ctx_of(options)) as model:
        weights_bytes = None if chosen is None or not model.n_gpu_layers else taken_on(chosen.name, chosen.free_bytes)
        bench = run_bench(model, options, bar.update)
        bench.device_weights_bytes = weights_bytes
    if options.json:
        console.json(bench.to_json())
    else:
        console.lines(bench_lines(bench, console.width))
    return 0
