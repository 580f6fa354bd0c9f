"""Pictures of what the measuring commands found: one per command. pictures.py has the common parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pysa.planning.compare import Comparison
from pysa.planning.needle import Needle
from pysa.planning.perplexity import Perplexity
from pysa.planning.pictures import BELOW, Point, draw_increase, new_figure, sign
from pysa.planning.recall import Recall, RecallRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_CELLS = 80  # of a needle grid that percentages still fit into


def perplexity_picture(found: Perplexity, name: str) -> Figure:
    """The perplexity of the first 1, 2, ... chunks; one standard error around the last."""
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415  as in new_figure

    figure = new_figure(4.5, f"Perplexity of {name}: {found.value:.4f} +- {found.error:.4f}")
    axes = figure.subplots()
    axes.plot(range(1, found.n_chunks + 1), found.running, color=sign(1)["color"], marker=".", label="first chunks")
    low, high = found.value - found.error, found.value + found.error
    axes.axhspan(low, high, color=sign(1)["color"], alpha=0.15, label="all, +- one standard error")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(f"chunks of {found.n_ctx:,} tokens")
    axes.set_ylabel("perplexity")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def compare_picture(found: Mapping[str, Comparison]) -> Figure:
    """Perplexity over the bytes saved, and the KL divergence by position."""
    first = next(iter(found.values()))
    title = f"Plans against the dense model, {first.n_tokens:,} predictions in chunks of {first.n_ctx:,}"
    figure = new_figure(8.0, title)
    above, below = figure.subplots(2)
    points = [Point("dense", 0.0, 0.0)]
    points += [Point(name, one.saving, one.ppl_increase, None, one.ppl_ratio_error) for name, one in found.items()]
    draw_increase(above, points)
    above.set_xlabel("cache saved, % of the dense cache's bytes")
    for i, (name, one) in enumerate(found.items(), start=1):
        position, kl = np.array(one.kl_by_position).T
        below.plot(position, kl, **sign(i), markersize=5, label=name)
    highest = max(kl for one in found.values() for _, kl in one.kl_by_position)
    lowest = min(kl for one in found.values() for _, kl in one.kl_by_position)
    if lowest > 0.0 and highest > 20 * lowest:
        below.set_yscale("log")
    below.set_xlabel("position in the chunk, tokens")
    below.set_ylabel("KL divergence to dense, nats")
    below.grid(alpha=0.3)
    figure.legend(*above.get_legend_handles_labels(), **BELOW)
    return figure


def recall_picture(found: Recall) -> Figure:
    """Shares of right answers by distance and by context length, one line per side."""
    share = found.share("dense")
    figure = new_figure(4.8, f"Key-value recall, {share.n_asked:,} questions each")
    left, right = figure.subplots(1, 2, sharey=True)
    by_distance, by_length = found.by_distance(), found.by_length()
    labels = [f"{row.low:,}-\n{row.high - 1:,}" for row in by_distance]
    _draw_shares(left, found.sides, by_distance, labels)
    left.set_xlabel("distance of the fact, tokens")
    left.set_ylabel("right answers, %")
    _draw_shares(right, found.sides, by_length, [f"{row.low:,}" for row in by_length])
    right.set_xlabel("context, tokens")
    figure.legend(*left.get_legend_handles_labels(), **BELOW)
    return figure


def _draw_shares(axes: Axes, sides: Sequence[str], rows: Sequence[RecallRow], labels: Sequence[str]) -> None:
    x = np.arange(len(rows))
    for i, side in enumerate(sides):
        value = [100 * row.shares[side].value for row in rows]
        error = [100 * row.shares[side].error for row in rows]
        nudge = 0.06 * (i - (len(sides) - 1) / 2)  # equal lines stay visible
        axes.errorbar(x + nudge, value, yerr=error, **sign(i), markersize=6, capsize=3, label=side)
    axes.set_xticks(x, labels)
    axes.set_xlim(-0.5, len(rows) - 0.5)
    axes.set_ylim(-3, 103)
    axes.grid(alpha=0.3)


def needle_picture(found: Needle) -> Figure:
    """The grid of depth by length, dense beside the plans."""
    n_sides = len(found.sides)
    n_columns = 2 if n_sides == 4 else min(n_sides, 3)
    n_rows = -(-n_sides // n_columns)
    n_each = found.cells[found.sides[0]][0][0].n_asked
    height = n_rows * min(6.0, max(2.6, 1.2 + 0.35 * len(found.depths))) + 0.6
    figure = new_figure(height, f"Needle in a haystack: right answers of {n_each} a cell, %")
    panels = figure.subplots(n_rows, n_columns, squeeze=False, sharey=True).ravel()
    for panel in panels[n_sides:]:
        panel.set_visible(False)
    for panel, side in zip(panels, found.sides, strict=False):
        shares = np.array([[100 * cell.value for cell in row] for row in found.cells[side]]).T
        image = panel.imshow(shares, vmin=0, vmax=100, cmap="cividis", aspect="auto", interpolation="nearest")
        panel.set_title(f"{side}: {100 * found.share(side).value:.0f} %", fontsize=11)
        panel.set_xticks(range(len(found.lengths)), [f"{n:,}" for n in found.lengths])
        panel.set_yticks(range(len(found.depths)), [f"{100 * depth:g}" for depth in found.depths])
        panel.set_xlabel("context, tokens")
        if shares.size <= MAX_CELLS:
            for (row, column), share in np.ndenumerate(shares):
                colour = "black" if share > 50 else "white"
                panel.text(column, row, f"{share:.0f}", ha="center", va="center", fontsize=9, color=colour)
    for panel in panels[::n_columns]:
        panel.set_ylabel("depth, % of the haystack")
    figure.colorbar(image, ax=list(panels), label="right answers, %", shrink=0.9)
    return figure
