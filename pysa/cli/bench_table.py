"""Lines of text for what `pysa bench` measured: a table, or a few lines per depth where the terminal is too narrow."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pysa.cli.placement import Placement
from pysa.cli.render import size_text

if TYPE_CHECKING:
    from pysa.cli.bench import Bench, Row

COLUMNS = ("depth", "prompt t/s", "t/s", "ms/token", "cache", "saved", "V read", "attn GB/s", "of memory", "GPU memory")
WIDTH = 11


def bench_lines(bench: Bench, width: int) -> list[str]:
    """Everything `pysa bench` prints, at most `width` characters a line as far as the names of files allow."""
    model = bench.model
    window = f", window {model['n_sink']:,} + {model['n_recent']:,}" if model["n_recent"] else ""
    kernel = f", {model['kernel']}" if model["kernel"] != "ggml" else ""
    filled = any(row.depth for row in bench.rows) and bench.depth_by == "fill"
    lines = [
        f"model   {model['file']}",
        f"plan    {model['plan']}{window}",
        f"cache   {bench.type_k} keys, {bench.type_v} values",
        f"engine  {model['attention']}{kernel}; threads: {model['n_threads']}",
        *_device_lines(bench),
        f"depth   {'filled with copied rows' if filled else 'reached by a prompt'}",
        "",
    ]
    table = [COLUMNS, *(_cells(row, bench.share(row)) for row in bench.rows)]
    used = [i for i in range(len(COLUMNS)) if any(cells[i] for cells in table[1:])]
    if len(used) * WIDTH <= width:
        return lines + ["".join(f"{cells[i]:>{WIDTH}}" for i in used) for cells in table]
    for cells in table[1:]:
        lines += [f"{COLUMNS[i]:<{WIDTH}}{cells[i]}" for i in used if cells[i]] + [""]
    return lines[:-1]


def _device_lines(bench: Bench) -> list[str]:
    """Where it ran, and how fast the memory of the cache is, where that is known."""
    model, speed = bench.model, bench.bandwidth_gb_per_s
    how = "memory  read" if bench.bandwidth_of == "cpu" else "memory  copied, read and written"
    memory = [] if speed is None else [f"{how} at {speed:.1f} GB/s"]
    placement = Placement(**model["placement"]).text()
    if placement is None:
        return memory
    driver = f", driver {model['driver']}" if model["driver"] else ""
    weights = bench.device_weights_bytes
    taken = "" if weights is None else f"; {size_text(weights)} of its memory taken by the model"
    return [f"device  {placement}", f"card    {model['card']}{driver}{taken}", *memory]


def _cells(row: Row, share: float | None) -> tuple[str, ...]:
    """One cell per column; empty for what was not measured, or not seen above the noise."""
    attention = row.attention_gb_per_s
    return (
        f"{row.depth:,}",
        "" if row.prompt_per_s is None else f"{row.prompt_per_s:.1f}",
        f"{1e3 / row.ms_per_token:.1f}",
        f"{row.ms_per_token:.2f}",
        size_text(row.cache["total"]),
        f"{100 * row.saving:.1f} %" if row.saving else "",
        f"{100 * row.values_read:.1f} %" if row.values_read < 1.0 else "",
        "" if attention is None else f"{attention:.1f}",
        "" if share is None else f"{100 * share:.0f} %",
        "" if row.device_bytes is None else size_text(row.device_bytes),
    )
