"""Lines of text and JSON for what the measuring commands found. Errors behind `+-` are one standard error."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pysa.planning.compare import Comparison
from pysa.planning.needle import Needle
from pysa.planning.perplexity import Perplexity
from pysa.planning.recall import Recall, RecallRow
from pysa.planning.retrieval import DENSE, Share

GAP = "   "  # between columns


def facts_lines(facts: Mapping[str, Any]) -> list[str]:
    """The head of every report: what ran."""
    text, engine = facts["text"], facts["engine"]
    lines = [f"model   {facts['model']['file']}"]
    if text is not None:
        files = text["files"]
        names = Path(files[0]).name if len(files) == 1 else f"{len(files)} files"
        lines.append(f"text    {names}: {text['n_tokens']:,} tokens, sha256 {text['sha256'][:16]}")
    for name, plan in facts["plans"].items():
        window = f", window {plan['n_sink']:,} + {plan['n_recent']:,}" if plan["n_recent"] else ""
        saving = f", saves {100 * plan['saving']:.1f} % at {plan['saving_at']:,} tokens" if plan["saving"] else ""
        lines.append(f"plan    {name}: {plan['method']}{window}{saving}")
    if facts["model"]["n_gpu_layers"]:
        lines.append(f"device  {facts['model']['device']}: {facts['model']['n_gpu_layers']} layers")
    return [*lines, f"cache   {engine['type_k']} keys, {engine['type_v']} values"]


def perplexity_lines(found: Perplexity, width: int) -> list[str]:
    """What `pysa perplexity` prints below its head."""
    scored = _scored(found.n_ctx, found.n_chunks, found.n_tokens)
    return [*_fact("scored", scored, width), "", f"perplexity {found.value:.4f} +- {found.error:.5f}"]


def compare_lines(found: Mapping[str, Comparison], width: int) -> list[str]:
    """What `pysa compare` prints below its head."""
    first = next(iter(found.values()))
    lines = _fact("scored", _scored(first.n_ctx, first.n_samples, first.n_tokens), width)
    for name, one in found.items():
        if one.n_distant < one.n_tokens:
            what = f"{name}: {one.n_distant:,} of them have distant tokens; the others are as dense"
            lines += _fact("note", what, width)
    rows = [["plan", "saved", "perplexity", "change", "KL, nats", "same top-1"]]
    rows.append([DENSE, "", _perplexity(first.ppl_dense, first.ppl_dense_error), "", "", ""])
    for name, one in found.items():
        rows.append(
            [
                name,
                f"{100 * one.saving:.1f} %",
                _perplexity(one.ppl_shared, one.ppl_shared_error),
                f"{100 * one.ppl_increase:+.2f} +- {100 * one.ppl_ratio_error:.2f} %",
                _pair(one.kl, one.kl_error, 4),
                f"{_pair(100 * one.same_top1, 100 * one.same_top1_error, 1)} %",
            ]
        )
    return [*lines, "", *table_lines(rows, width)]


def recall_lines(found: Recall, width: int) -> list[str]:
    """What `pysa recall` prints below its head."""
    by_length = [[f"{row.low:,}", *_row_cells(row, found.sides)] for row in found.by_length()]
    by_distance = [[f"{row.low:,}-{row.high - 1:,}", *_row_cells(row, found.sides)] for row in found.by_distance()]
    head = ["questions", *found.sides]
    lines = table_lines([["context", *head], *by_length], width)
    return [*lines, "", *table_lines([["distance", *head], *by_distance], width)]


def needle_lines(found: Needle, width: int) -> list[str]:
    """What `pysa needle` prints below its head: a grid per side."""
    lines: list[str] = []
    for side in found.sides:
        share = found.share(side)
        lines += textwrap.wrap(f"{side}: {share.n_right:,} of {share.n_asked:,} right, {_percent(share)}", width)
        rows = [["depth", *(f"{n:,}" for n in found.lengths)]]
        for i, depth in enumerate(found.depths):
            cells = [f"{row[i].n_right}/{row[i].n_asked}" for row in found.cells[side]]
            rows.append([f"{100 * depth:g} %", *cells])
        lines += [*table_lines(rows, width), ""]
    return lines[:-1]


def recall_json(found: Recall) -> dict[str, Any]:
    """Rows by context length and by distance; `low` <= distance < `high`."""

    def row(one: RecallRow) -> dict[str, Any]:
        sides = {side: _share_json(share) for side, share in one.shares.items()}
        return {"n_questions": one.shares[DENSE].n_asked, "sides": sides}

    return {
        "all": {side: _share_json(found.share(side)) for side in found.sides},
        "by_length": [{"n_ctx": one.low, **row(one)} for one in found.by_length()],
        "by_distance": [{"low": one.low, "high": one.high, **row(one)} for one in found.by_distance()],
        "savings": _savings_json(found.savings),
    }


def needle_json(found: Needle) -> dict[str, Any]:
    """`right` has a row per length and a column per depth: right answers of `n_asked`."""
    right = {side: [[cell.n_right for cell in row] for row in rows] for side, rows in found.cells.items()}
    return {
        "all": {side: _share_json(found.share(side)) for side in found.sides},
        "lengths": list(found.lengths),
        "depths": list(found.depths),
        "n_asked": found.cells[DENSE][0][0].n_asked,
        "right": right,
        "savings": _savings_json(found.savings),
    }


def table_lines(rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Aligned columns, the first row a header; where that is too wide, a few lines per row."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    if sum(widths) + len(GAP) * (len(widths) - 1) <= width:
        first = [f"{row[0]:<{widths[0]}}" for row in rows]
        rest = [[f"{cell:>{w}}" for cell, w in zip(row[1:], widths[1:], strict=True)] for row in rows]
        return [GAP.join([a, *b]).rstrip() for a, b in zip(first, rest, strict=True)]
    name_width = max(map(len, rows[0])) + 2
    lines: list[str] = []
    for row in rows[1:]:
        lines += [f"{name:<{name_width}}{cell}" for name, cell in zip(rows[0], row, strict=True) if cell] + [""]
    return lines[:-1]


def _fact(name: str, text: str, width: int) -> list[str]:
    return textwrap.wrap(f"{name:<8}{text}", width, subsequent_indent=" " * 8)


def _scored(n_ctx: int, n_chunks: int, n_tokens: int) -> str:
    chunks = f"of each of {n_chunks:,} chunks" if n_chunks > 1 else "of one chunk"
    return f"positions {n_ctx // 2:,} to {n_ctx - 2:,} {chunks} of {n_ctx:,} tokens: {n_tokens:,} predictions"


def _row_cells(row: RecallRow, sides: Sequence[str]) -> list[str]:
    return [f"{row.shares[DENSE].n_asked:,}", *(_percent(row.shares[side]) for side in sides)]


def _percent(share: Share) -> str:
    return f"{100 * share.value:.1f} +- {100 * share.error:.1f} %"


def _perplexity(value: float, error: float) -> str:
    return _pair(value, error, 3 if value < 1000 else 1)


def _pair(value: float, error: float, n_digits: int) -> str:
    return f"{value:.{n_digits}f} +- {error:.{n_digits}f}"


def _share_json(share: Share) -> dict[str, Any]:
    return {"n_right": share.n_right, "n_asked": share.n_asked, "share": share.value, "error": share.error}


def _savings_json(savings: Mapping[str, Mapping[int, float]]) -> dict[str, dict[str, float]]:
    return {name: {str(n): saving for n, saving in one.items()} for name, one in savings.items()}
