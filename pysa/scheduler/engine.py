"""The scheduler's thread: takes requests in, has one step after another evaluated, hands logits to the completions.

Everything that touches a lane's session happens here, or in the shelf's thread while the lane is set aside. Other
threads only add tickets, cancel them and read figures.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pysa.errors import EvaluationCancelledError
from pysa.scheduler.errand import ErrandDesk
from pysa.scheduler.lane import Lane, choose
from pysa.scheduler.stats import Counts
from pysa.scheduler.step import Steps, plan_step, run_step
from pysa.scheduler.ticket import CANCELLED, Drivable, Ticket, W

if TYPE_CHECKING:
    from pysa.scheduler.shelf import Shelf
    from pysa.session import Session

log = logging.getLogger("pysa")

MEASURE_S = 1.0  # how old the cache's bytes may be


class Engine:
    """The state that the scheduler's thread works on, and its loop.

    Args:
        batch: evaluates a step.
        lanes: one at least.
        make_session: for errands.
        n_piece: most prompt tokens of a step in which others generate.
        shelf: sessions on disk.

    Attributes:
        news: held for what other threads touch: waiting, the desk, stopping; notified when it changes.
        fault: what ended the thread, if it was not stop().
    """

    def __init__(
        self,
        batch: Steps,
        lanes: Sequence[Lane],
        make_session: Callable[[], Session],
        n_piece: int,
        shelf: Shelf | None,
    ) -> None:
        self.lanes = list(lanes)
        self.waiting: deque[Ticket[Drivable]] = deque()
        self.desk = ErrandDesk(make_session)
        self.counts = Counts()
        self.news = threading.Condition()
        self.stopping = False
        self.fault: BaseException | None = None
        self._batch, self._shelf = batch, shelf
        self._n_ubatch = self.lanes[0].session.n_ubatch
        self._n_piece = min(n_piece, self._n_ubatch)
        self._turn: list[Lane] = []  # lanes at work; the first one's prompt is next
        self._ready: deque[Lane] = deque()  # lanes whose session has been fetched
        self._clock = 0
        self._measured_s = 0.0

    # ---- any thread

    def wake(self) -> None:
        """Has the thread look for news."""
        with self.news:
            self.news.notify_all()

    def stop(self) -> None:
        """Has the thread end what there is and return."""
        self.stopping = True
        self.wake()

    # ---- the thread

    def run(self) -> None:
        """Works until stop()."""
        try:
            while self._wait():
                start = time.perf_counter()
                self._round()
                self.counts.busy_s += time.perf_counter() - start
        except BaseException as error:  # a fault of pysa's own: whoever waits must hear of it
            log.exception("the scheduler has stopped")
            self.fault = error
        finally:
            self._give_back()

    def _wait(self) -> bool:
        """Sleeps while there is nothing to do; False when it is time to go."""
        with self.news:
            self.news.wait_for(self._has_work)
            return not self.stopping

    def _has_work(self) -> bool:
        if self.stopping or self._turn or self._ready or self.desk.queue:
            return True
        is_lane_free = any(lane.ticket is None for lane in self.lanes)
        return any(is_lane_free or ticket.cancelled for ticket in self.waiting)

    def _round(self) -> None:
        """One step, and what comes before and after it."""
        self._sweep()
        self._assign()
        while self._ready:
            self._begin(self._ready.popleft())
        if self._turn:
            self._step()
        if self.desk.queue:
            self._errand_piece()
        self._measure()

    def _sweep(self) -> None:
        """Ends what was cancelled."""
        for lane in list(self._turn):
            if lane.ticket is not None and lane.ticket.cancelled:
                self._end(lane)
        with self.news:
            gone: list[Ticket[Any]] = [*_take_cancelled(self.waiting), *_take_cancelled(self.desk.queue)]
        for ticket in gone:
            self._finish(ticket)

    def _assign(self) -> None:
        """Gives free lanes to waiting requests, first come first served."""
        while True:
            with self.news:
                free = [lane for lane in self.lanes if lane.ticket is None]
                if not (free and self.waiting):
                    return
                ticket = self.waiting.popleft()
                prompt = np.asarray(ticket.work.prompt_tokens, dtype=np.int32)
                lane = choose(free, prompt)
                lane.ticket = ticket
            if self._shelf is None:
                self._begin(lane)
            else:
                self._shelf.fetch(lane, prompt, self._put_ready)

    def _put_ready(self, lane: Lane) -> None:
        """Told by the shelf's thread."""
        with self.news:
            self._ready.append(lane)
            self.news.notify_all()

    def _begin(self, lane: Lane) -> None:
        self._turn.append(lane)
        try:
            reuse = lane.begin()
        except Exception as error:
            self._end(lane, error)
            return
        assert lane.ticket is not None
        self.counts.n_prompt_tokens += len(lane.ticket.work.prompt_tokens)
        self.counts.n_reused_tokens += reuse.n_reused
        self.counts.n_reevaluated_tokens += reuse.n_reevaluated

    def _step(self) -> None:
        entries = plan_step(self._turn, self._n_ubatch, self._n_piece)
        tickets = [entry.lane.ticket for entry in entries]

        def nobody_waits() -> bool:
            return self.stopping or all(ticket is None or ticket.cancelled for ticket in tickets)

        try:
            for outcome in run_step(self._batch, entries, nobody_waits):
                self.counts.n_step_tokens += outcome.n_evaluated
                if outcome.error is not None:
                    self._end(outcome.lane, outcome.error)
                    continue
                outcome.lane.advance(outcome.n_evaluated)
                if outcome.logits is not None:
                    self._pick(outcome.lane, outcome.logits)
        except EvaluationCancelledError:
            return  # the next round ends them
        self.counts.n_steps += 1
        served = [entry.lane for entry in entries if not entry.wants_logits and entry.lane.ticket is not None]
        self._turn = [lane for lane in self._turn if lane not in served] + served

    def _pick(self, lane: Lane, logits: npt.NDArray[np.float32]) -> None:
        """Has a completion choose its next token. What it raises is its own."""
        ticket = lane.ticket
        assert ticket is not None
        if ticket.cancelled:
            return
        try:
            token = ticket.work.pick(logits)
            ticket.deliver()
        except BaseException as error:
            self._end(lane, error)
            return
        self.counts.n_generated_tokens += 1
        if token is None:
            self._end(lane)
        else:
            lane.pending = np.array([token], dtype=np.int32)

    def _end(self, lane: Lane, error: BaseException | None = None) -> None:
        """Frees a lane."""
        ticket = lane.ticket
        assert ticket is not None
        self._turn.remove(lane)
        self._clock += 1
        lane.end(self._clock)
        lane.measure()
        self._finish(ticket, error)

    def _finish(self, ticket: Ticket[Any], error: BaseException | None = None) -> None:
        """Ends a ticket and counts it."""
        if error is not None:
            self.counts.n_failed += 1
        elif ticket.work.finish_reason is None:
            ticket.work.finish(CANCELLED)
            self.counts.n_cancelled += 1
        else:
            self.counts.n_finished += 1
        ticket.end(error)

    def _errand_piece(self) -> None:
        """One piece of what needs a session for itself."""
        n_most = self._n_piece if self._turn else self._n_ubatch
        is_over, error = self.desk.work(n_most, lambda: self.stopping)
        if is_over:
            with self.news:
                ticket = self.desk.queue.popleft()
            self._finish(ticket, error)
        if not self.desk.queue:
            self.desk.rest()

    def _measure(self) -> None:
        now = time.monotonic()
        if now - self._measured_s > MEASURE_S:
            self._measured_s = now
            for lane in self._turn:
                lane.measure()

    def _give_back(self) -> None:
        """Ends everything and closes the sessions."""
        with self.news:
            self.stopping = True
            left: list[Ticket[Any]] = [lane.ticket for lane in self.lanes if lane.ticket is not None]
            left += [*self.waiting, *self.desk.queue]
            self.waiting.clear()
            self.desk.queue.clear()
        for ticket in left:
            ticket.end(
                self.fault or EvaluationCancelledError("scheduler: it was closed before the answer was complete")
            )
        if self._shelf is not None:
            self._shelf.close([lane.session for lane in self.lanes] if self.fault is None else [])
        for lane in self.lanes:
            lane.session.close()
        self.desk.rest()
        self._batch.close()
        self.lanes.clear()
        self._turn.clear()


def _take_cancelled(queue: deque[Ticket[W]]) -> list[Ticket[W]]:
    """Takes tickets that were given up out of a queue."""
    gone = [ticket for ticket in queue if ticket.cancelled]
    for ticket in gone:
        queue.remove(ticket)
    return gone
