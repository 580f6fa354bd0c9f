"""A lane: one session, the request it serves, and how far that has come. Which lane a request takes is decided here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pysa.prefix import Reuse, common_prefix, rewind, spacing
from pysa.scheduler.ticket import Drivable, Ticket

if TYPE_CHECKING:
    from pysa.session import Session

Ids = npt.NDArray[np.int32]

NOTHING: Ids = np.empty(0, dtype=np.int32)
WORTH = 4  # tokens that a lane forgets, for each one it spares, before another lane is better


class Lane:
    """One session and what it does now. Used by the scheduler's thread alone.

    Args:
        session: the lane's own; nobody else evaluates in it.

    Attributes:
        ticket: the request it serves; None: the lane is free.
        pending: tokens that are evaluated next: what is left of the prompt, then the token picked last.
        held: what the session holds, as of when it became free.
        last_used: greater for lanes that became free later; 0: never used.
        cache_bytes: of the session and its checkpoints, as last looked up.
        take_rows: wants the logits of the prompt's own tokens; None: nobody does.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.ticket: Ticket[Drivable] | None = None
        self.pending = NOTHING
        self.held = NOTHING
        self.last_used = 0
        self.cache_bytes = 0
        self.take_rows: Callable[[npt.NDArray[np.float32]], None] | None = None
        self._departs = 0  # where the prompt left what was held

    @property
    def is_short(self) -> bool:
        """Whether it needs one token evaluated, and that one's logits."""
        return len(self.pending) == 1

    @property
    def n_next(self) -> int:
        """Prompt tokens that may be evaluated at once now.

        A prompt's last token is a step of its own: a second answer then begins with the same logits, bit for bit, and a
        session with a window has a checkpoint there to return to.
        """
        n_past = self.session.n_past
        return self._departs - n_past if n_past < self._departs else len(self.pending) - 1

    def n_spared(self, prompt: Ids) -> tuple[int, int]:
        """Tokens of the prompt that need not be evaluated, and tokens held that would be forgotten."""
        n_kept = self.session.native.rollback_position(common_prefix(self.held, prompt[:-1]))
        return n_kept, len(self.held) - n_kept

    def begin(self) -> Reuse:
        """Starts on the ticket's request: goes back to what its prompt shares with what is held."""
        assert self.ticket is not None
        work = self.ticket.work
        prompt = np.asarray(work.prompt_tokens, dtype=np.int32)
        if work.wants_prompt_logits:
            self.take_rows = work.add_prompt_logits
            self.session.reset()  # rows that are held have no logits any more
            reuse = Reuse(0, 0)
        else:
            reuse = rewind(self.session, prompt)
        work.set_reuse(reuse)
        self.pending = prompt[reuse.n_reused :]
        self._departs = reuse.n_reused + reuse.n_reevaluated
        self._keep_point(len(self.pending))
        return reuse

    def advance(self, n: int) -> None:
        """Counts tokens as evaluated, and keeps points to return to within a prompt."""
        n_before, self.pending = len(self.pending), self.pending[n:]
        if len(self.pending):
            self._keep_point(n_before)

    def end(self, clock: int) -> None:
        """The request is over; what the session holds may serve another."""
        self.ticket, self.take_rows, self.pending = None, None, NOTHING
        self.held = np.asarray(self.session.tokens, dtype=np.int32)
        self.last_used = clock

    def measure(self) -> None:
        """Brings cache_bytes up to date."""
        memory = self.session.memory()
        self.cache_bytes = memory["total"] + memory["checkpoints"]

    def _keep_point(self, n_before: int) -> None:
        """A checkpoint where a conversation is likely to come back: the rule of pysa.prefix.evaluate_prompt."""
        n_past, n_left = self.session.n_past, len(self.pending)
        if n_past and (n_left == 1 or n_past == self._departs or spacing(n_before) > spacing(n_left)):
            self.session.checkpoint()


def choose(lanes: Sequence[Lane], prompt: Ids) -> Lane:
    """The lane a prompt goes to: the longest shared prefix, else the least recently used.

    A short common beginning does not cost a long conversation: a lane that would forget more than WORTH times what it
    spares counts as one that shares nothing.
    """
    best, n_best = None, 0
    for lane in lanes:
        n_spared, n_lost = lane.n_spared(prompt)
        if n_spared > n_best and n_lost <= WORTH * n_spared:
            best, n_best = lane, n_spared
    return best or min(lanes, key=lambda lane: lane.last_used)
