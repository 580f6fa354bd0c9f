"""What against_llama_cpp.py found, as data, as markdown tables, as JSON and as a plot. Nothing is measured here."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

OURS = ("pysa", "plan")
THEIRS = ("-fa 0", "-fa 1")
TITLES = {"pysa": "pysa", "plan": "pysa, plan", "-fa 0": "llama.cpp -fa 0", "-fa 1": "llama.cpp -fa 1"}


@dataclass
class Decode:
    """One side decoding at one depth: milliseconds of each sample, and the cache's bytes that a token reads.

    `n_splits`: parts of a step between which CPU and GPU took turns, where that is known.
    """

    type: str
    depth: int
    side: str
    ms: list[float]
    read_bytes: int
    n_splits: int | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.ms)


@dataclass
class Prompt:
    """One side evaluating prompts of `n` tokens: seconds of each."""

    type: str
    n: int
    side: str
    seconds: list[float]

    @property
    def per_s(self) -> float:
        return self.n / statistics.median(self.seconds)


@dataclass
class Results:
    """One run. `bandwidth` has how fast memory was before and after each depth, in 1e9 bytes per second.

    Of the memory that caches are in: the host's, read (`bandwidth_of` is cpu), or a GPU's, copied: read and written.
    """

    model: str
    n_threads: int
    opponent: str  # oracle, llama-bench
    depth_by: str  # fill, prompt
    plan: dict[str, Any]
    v_skip: float | None  # None: the engine's choice
    machine: dict[str, Any]  # as machine.py has it
    bandwidth: dict[str, list[float]] = field(default_factory=dict)  # "f16 4096": ...
    bandwidth_of: str | None = None  # None: caches are partly on a GPU, and nothing was measured
    decode: list[Decode] = field(default_factory=list)
    prompts: list[Prompt] = field(default_factory=list)
    peak_bytes: dict[str, int] = field(default_factory=dict)  # "f16 pysa": ...
    device_bytes: dict[str, int] = field(default_factory=dict)  # "f16, 4096, pysa": of the GPU, as its driver says
    model_device_bytes: int = 0  # taken to open the model

    def find(self, type_: str, depth: int, side: str) -> Decode | None:
        return next((d for d in self.decode if (d.type, d.depth, d.side) == (type_, depth, side)), None)

    def ratio(self, type_: str, depth: int, side: str) -> float | None:
        """How many times as fast as the better of llama.cpp's two."""
        ours = self.find(type_, depth, side)
        theirs = [d.median for d in (self.find(type_, depth, name) for name in THEIRS) if d]
        return min(theirs) / ours.median if ours and theirs else None

    def attention_gb_per_s(self, type_: str, depth: int, side: str) -> float | None:
        """Cache bytes read more than at depth 0, by the time taken more; None where it takes no more."""
        base, here = self.find(type_, 0, side), self.find(type_, depth, side)
        if not base or not here or here.median <= base.median:
            return None
        return (here.read_bytes - base.read_bytes) / (here.median - base.median) / 1e6

    def memory_gb_per_s(self, type_: str, depth: int) -> float | None:
        """Of the memory that caches are in; None if it was not measured."""
        found = self.bandwidth.get(f"{type_} {depth}")
        return statistics.median(found) if found else None

    def to_json(self) -> dict[str, Any]:
        """With the figures that follow: ratio, attention's GB/s and its share of the bandwidth."""
        rows = []
        for row in self.decode:
            attention = self.attention_gb_per_s(row.type, row.depth, row.side)
            memory = self.memory_gb_per_s(row.type, row.depth)
            share = attention and memory and attention / memory
            ratio = self.ratio(row.type, row.depth, row.side)
            figures = {"median_ms": row.median, "ratio": ratio, "attention_gb_per_s": attention, "share": share}
            rows.append({**asdict(row), **figures})
        prompts = [{**asdict(row), "per_s": row.per_s} for row in self.prompts]
        return {**asdict(self), "decode": rows, "prompts": prompts}


def spread(values: list[float]) -> str:
    """Median and quartiles."""
    if len(values) < 2:
        return f"{values[0]:.1f}"
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{statistics.median(values):.1f} ({low:.1f}..{high:.1f})"


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    """Markdown."""
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]


def decode_lines(results: Results) -> list[str]:
    """A row per type and depth: times, ratios, and attention's speed beside memory's."""
    sides = [side for side in TITLES if any(row.side == side for row in results.decode)]
    ours = [side for side in OURS if side in sides]
    header = ["cache, depth", *(f"{TITLES[side]}, ms" for side in sides), *(f"ratio: {TITLES[side]}" for side in ours)]
    header += [f"attention GB/s: {TITLES[side]}" for side in ours]
    memory_title = "memory GB/s" if results.bandwidth_of == "cpu" else "memory copied, GB/s"
    header += [memory_title] if results.bandwidth else []
    rows = []
    for type_, depth in dict.fromkeys((row.type, row.depth) for row in results.decode):
        memory = results.memory_gb_per_s(type_, depth)
        found = {side: results.find(type_, depth, side) for side in sides}
        ratios = [results.ratio(type_, depth, side) for side in ours]
        speeds = [results.attention_gb_per_s(type_, depth, side) for side in ours]
        rows.append(
            [f"{type_}, {depth:,}"]
            + [spread(row.ms) if row else "" for row in found.values()]
            + [f"{ratio:.2f}" if ratio else "" for ratio in ratios]
            + [_speed_text(speed, memory) for speed in speeds]
            + ([f"{memory:.1f}" if memory else ""] if results.bandwidth else [])
        )
    how = "filled with copied rows" if results.depth_by == "fill" else "reached by a prompt"
    return [f"Decoding, depth {how}; median and quartiles.", "", *table(header, rows), ""] if rows else []


def _speed_text(speed: float | None, memory: float | None) -> str:
    if not speed:
        return ""
    return f"{speed:.1f} ({100 * speed / memory:.0f} %)" if memory else f"{speed:.1f}"


def prompt_lines(results: Results) -> list[str]:
    """A row per type and length: tokens a second, and ratios."""
    sides = [side for side in TITLES if any(row.side == side for row in results.prompts)]
    ours = [side for side in OURS if side in sides]
    header = ["cache, prompt", *(f"{TITLES[side]}, tokens/s" for side in sides)]
    header += [f"ratio: {TITLES[side]}" for side in ours]
    rows = []
    for type_, n in dict.fromkeys((row.type, row.n) for row in results.prompts):
        speeds = {row.side: row.per_s for row in results.prompts if (row.type, row.n) == (type_, n)}
        best = max((speeds[side] for side in THEIRS if side in speeds), default=None)
        cells = [f"{speeds[side]:.1f}" if side in speeds else "" for side in sides]
        rows.append([f"{type_}, {n:,}", *cells, *(f"{speeds[side] / best:.2f}" if best else "" for side in ours)])
    return ["Prompts, from an empty cache; median.", "", *table(header, rows), ""] if rows else []


def memory_lines(results: Results, n: int) -> list[str]:
    """Highest resident memory of a process that evaluates a prompt of `n` tokens."""
    rows = [[name, f"{size / 2**20:,.0f}"] for name, size in results.peak_bytes.items()]
    title = f"Highest resident memory, a prompt of {n:,} tokens, each in a process of its own."
    return [title, "", *table(["cache, side", "MiB"], rows), ""] if rows else []


def device_memory_lines(results: Results) -> list[str]:
    """What sessions took of a GPU's memory, from before they were made until they had decoded."""
    rows = [[name, f"{size / 2**20:,.1f}"] for name, size in results.device_bytes.items()]
    model = f"{results.model_device_bytes / 2**20:,.0f} MiB for the model"
    title = f"GPU memory taken, as the driver says: {model}, and for each session:"
    return [title, "", *table(["cache, depth, side", "MiB"], rows), ""] if rows else []


def plot(results: Results, path: Path) -> None:
    """Tokens a second, cache bytes that a token reads, and attention's speed, over depth; a column per type."""
    import matplotlib  # noqa: PLC0415

    matplotlib.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415

    types = list(dict.fromkeys(row.type for row in results.decode))
    figure, axes = pyplot.subplots(3, len(types), figsize=(5 * len(types), 10), squeeze=False, sharex=True)
    for column, type_ in enumerate(types):
        speed, size, attention = (row[column] for row in axes)
        for side, title in TITLES.items():
            rows = sorted((r for r in results.decode if (r.type, r.side) == (type_, side)), key=lambda r: r.depth)
            if rows:
                depths = [row.depth for row in rows]
                speed.plot(depths, [1e3 / row.median for row in rows], marker="o", label=title)
                if side in OURS:
                    label = {"pysa": "dense", "plan": "plan"}[side]
                    size.plot(depths, [row.read_bytes / 2**20 for row in rows], marker="o", label=label)
                    found = [(depth, results.attention_gb_per_s(type_, depth, side)) for depth in depths]
                    _plot_known(attention, found, label)
        depths = sorted({row.depth for row in results.decode if row.type == type_})
        memory = [(depth, results.memory_gb_per_s(type_, depth)) for depth in depths]
        _plot_known(attention, memory, "memory, read" if results.bandwidth_of == "cpu" else "memory, copied")
        speed.set(title=f"{type_} cache", ylabel="tokens/s", ylim=(0, None))
        size.set(ylabel="cache read per token, MiB", ylim=(0, None))
        attention.set(xlabel="tokens held", ylabel="attention, GB/s", ylim=(0, None))
        speed.legend()
        size.legend()
        attention.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def _plot_known(axes: Any, points: list[tuple[int, float | None]], label: str) -> None:
    """Over depth, what was measured of it."""
    known = [(depth, speed) for depth, speed in points if speed is not None]
    axes.plot([depth for depth, _ in known], [speed for _, speed in known], marker="o", label=label)
