"""Whether a model answers the questions of a document, and shares of right answers. recall.py and needle.py ask."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from pysa.errors import ArgumentError
from pysa.model import Model
from pysa.plan import Plan
from pysa.planning.scoring import Advance, evaluate, nothing
from pysa.planning.tasks import Document
from pysa.session import Session

DENSE = "dense"


@dataclass(frozen=True)
class Share:
    """Right answers of those asked for."""

    n_right: int
    n_asked: int

    @property
    def value(self) -> float:
        """The share."""
        return self.n_right / self.n_asked

    @property
    def error(self) -> float:
        """One standard error, answers taken as independent."""
        return math.sqrt(self.value * (1.0 - self.value) / self.n_asked)

    def __add__(self, other: Share) -> Share:
        return Share(self.n_right + other.n_right, self.n_asked + other.n_asked)


def right_answers(session: Session, document: Document, advance: Advance = nothing) -> list[bool]:
    """Whether the likeliest tokens are exactly the answer, for each of a document's answers.

    The document is evaluated once, from an empty cache, with the right answers in it: greedy generation gives an answer
    exactly if each of its tokens is the likeliest one after the right tokens before it.
    """
    first = document.answers[0].start - 1
    end = document.answers[-1].start + document.answers[-1].n_tokens - 1
    session.reset()
    evaluate(session, document.tokens[:first], advance)
    likeliest = session.eval(document.tokens[first:end], logits="all").argmax(axis=1)
    advance(len(document.tokens) - first)
    is_right = likeliest == document.tokens[first + 1 : end + 1]
    return [bool(is_right[a.start - 1 - first :][: a.n_tokens].all()) for a in document.answers]


def with_dense(model: Model, plans: Mapping[str, Plan]) -> dict[str, Plan]:
    """The dense model first, then the plans.

    Raises:
        ArgumentError: a plan has the dense model's name.
    """
    if DENSE in plans:
        raise ArgumentError(f"plans: {DENSE!r} is the dense model's own name: expected another one")
    return {DENSE: Plan.dense(model.n_layer, model.n_head), **plans}
