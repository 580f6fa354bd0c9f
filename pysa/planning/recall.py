"""Key-value recall by context length and by distance, dense beside each plan, on the same documents."""

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

N_FACTS, N_PER_DOCUMENT = 12, 6


@dataclass(frozen=True)
class Question:
    """One question: the length of its document, how far back its fact stands, and who answered it."""

    n_ctx: int
    distance: int
    right: Mapping[str, bool]


@dataclass(frozen=True)
class RecallRow:
    """Questions with something in common: `low` <= their context length or distance < `high`."""

    low: int
    high: int
    shares: Mapping[str, Share]


@dataclass(frozen=True)
class Recall:
    """Every question asked.

    Attributes:
        sides: `dense`, then the plans' names.
        questions: in the order asked.
        savings: by plan and context length, share of the dense cache's bytes saved.
    """

    sides: tuple[str, ...]
    questions: tuple[Question, ...]
    savings: Mapping[str, Mapping[int, float]]

    def share(self, side: str, n_ctx: int | None = None) -> Share:
        """Of one side, over all questions or those of one context length."""
        right = [q.right[side] for q in self.questions if n_ctx in (None, q.n_ctx)]
        return Share(sum(right), len(right))

    def by_length(self) -> list[RecallRow]:
        """A row per context length."""
        lengths = sorted({q.n_ctx for q in self.questions})
        return [self._row(n, n + 1, [q for q in self.questions if q.n_ctx == n]) for n in lengths]

    def by_distance(self) -> list[RecallRow]:
        """A row per doubling of the distance; rows without questions are left out."""
        n_bits = sorted({q.distance.bit_length() for q in self.questions})
        return [
            self._row(1 << (n - 1), 1 << n, [q for q in self.questions if q.distance.bit_length() == n]) for n in n_bits
        ]

    def _row(self, low: int, high: int, questions: Sequence[Question]) -> RecallRow:
        shares = {side: Share(sum(q.right[side] for q in questions), len(questions)) for side in self.sides}
        return RecallRow(low, high, shares)


def documents(tasks: Tasks, n_ctx: int, n_questions: int, seed: int) -> list[Document]:
    """Documents of `n_ctx` tokens with `n_questions` in all, the same for the same arguments."""
    n_questions = check_int("n_questions", n_questions, 1, 2**31 - 1)
    rng = np.random.default_rng([seed, n_ctx])
    counts = [min(N_PER_DOCUMENT, n_questions - n) for n in range(0, n_questions, N_PER_DOCUMENT)]
    return [tasks.recall(n_ctx, rng, N_FACTS, n) for n in counts]


def recall(
    model: Model,
    tasks: Tasks,
    lengths: Sequence[int],
    plans: Mapping[str, Plan],
    *,
    n_questions: int = 48,
    seed: int = 0,
    engine: Engine | None = None,
    advance: Advance = nothing,
) -> Recall:
    """Asks the dense model and each plan the same questions.

    Args:
        tasks: makes the documents; twelve facts and at most six questions each.
        lengths: context lengths, in tokens.
        plans: by name; none measures the dense model alone.
        n_questions: for each context length.
        seed: of words and filler.
        engine: how the sessions are made.
        advance: is told the tokens evaluated, all sides together.

    Raises:
        ArgumentError: a length too short for the facts, or an argument out of range.
        PlanError: a plan does not fit the model.
    """
    engine, sides = engine or Engine(), with_dense(model, plans)
    exams = {n_ctx: documents(tasks, n_ctx, n_questions, seed) for n_ctx in lengths}
    questions: list[Question] = []
    with engine.sessions(model, max(lengths), sides) as sessions:
        for n_ctx, exam in exams.items():
            for document in exam:
                right = {side: right_answers(session, document, advance) for side, session in sessions.items()}
                questions += [
                    Question(n_ctx, answer.distance, {side: found[i] for side, found in right.items()})
                    for i, answer in enumerate(document.answers)
                ]
    savings = {name: {n: engine.saving(model, n, plan) for n in lengths} for name, plan in plans.items()}
    return Recall(tuple(sides), tuple(questions), savings)


def n_evaluated(lengths: Sequence[int], n_questions: int, n_plans: int) -> int:
    """Tokens that recall() will have reported."""
    return sum(lengths) * -(-n_questions // N_PER_DOCUMENT) * (n_plans + 1)
