"""One step of the batch: which lanes take part with how many tokens, and what became of each. No queue, no thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pysa.errors import ContextFullError, EvaluationCancelledError
from pysa.scheduler.lane import Ids, Lane
from pysa.session import Session

LONG_STEP = 16  # tokens from which a step can be stopped between its nodes, at the price of taking the GIL for each

Interrupt = Callable[[], bool]


class Steps(Protocol):
    """What evaluates several sessions together: pysa.Batch."""

    def step(
        self, entries: Sequence[tuple[Session, Ids, bool]], interrupt: Interrupt | None
    ) -> tuple[list[int], npt.NDArray[np.float32]]:
        """As pysa.Batch.step."""

    def close(self) -> None:
        """Lets its memory go."""


@dataclass(frozen=True)
class Entry:
    """A lane's part of a step: a piece of its prompt, or one token whose logits are wanted."""

    lane: Lane
    tokens: Ids
    wants_logits: bool


@dataclass(frozen=True)
class Outcome:
    """What became of an entry: tokens evaluated and the logits (n_vocab,) it wanted, or the error that ended it."""

    lane: Lane
    n_evaluated: int = 0
    logits: npt.NDArray[np.float32] | None = None
    error: Exception | None = None


def plan_step(lanes: Sequence[Lane], n_ubatch: int, n_piece: int) -> list[Entry]:
    """The entries of the next step: a token of every lane that waits for one, and pieces of prompts.

    Args:
        lanes: those with a request, in the order in which prompts have their turn.
        n_ubatch: most prompt tokens of a step.
        n_piece: most prompt tokens of a step while a lane waits for its next token, which takes so much longer.
    """
    entries = [Entry(lane, lane.pending, True) for lane in lanes if lane.is_short]
    n_room = min(n_piece, n_ubatch) if entries else n_ubatch
    for lane in lanes:
        if not lane.is_short and n_room > 0:
            tokens = lane.pending[: min(lane.n_next, n_room)]
            entries.append(Entry(lane, tokens, False))
            n_room -= len(tokens)
    return entries


def run_step(batch: Steps, entries: Sequence[Entry], interrupt: Interrupt) -> Iterator[Outcome]:
    """Evaluates the entries together. Where that fails, each alone: whose fault it was fails again, and nobody else.

    Raises:
        EvaluationCancelledError: `interrupt` said so; entries whose outcome has not been given were not evaluated.
    """
    together = []
    for entry in entries:
        if error := _no_room(entry):
            yield Outcome(entry.lane, error=error)
        elif entry.lane.take_rows is not None and not entry.wants_logits:
            yield _all_rows(entry, interrupt)
        else:
            together.append(entry)
    if not together:
        return
    is_long = sum(len(entry.tokens) for entry in together) >= LONG_STEP
    try:
        counts, rows = batch.step(
            [(entry.lane.session, entry.tokens, entry.wants_logits) for entry in together],
            interrupt if is_long else None,
        )
    except EvaluationCancelledError:
        raise
    except Exception as error:
        if len(together) == 1:
            yield Outcome(together[0].lane, error=error)
            return
        for entry in together:
            yield from run_step(batch, [entry], interrupt)
        return
    row = iter(rows)
    for entry, n in zip(together, counts, strict=True):
        yield Outcome(entry.lane, n, next(row) if entry.wants_logits and n == len(entry.tokens) else None)


def _no_room(entry: Entry) -> ContextFullError | None:
    session = entry.lane.session
    n_left = session.n_ctx - session.n_past
    if len(entry.tokens) <= n_left:
        return None
    return ContextFullError(
        f"context: full: expected at most {n_left} more tokens (n_ctx {session.n_ctx}), got {len(entry.tokens)}; ask "
        "for fewer (max_tokens), or open the model with a larger n_ctx"
    )


def _all_rows(entry: Entry, interrupt: Interrupt) -> Outcome:
    """A piece of a prompt whose own logits are wanted, which a batch does not give."""
    take_rows = entry.lane.take_rows
    assert take_rows is not None
    try:
        take_rows(entry.lane.session.native.eval(entry.tokens, "all", interrupt))
    except EvaluationCancelledError:
        raise
    except Exception as error:
        return Outcome(entry.lane, error=error)
    return Outcome(entry.lane, len(entry.tokens))
