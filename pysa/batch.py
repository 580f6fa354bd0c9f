"""`pysa.Batch`: several sessions of one model evaluated in one graph. A thin, checked wrapper of the native batch.

Which sessions take part is decided anew in every step; who decides is pysa.scheduler.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pysa import _native
from pysa._arguments import Tokens, check_bool, check_tokens
from pysa.errors import ArgumentError

if TYPE_CHECKING:
    from pysa.model import Model
    from pysa.session import Session


class Batch:
    """Evaluates sessions of one model together: the weights are read once for all of them.

    One thread at a time, as for the sessions in it.

    Args:
        model: whose sessions come.
    """

    def __init__(self, model: Model) -> None:
        self._batch: _native.Batch | None = _native.Batch(model.native)
        self._n_vocab = model.n_vocab

    def step(
        self, entries: Sequence[tuple[Session, Tokens, bool]], interrupt: Callable[[], bool] | None = None
    ) -> tuple[list[int], npt.NDArray[np.float32]]:
        """Evaluates the beginning of each entry's tokens, in one graph. All or nothing: an error changes no session.

        Args:
            entries: a session; its next tokens, of which one ubatch at most is evaluated; whether the logits of their
                last one are wanted. Each session once.
            interrupt: asked between the nodes of the graph; True stops the evaluation.

        Returns:
            How many tokens of each entry were evaluated; and float32 (n_rows, n_vocab), a row, in order, for each entry
            that wanted logits and was evaluated to its end.

        Raises:
            ArgumentError: no entries, a session twice or of another model, or tokens that are no ids.
            ContextFullError: a session's context cannot hold its part.
            EvaluationCancelledError: `interrupt` said so.
            DeviceError: not enough memory.
            SessionBusyError: another thread is in one of the sessions.
        """
        if self._batch is None:
            raise ArgumentError("batch: it is closed: expected an open batch; make another")
        if not entries:
            raise ArgumentError("entries: empty: expected at least one session with its tokens, got none")
        checked = [
            (
                session.native,
                check_tokens(tokens, self._n_vocab, name=f"entries[{i}].tokens"),
                check_bool(f"entries[{i}].wants_logits", wants_logits),
            )
            for i, (session, tokens, wants_logits) in enumerate(entries)
        ]
        return self._batch.step(checked, interrupt)

    def close(self) -> None:
        """Lets its memory go; the sessions are not its own."""
        self._batch = None
