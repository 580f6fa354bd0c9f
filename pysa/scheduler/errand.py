"""Work that takes a session for itself, a piece at a time between the steps of the batch: embeddings. And its queue."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pysa.errors import EvaluationCancelledError
from pysa.scheduler.ticket import Ticket

if TYPE_CHECKING:
    from pysa.session import Session


Ids = npt.NDArray[np.int32]


class Errand(ABC):
    """One request that no lane serves; the scheduler lends it a session, one errand after another."""

    def __init__(self) -> None:
        self.finish_reason: str | None = None

    @abstractmethod
    def step(self, session: Session, n_most: int, interrupt: Callable[[], bool]) -> bool:
        """Does one piece: evaluates at most `n_most` tokens; whether that was the last."""

    @abstractmethod
    def result(self) -> Any:
        """What came of it."""

    def take_chunks(self) -> list[dict[str, Any]]:
        """An errand does not stream."""
        return []

    def finish(self, reason: str) -> None:
        """Ends it from outside."""
        self.finish_reason = reason


class RowsErrand(Errand):
    """The hidden rows of some texts, each from an empty cache.

    Args:
        texts: token ids of each text; none of them empty.
        pool: takes a text's rows (n_tokens, n_embd) when all are there; what it gives is kept instead.
    """

    def __init__(
        self, texts: Sequence[Ids], pool: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]
    ) -> None:
        super().__init__()
        self._texts, self._pool = list(texts), pool
        self._pieces: list[npt.NDArray[np.float32]] = []  # of the text under way
        self._n_read = 0  # its tokens so far
        self._pooled: list[npt.NDArray[np.float32]] = []

    def step(self, session: Session, n_most: int, interrupt: Callable[[], bool]) -> bool:
        """Evaluates a piece of one text."""
        if len(self._pooled) == len(self._texts):
            return True
        text = self._texts[len(self._pooled)]
        if self._n_read == 0:
            session.reset()
        piece = text[self._n_read : self._n_read + n_most]
        self._pieces.append(session.native.eval(piece, "embeddings", interrupt))
        self._n_read += len(piece)
        if self._n_read == len(text):
            self._pooled.append(self._pool(np.concatenate(self._pieces)))
            self._pieces, self._n_read = [], 0
        return len(self._pooled) == len(self._texts)

    def result(self) -> list[npt.NDArray[np.float32]]:
        """What became of each text's rows."""
        return self._pooled


class ErrandDesk:
    """Errands that wait, first come first served, and the session that is lent to them while there are any.

    Args:
        make_session: gives it.

    Attributes:
        queue: the first one is under way. The scheduler's lock is held by who changes it.
    """

    def __init__(self, make_session: Callable[[], Session]) -> None:
        self.queue: deque[Ticket[Errand]] = deque()
        self._make_session = make_session
        self._session: Session | None = None

    def work(self, n_most: int, stopping: Callable[[], bool]) -> tuple[bool, Exception | None]:
        """Does one piece of the first errand: whether it is over, and what ended it before its time."""
        ticket = self.queue[0]
        try:
            self._session = self._session or self._make_session()
            if not ticket.work.step(self._session, n_most, lambda: stopping() or ticket.cancelled):
                return False, None
            ticket.work.finish("stop")
        except EvaluationCancelledError:
            return False, None  # who cancelled it ends it
        except Exception as error:
            return True, error
        return True, None

    def rest(self) -> None:
        """Lets the session go; the next errand gets another."""
        if self._session is not None:
            self._session.close()
            self._session = None
