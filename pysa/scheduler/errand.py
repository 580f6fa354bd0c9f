"""Work that takes a session for itself, a piece at a time between the steps of the batch: embeddings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

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
