"""A sharing plan as a picture in the terminal: one row a layer, one cell a head.

Wide, a cell holds a follower's source layer. Too wide for the terminal, cells are glyphs and the row's sources stand at
its end; wider still, a cell stands for several heads. Above MAX_ROWS layers, equal neighbours share a row.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from pysa.cli.console import Console
from pysa.plan import Plan

MAX_ROWS = 40
ROOM_FOR_SOURCES = 12  # columns


@dataclass
class Frame:
    """How a picture is laid out; sizes in columns."""

    rows: list[tuple[int, int]]  # first and last layer
    margin: int
    cell: int
    is_wide: bool
    n_fold: int  # heads a cell

    @classmethod
    def of(cls, plan: Plan, width: int) -> Frame:
        """The most telling layout that fits in `width` columns."""
        rows = _row_groups(plan)
        margin = max(len("layer"), *(len(_label(row)) for row in rows)) + 2
        cell = len(str(max(plan.n_layer, plan.n_head) - 1)) + 1
        room = width - margin
        if plan.n_head * cell <= room:
            return cls(rows, margin, cell, True, 1)
        return cls(rows, margin, 1, False, math.ceil(plan.n_head / max(8, room - ROOM_FOR_SOURCES)))


def plan_lines(plan: Plan, console: Console) -> list[str]:
    """The plan in words, as a picture, and what the picture's signs mean."""
    kinds = plan.kinds()
    counts = {kind: int((kinds == kind).sum()) for kind in ("owner", "follower", "local")}
    shares = ", ".join(f"{n} {kind} ({100 * n / kinds.size:.0f} %)" for kind, n in counts.items() if n)
    window = f"{plan.n_sink:,} sinks + {plan.n_recent:,} recent tokens" if plan.n_recent else "none"
    state = "" if plan.enabled else "; disabled, the file runs dense"
    frame = Frame.of(plan, console.width)
    return [
        f"plan        {plan.method}, distant {plan.distant}, window {window}{state}",
        f"heads       {shares}",
        "",
        *_picture(plan, frame, console),
        "",
        *_legend(plan, frame, console, [kind for kind, n in counts.items() if n]),
    ]


def _picture(plan: Plan, frame: Frame, console: Console) -> Iterable[str]:
    title = f"{'layer':>{frame.margin - 2}}  "
    if frame.is_wide:
        yield title + "".join(f"{h:>{frame.cell}}" for h in range(plan.n_head))
    else:
        yield f"{title}heads 0-{plan.n_head - 1}" + (f", {frame.n_fold} in a cell" if frame.n_fold > 1 else "")
    for row in frame.rows:
        cells = _wide_row(plan, row[0], frame, console) if frame.is_wide else _narrow_row(plan, row[0], frame, console)
        yield f"{_label(row):>{frame.margin - 2}}  {cells}"


def _wide_row(plan: Plan, il: int, frame: Frame, console: Console) -> str:
    cells = []
    for kind, source in zip(plan.kinds()[il].tolist(), plan.score_layer[il].tolist(), strict=True):
        text = str(source) if kind == "follower" else console.glyph(kind)
        cells.append(console.paint(kind, f"{text:>{frame.cell}}"))
    return "".join(cells)


def _narrow_row(plan: Plan, il: int, frame: Frame, console: Console) -> str:
    kinds = plan.kinds()[il]
    cells = []
    for first in range(0, plan.n_head, frame.n_fold):
        found = set(kinds[first : first + frame.n_fold].tolist())
        kind = found.pop() if len(found) == 1 else "mixed"
        cells.append(console.paint(kind, console.glyph(kind)))
    sources = sorted(set(plan.score_layer[il][kinds == "follower"].tolist()))
    if not sources:
        return "".join(cells)
    arrow, text = console.glyph("from"), _ranges(sources)
    if len(arrow) + len(text) + 3 > console.width - frame.margin - len(cells):
        text = f"{len(sources)} layers"
    return f"{''.join(cells)}  {arrow} {text}"


def _legend(plan: Plan, frame: Frame, console: Console, kinds: Sequence[str]) -> Iterable[str]:
    what = "scores" if plan.distant == "scores" else "keys"
    named = "the layer in the cell" if frame.is_wide else f"the layers after {console.glyph('from')}"
    says = {
        "owner": "owner: scores every token and keeps the keys for it",
        "follower": f"follower: reuses the distant {what} of {named}",
        "local": "local: sees its window only",
    }
    for kind in kinds:
        sign = "n" if kind == "follower" and frame.is_wide else console.glyph(kind)
        yield f"{'':<12}{console.paint(kind, sign)} {says[kind]}"
    if frame.n_fold > 1:
        yield f"{'':<12}{console.paint('mixed', console.glyph('mixed'))} mixed: several kinds in one cell"


def _row_groups(plan: Plan) -> list[tuple[int, int]]:
    if plan.n_layer <= MAX_ROWS:
        return [(il, il) for il in range(plan.n_layer)]
    # An owner's source is its own layer, which would tell equal layers apart.
    follows = np.where(plan.kinds() == "follower", plan.score_layer, np.where(plan.score_layer < 0, -1, -2))
    groups = [(0, 0)]
    for il in range(1, plan.n_layer):
        if np.array_equal(follows[il], follows[il - 1]):
            groups[-1] = (groups[-1][0], il)
        else:
            groups.append((il, il))
    return groups


def _label(row: tuple[int, int]) -> str:
    return str(row[0]) if row[0] == row[1] else f"{row[0]}-{row[1]}"


def _ranges(numbers: Sequence[int]) -> str:
    """`[0, 4, 5, 6]` as `0,4-6`."""
    spans: list[list[int]] = []
    for n in numbers:
        if spans and n == spans[-1][1] + 1:
            spans[-1][1] = n
        else:
            spans.append([n, n])
    return ",".join(_label((a, b)) for a, b in spans)
