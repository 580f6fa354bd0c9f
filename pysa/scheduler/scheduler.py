"""`Scheduler`: the front of continuous batching. Requests come from any thread, and one thread works on them."""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

from pysa._arguments import check_int
from pysa.batch import Batch
from pysa.errors import ArgumentError, ContextFullError, DeviceError, EvaluationCancelledError
from pysa.scheduler.engine import Engine
from pysa.scheduler.errand import Errand
from pysa.scheduler.lane import Lane
from pysa.scheduler.stats import Stats
from pysa.scheduler.step import Steps
from pysa.scheduler.ticket import Drivable, OnChunks, OnDone, QueueFullError, Ticket, W

if TYPE_CHECKING:
    from pysa.model import Model
    from pysa.prefix_cache import PrefixCache
    from pysa.session import Session

N_PIECE = 128  # prompt tokens; half as many cost a tenth more time in all, twice as many make others wait twice as long


class Scheduler:
    """Serves many requests with one model: sessions join and leave the batch between two steps. A context manager.

    Each step evaluates one token of every request that generates, and prompts in pieces in turn, so that a long prompt
    does not stop the others. A request takes the lane that shares the longest prefix with its prompt, and waits where
    all are taken. An error in one request (its sampler, its context) ends that request alone.

    Args:
        model: whose sessions they are; stays open as long as the scheduler.
        make_session: gives a new session of `model`; called n_parallel times here, and once more for embeddings.
        n_parallel: requests served at once, 1..256. Each has a cache of its own, which grows with what it holds.
        n_queue: most requests that wait, 0 or more.
        n_piece: most prompt tokens evaluated in a step in which others generate, 1..65536.
        cache: keeps on disk what a lane would forget, and has what another process read.
        batch: what evaluates a step; None is a Batch of the model.

    Raises:
        ArgumentError: an argument is of the wrong type or out of range.
        DeviceError: not enough memory for the sessions.
    """

    def __init__(
        self,
        model: Model,
        make_session: Callable[[], Session],
        n_parallel: int = 4,
        *,
        n_queue: int = 64,
        n_piece: int = N_PIECE,
        cache: PrefixCache | None = None,
        batch: Steps | None = None,
    ) -> None:
        n_lanes = check_int("n_parallel", n_parallel, 1, 256)
        self._n_queue = check_int("n_queue", n_queue, 0, 2**31 - 1)
        n_piece = check_int("n_piece", n_piece, 1, 65536)
        lanes = [Lane(make_session()) for _ in range(n_lanes)]
        self._n_ctx = lanes[0].session.n_ctx
        shelf = None
        if cache is not None:
            from pysa.scheduler.shelf import Shelf  # noqa: PLC0415  only who keeps sessions needs the files' formats

            shelf = Shelf(cache, lanes[0].session)
        self._engine = Engine(batch or Batch(model), lanes, make_session, n_piece, shelf)
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._engine.run, name="pysa-scheduler", daemon=True)
        self._thread.start()
        # Also when nobody closes it: a thread inside the engine must not meet the end of the interpreter.
        self._finalizer = weakref.finalize(self, _close, self._engine, self._thread, self._pid)

    def __enter__(self) -> Scheduler:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        stats = self.stats()
        return f"<pysa.Scheduler: {stats.n_busy} of {stats.n_lanes} lanes busy, {stats.n_queued} requests wait>"

    @property
    def n_ctx(self) -> int:
        """Most tokens of a request, prompt and answer."""
        return self._n_ctx

    @property
    def closed(self) -> bool:
        """Whether it takes no requests any more."""
        return self._engine.stopping

    def submit(
        self,
        completion: Drivable,
        on_chunks: OnChunks | None = None,
        on_done: OnDone | None = None,
    ) -> Ticket[Drivable]:
        """Puts a request into the queue.

        Args:
            completion: turns logits into an answer; it belongs to the scheduler until the ticket is done.
            on_chunks: given what can be streamed, as it comes, in the scheduler's thread: it must not wait.
            on_done: told when the request has ended, likewise.

        Raises:
            QueueFullError: n_queue requests wait.
            ContextFullError: the prompt does not fit in n_ctx.
            ArgumentError: the prompt is empty, or the scheduler is closed.
        """
        n_prompt = len(completion.prompt_tokens)
        if n_prompt < 1:
            raise ArgumentError("prompt: empty: expected at least one token, got none")
        if n_prompt > self._n_ctx:
            raise ContextFullError(
                f"prompt: does not fit the context: expected at most {self._n_ctx} tokens (n_ctx), got {n_prompt}; "
                "shorten it, or open the model with a larger n_ctx"
            )
        ticket = Ticket(completion, on_chunks, on_done, self._engine.wake)
        with self._open_engine() as engine:
            n_free = sum(lane.ticket is None for lane in engine.lanes)
            self._enqueue(ticket, engine.waiting, self._n_queue + n_free)
        return ticket

    def submit_errand(self, errand: Errand, on_done: OnDone | None = None) -> Ticket[Errand]:
        """Puts work into the queue that takes a session for itself; otherwise as submit()."""
        ticket = Ticket(errand, None, on_done, self._engine.wake)
        with self._open_engine() as engine:
            self._enqueue(ticket, engine.desk.queue, self._n_queue + 1)
        return ticket

    def stats(self) -> Stats:
        """Figures so far and now."""
        engine = self._engine
        with engine.news:
            return Stats(
                **asdict(engine.counts),
                n_lanes=len(engine.lanes),
                n_busy=sum(lane.ticket is not None for lane in engine.lanes),
                n_queued=len(engine.waiting) + len(engine.desk.queue),
                cache_bytes=sum(lane.cache_bytes for lane in engine.lanes),
            )

    def close(self) -> None:
        """Ends every request with EvaluationCancelledError and lets the sessions go. Waits for that: one ubatch."""
        self._finalizer()

    @contextmanager
    def _open_engine(self) -> Iterator[Engine]:
        """The engine, locked, if it takes requests."""
        if os.getpid() != self._pid:
            raise DeviceError(
                "scheduler: its thread does not exist in a forked process: expected the process that made it; open the "
                "model in the child"
            )
        engine = self._engine
        with engine.news:
            if engine.fault is not None:
                raise EvaluationCancelledError(f"scheduler: stopped by a fault: {engine.fault}") from engine.fault
            if engine.stopping:
                raise ArgumentError("scheduler: it is closed: expected an open one; make another")
            yield engine
            engine.news.notify_all()

    def _enqueue(self, ticket: Ticket[W], queue: deque[Ticket[W]], n_most: int) -> None:
        if len(queue) >= n_most:
            raise QueueFullError(
                f"queue: full: expected at most {self._n_queue} waiting requests; try again when one is done"
            )
        queue.append(ticket)


def _close(engine: Engine, thread: threading.Thread, pid: int) -> None:
    if os.getpid() != pid:
        return  # a forked child has neither the thread nor a lock that somebody will release
    engine.stop()
    if thread is not threading.current_thread():  # garbage is collected in any thread
        thread.join()
