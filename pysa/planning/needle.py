"""One fact in a haystack, by depth and context length, dense beside each plan, on the same documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pysa._arguments import check_int
from pysa.model import Model
from pysa.plan import Plan
from pysa.planning.retrieval import Share, right_answers, with_dense
from pysa.planning.scoring import Advance, Engine, nothing
from pysa.planning.tasks import Document, Tasks


@dataclass(frozen=True)
class Needle:
    """The grid.

    Attributes:
        sides: `dense`, then the plans' names.
        lengths: context lengths, in tokens.
        depths: where the fact stands: 0 at the beginning, 1 just before the question.
        cells: by side, rows of lengths and columns of depths.
        savings: by plan and context length, share of the dense cache's bytes saved.
    """

    sides: tuple[str, ...]
    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    cells: Mapping[str, tuple[tuple[Share, ...], ...]]
    savings: Mapping[str, Mapping[int, float]]

    def share(self, side: str) -> Share:
        """Of one side, over the whole grid."""
        return sum((cell for row in self.cells[side] for cell in row), Share(0, 0))


def documents(tasks: Tasks, n_ctx: int, depth: float, repeats: int, seed: int) -> list[Document]:
    """The documents of one cell, the same for the same arguments."""
    repeats = check_int("repeats", repeats, 1, 2**31 - 1)
    rng = np.random.default_rng([seed, n_ctx, round(depth * 1e6)])
    return [tasks.needle(n_ctx, depth, rng) for _ in range(repeats)]


def needle(
    model: Model,
    tasks: Tasks,
    lengths: Sequence[int],
    depths: Sequence[float],
    plans: Mapping[str, Plan],
    *,
    repeats: int = 3,
    seed: int = 0,
    engine: Engine | None = None,
    advance: Advance = nothing,
) -> Needle:
    """Asks the dense model and each plan for the needles of every cell.

    Args:
        tasks: makes the documents.
        lengths: context lengths, in tokens.
        depths: 0..1.
        plans: by name; none measures the dense model alone.
        repeats: needles of a cell.
        seed: of words and filler.
        engine: how the sessions are made.
        advance: is told the tokens evaluated, all sides together.

    Raises:
        ArgumentError: a length too short, or an argument out of range.
        PlanError: a plan does not fit the model.
    """
    engine, sides = engine or Engine(), with_dense(model, plans)
    haystacks = [[documents(tasks, n_ctx, depth, repeats, seed) for depth in depths] for n_ctx in lengths]
    cells: dict[str, list[list[Share]]] = {side: [] for side in sides}
    with engine.sessions(model, max(lengths), sides) as sessions:
        for row in haystacks:
            for side in sides:
                cells[side].append([])
            for cell in row:
                for side, session in sessions.items():
                    right = [right_answers(session, document, advance)[0] for document in cell]
                    cells[side][-1].append(Share(sum(right), len(right)))
    savings = {name: {n: engine.saving(model, n, plan) for n in lengths} for name, plan in plans.items()}
    grid = {side: tuple(map(tuple, rows)) for side, rows in cells.items()}
    return Needle(tuple(sides), tuple(lengths), tuple(depths), grid, savings)


def n_evaluated(lengths: Sequence[int], depths: Sequence[float], repeats: int, n_plans: int) -> int:
    """Tokens that needle() will have reported."""
    return sum(lengths) * len(depths) * repeats * (n_plans + 1)
