"""Pictures of plans and of what was measured, as matplotlib figures and PNG files. The only room that draws pixels.

matplotlib (the extra `plots`) is imported when a picture is asked for. Figures are 900 pixels wide.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pysa._arguments import PathLike, check_path
from pysa.errors import ArgumentError
from pysa.plan import Plan

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 100
WIDTH = 9.0  # inches
COLOURS = ("#222222", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31")
MARKERS = "osD^vP*X"
MAX_LABELS = 24  # of an axis
N_NUMBERED = 200  # cells of a plan that a number still fits into
BELOW: dict[str, Any] = {"loc": "outside lower center", "ncols": 3, "frameon": False}  # where legends stand


@dataclass(frozen=True)
class Point:
    """A plan in quality_picture(). Shares: 0.01 is one percent.

    Attributes:
        name: as the legend has it.
        saving: share of the dense cache's bytes saved.
        ppl_increase: how much more perplexity than dense.
        recall: share of right answers, if asked.
        ppl_error: one standard error of ppl_increase.
    """

    name: str
    saving: float
    ppl_increase: float
    recall: float | None = None
    ppl_error: float = 0.0


def check_picture(path: PathLike, force: bool = False) -> Path:
    """Returns the path if a picture can be written there, so that nobody measures for nothing.

    Raises:
        ArgumentError: matplotlib is missing, the file exists and `force` is False, or there is no such folder.
    """
    target = Path(check_path("png", path))
    if importlib.util.find_spec("matplotlib") is None:
        raise ArgumentError(f"{target}: pictures need matplotlib, which is not installed; pip install pysa[plots]")
    if target.exists() and not force:
        raise ArgumentError(f"{target}: exists: expected a new file; --force replaces it")
    if not target.parent.is_dir():
        raise ArgumentError(f"{target}: no such folder: expected {target.parent} to be there; make it first")
    return target


def save_picture(figure: Figure, path: PathLike, force: bool = False) -> None:
    """Writes a figure as PNG, beside its name and then renamed.

    Raises:
        ArgumentError: as check_picture(), or it cannot be written.
    """
    target = check_picture(path, force)
    temporary = target.with_name(f".{target.name}.tmp-{os.getpid()}")
    try:
        figure.savefig(temporary, format="png", dpi=DPI)
        os.replace(temporary, target)
    except OSError as error:
        raise ArgumentError(f"{target}: cannot be written: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


def new_figure(height: float, title: str) -> Figure:
    """An empty figure of the common width; `height` in inches."""
    from matplotlib.figure import Figure  # noqa: PLC0415  takes a while, and few ask for pictures

    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    figure.suptitle(title, fontsize=13)
    return figure


# ---- what a model's heads do


def similarity_picture(
    similarity: npt.NDArray[Any], n_layer: int, n_head: int, title: str = "Similarity of distant attention"
) -> Figure:
    """A heat map of all pairs of heads.

    Args:
        similarity: (n_layer * n_head, n_layer * n_head), 0..1, as Calibration.similarity.
        n_layer: layers.
        n_head: query heads of a layer.
        title: above the picture.
    """
    figure = new_figure(8.0, title)
    axes = figure.subplots()
    image = axes.imshow(similarity, vmin=0.0, vmax=1.0, cmap="viridis", interpolation="nearest")
    figure.colorbar(image, ax=axes, label="1 - Jensen-Shannon divergence (base 2)", shrink=0.8)
    layers = _some(n_layer)
    for axis, set_label in ((axes.xaxis, axes.set_xlabel), (axes.yaxis, axes.set_ylabel)):
        axis.set_ticks([(il + 0.5) * n_head - 0.5 for il in layers], [str(il) for il in layers])
        set_label(f"layer, {n_head} heads each")
    if n_layer <= MAX_LABELS:
        for edge in range(n_head, n_layer * n_head, n_head):
            axes.axhline(edge - 0.5, color="white", linewidth=0.4, alpha=0.5)
            axes.axvline(edge - 0.5, color="white", linewidth=0.4, alpha=0.5)
    return figure


def plan_picture(plan: Plan, title: str = "") -> Figure:
    """A cell per head: its colour is the layer whose distant scores it uses; local heads have none."""
    window = f", window {plan.n_sink:,} + {plan.n_recent:,}" if plan.n_recent else ""
    figure = new_figure(min(14.0, max(3.5, 1.8 + 0.3 * plan.n_layer)), title or f"Sharing plan: {plan.method}{window}")
    axes = figure.subplots()
    draw_plan(axes, plan)
    return figure


def draw_plan(axes: Axes, plan: Plan) -> None:
    """The picture of plan_picture() in one of a figure's axes."""
    from matplotlib import colormaps  # noqa: PLC0415

    figure = axes.get_figure()
    assert figure is not None
    kinds, colours = plan.kinds(), colormaps["turbo"]
    sources = np.ma.masked_less(plan.score_layer, 0)
    image = axes.imshow(sources, vmin=0, vmax=plan.n_layer - 1, cmap=colours, aspect="auto", interpolation="nearest")
    figure.colorbar(image, ax=axes, label="source layer", pad=0.02, ticks=_some(plan.n_layer))
    for cut in range(1, plan.n_layer):
        axes.axhline(cut - 0.5, color="white", linewidth=0.8)
    for cut in range(1, plan.n_head):
        axes.axvline(cut - 0.5, color="white", linewidth=0.8)
    size = min(7.0, 160 / plan.n_head, 160 / plan.n_layer) ** 2  # square points
    is_numbered = kinds.size <= N_NUMBERED
    label = "follower (its source layer.head)" if is_numbered else "follower (colour of its source layer)"
    for kind, marker, colour, edge, says in (
        ("owner", "s", "white", "black", "owner (colour of its own layer)"),
        ("local", "o", "#999999", "#999999", "local"),
    ):
        layer, head = np.nonzero(kinds == kind)
        if layer.size:
            axes.scatter(head, layer, s=size, c=colour, marker=marker, edgecolors=edge, linewidths=0.8, label=says)
    layer, head = np.nonzero(kinds == "follower")
    if layer.size:
        axes.scatter([], [], marker="s", s=60, color=colours(0.25), label=label)
    for il, h in zip(layer.tolist(), head.tolist(), strict=True):
        if is_numbered:
            source = int(plan.score_layer[il, h])
            red, green, blue, _ = colours(source / max(1, plan.n_layer - 1))
            ink = "black" if 0.3 * red + 0.6 * green + 0.1 * blue > 0.5 else "white"
            axes.text(h, il, f"{source}.{plan.score_head[il, h]}", ha="center", va="center", fontsize=9, color=ink)
    axes.set_xticks(_some(plan.n_head))
    axes.set_yticks(_some(plan.n_layer))
    axes.set_xlabel("head")
    axes.set_ylabel("layer")
    figure.legend(*axes.get_legend_handles_labels(), **BELOW)


# ---- what plans cost


def quality_picture(points: Sequence[Point], title: str = "Quality by cache saved") -> Figure:
    """Perplexity, and recall where it was asked, over the share of the cache that each plan saves."""
    has_recall = any(point.recall is not None for point in points)
    figure = new_figure(7.0 if has_recall else 4.5, title)
    panels = figure.subplots(2 if has_recall else 1, sharex=True, squeeze=False).ravel()
    draw_increase(panels[0], points)
    if has_recall:
        for i, point in enumerate(points):
            if point.recall is not None:
                panels[1].plot(100 * point.saving, 100 * point.recall, **sign(i), markersize=8, linestyle="")
        panels[1].set_ylabel("recall, % right")
        panels[1].set_ylim(-3, 103)
        panels[1].grid(alpha=0.3)
    panels[-1].set_xlabel("cache saved, % of the dense cache's bytes")
    figure.legend(*panels[0].get_legend_handles_labels(), **BELOW)
    return figure


def draw_increase(axes: Axes, points: Sequence[Point]) -> None:
    """Perplexity over the saving; logarithmic above one percent where plans differ by much."""
    for i, point in enumerate(points):
        error = 100 * point.ppl_error
        axes.errorbar(
            100 * point.saving,
            100 * point.ppl_increase,
            yerr=error,
            **sign(i),
            markersize=8,
            linestyle="",
            capsize=3,
            label=point.name,
        )
    if max((point.ppl_increase for point in points), default=0.0) > 0.2:
        axes.set_yscale("symlog", linthresh=1.0)
        axes.yaxis.set_major_formatter("{x:g}")
    axes.axhline(0.0, color="#888888", linewidth=0.8)
    axes.set_ylabel("perplexity, % more than dense")
    axes.grid(alpha=0.3)


def sign(i: int) -> dict[str, Any]:
    """Colour and marker of the i-th plan."""
    return {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}


def _some(n: int) -> list[int]:
    """0..n-1, thinned out to what an axis can label."""
    return list(range(0, n, -(-n // MAX_LABELS)))
