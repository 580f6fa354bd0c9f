"""A request on its way through the scheduler: what it asks for, whether it is done, how to give it up."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from pysa.errors import PysaError
from pysa.prefix import Reuse

log = logging.getLogger("pysa")

CANCELLED = "cancelled"


class QueueFullError(PysaError):
    """As many requests wait as may."""


class Work(Protocol):
    """What a ticket is for."""

    @property
    def finish_reason(self) -> str | None:
        """None while it goes on."""

    def take_chunks(self) -> list[dict[str, Any]]:
        """What can be streamed; each chunk is given once."""

    def finish(self, reason: str) -> None:
        """Ends it from outside."""

    def result(self) -> Any:
        """All of it."""


class Drivable(Work, Protocol):
    """What turns logits into an answer and knows no session: pysa.llama's Completion and ChatCompletion."""

    @property
    def prompt_tokens(self) -> Sequence[int]:
        """What is to be evaluated."""

    @property
    def wants_prompt_logits(self) -> bool:
        """Whether add_prompt_logits() is called before the first pick()."""

    def add_prompt_logits(self, rows: npt.NDArray[np.float32]) -> None:
        """The logits (n, n_vocab) of the prompt's next n tokens; the last token's are left out."""

    def set_reuse(self, reuse: Reuse) -> None:
        """Told once what a session spared the prompt."""

    def pick(self, logits: npt.NDArray[np.float32]) -> int | None:
        """The next token to evaluate; None when the answer is complete."""


W = TypeVar("W", bound=Work)
OnChunks = Callable[[list[dict[str, Any]]], object]
OnDone = Callable[["Ticket[Any]"], object]


class Ticket(Generic[W]):
    """A request's place in the scheduler. Made by Scheduler.submit(); any thread may use it.

    The work belongs to the scheduler's thread until the ticket is done.
    """

    def __init__(
        self,
        work: W,
        on_chunks: OnChunks | None,
        on_done: OnDone | None,
        wake: Callable[[], None],
    ) -> None:
        self.work = work
        self.error: BaseException | None = None
        self._on_chunks, self._on_done, self._wake = on_chunks, on_done, wake
        self._done, self._cancelled = threading.Event(), threading.Event()

    @property
    def done(self) -> bool:
        """Whether it has ended, one way or another."""
        return self._done.is_set()

    @property
    def cancelled(self) -> bool:
        """Whether it was given up; it ends within one ubatch."""
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Gives the request up. Returns at once; without effect on one that is done."""
        if not self.done and not self.cancelled:
            self._cancelled.set()
            self._wake()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Waits until it is done; False if that takes longer than `timeout_s`."""
        return self._done.wait(timeout_s)

    def result(self, timeout_s: float | None = None) -> Any:
        """Waits for the answer. One that was cancelled has the text so far, and `cancelled` as its reason.

        Raises:
            TimeoutError: it takes longer than `timeout_s`; it goes on.
            Exception: what ended it: ContextFullError, or what a logits processor raised.
        """
        if not self.wait(timeout_s):
            raise TimeoutError(f"request: not done within {timeout_s:g} s; it goes on, cancel() gives it up")
        if self.error is not None:
            raise self.error
        return self.work.result()

    # ---- for the scheduler's thread

    def deliver(self) -> None:
        """Passes on what can be streamed. Who no longer takes it has given the request up."""
        if self._on_chunks is None or not (chunks := self.work.take_chunks()):
            return
        try:
            self._on_chunks(chunks)
        except Exception:
            log.debug("a request is cancelled: its chunks are no longer taken", exc_info=True)
            self._cancelled.set()

    def end(self, error: BaseException | None = None) -> None:
        """Marks it as done and tells whoever waits. A fault there is theirs."""
        if self.done:
            return
        self.error = error
        self._done.set()
        if self._on_done is not None:
            try:
                self._on_done(self)
            except Exception:
                log.debug("a request ended, and nobody heard it", exc_info=True)
