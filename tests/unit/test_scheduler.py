"""The scheduler's rules, with a fake batch: test_batch.py has its results with the engine."""

from __future__ import annotations

import gc
import itertools
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from helpers.fake_batch import FakeBatch, FakeCompletion, FakeSession, answer_of, next_token

from pysa.errors import ArgumentError, ContextFullError, DeviceError, EvaluationCancelledError
from pysa.prefix import Reuse
from pysa.scheduler import QueueFullError, Scheduler, Ticket
from pysa.scheduler.errand import RowsErrand
from pysa.scheduler.lane import Lane, choose

WAIT_S = 20.0  # far more than anything here takes


class Fakes:
    """A scheduler over fakes. With `stepwise` each step of the batch waits for step()."""

    def __init__(self, n_parallel: int = 2, stepwise: bool = False, **options: Any) -> None:
        session = {name: options.pop(name) for name in ("n_ctx", "n_ubatch", "has_window") if name in options}
        sessions: list[FakeSession] = []
        self.sessions, self.batch = sessions, FakeBatch(threading.Semaphore(0) if stepwise else None)

        def make_session() -> Any:
            sessions.append(FakeSession(**session))
            return sessions[-1]

        model: Any = None
        self.scheduler = Scheduler(model, make_session, n_parallel, batch=self.batch, **options)

    def step(self, n: int = 1) -> None:
        """Lets n steps of the batch happen, and waits until they have."""
        assert self.batch.gate is not None
        for _ in range(n):
            n_before = len(self.batch.log)
            self.batch.gate.release()
            until(lambda n_before=n_before: len(self.batch.log) > n_before)

    def run_freely(self) -> None:
        """No step waits any more."""
        self.batch.gate = None


def until(condition: Callable[[], object]) -> None:
    """Waits for what another thread does."""
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.001)


@pytest.fixture
def fakes() -> Iterator[Callable[..., Fakes]]:
    """Makes Fakes, closed after the test."""
    with ExitStack() as stack:

        def make(*arguments: Any, **options: Any) -> Fakes:
            made = Fakes(*arguments, **options)
            stack.enter_context(made.scheduler)
            stack.callback(made.run_freely)  # a step under way would keep it from closing
            return made

        yield make


def prompt_of(n: int, first: int = 1) -> list[int]:
    return [(first + 7 * i) % 90 + 1 for i in range(n)]


# ---- results


@pytest.mark.parametrize("has_window", [False, True])
@pytest.mark.parametrize("n_parallel", [1, 3, 8])
def test_every_request_gets_its_own_answer(fakes: Callable[..., Fakes], n_parallel: int, has_window: bool) -> None:
    made = fakes(n_parallel, has_window=has_window)
    prompts = [prompt_of(n, first) for first, n in enumerate([1, 2, 70, 5, 33, 32, 31, 200, 1, 64])]
    tickets = [made.scheduler.submit(FakeCompletion(prompt, n=4 + i)) for i, prompt in enumerate(prompts)]
    for i, (prompt, ticket) in enumerate(zip(prompts, tickets, strict=True)):
        assert ticket.result(WAIT_S) == {"tokens": answer_of(prompt, 4 + i), "finish_reason": "length"}
    stats = made.scheduler.stats()
    assert (stats.n_finished, stats.n_cancelled, stats.n_failed) == (10, 0, 0)
    assert stats.n_prompt_tokens == sum(map(len, prompts))
    assert stats.n_generated_tokens == sum(4 + i for i in range(10))
    assert (stats.n_busy, stats.n_queued, stats.n_lanes) == (0, 0, n_parallel)


def test_requests_of_many_threads(fakes: Callable[..., Fakes]) -> None:
    made, found = fakes(3), {}

    def ask(i: int) -> None:
        found[i] = made.scheduler.submit(FakeCompletion(prompt_of(10 + i, i), n=6)).result(WAIT_S)["tokens"]

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: answer_of(prompt_of(10 + i, i), 6) for i in range(12)}


def test_chunks_come_in_order_while_it_runs(fakes: Callable[..., Fakes]) -> None:
    made, chunks, ended = fakes(stepwise=True), [], []
    ticket = made.scheduler.submit(FakeCompletion([1, 2, 3], n=4), chunks.extend, ended.append)
    expected = [{"token": token} for token in answer_of([1, 2, 3], 4)]
    made.step(2)  # the prompt but its last token, then that one
    until(lambda: len(chunks) == 1)
    made.step(3)
    until(lambda: ended)
    assert chunks == expected
    assert ended == [ticket]
    assert ticket.error is None


# ---- what a step evaluates


def test_sessions_join_and_leave_between_steps(fakes: Callable[..., Fakes]) -> None:
    made = fakes(3, stepwise=True)
    made.scheduler.submit(FakeCompletion([1], n=6))
    made.step(2)
    made.scheduler.submit(FakeCompletion([2], n=2))
    made.step(2)
    sizes = [len(step) for step in made.batch.log]
    made.run_freely()
    assert sizes[:2] == [1, 1]
    assert 2 in sizes[2:]  # a step may have been planned before the second came


def test_a_long_prompt_does_not_stop_the_others(fakes: Callable[..., Fakes]) -> None:
    made = fakes(2, stepwise=True, n_ubatch=32, n_piece=8)
    quick = FakeCompletion([1], n=40)
    made.scheduler.submit(quick)
    made.step()
    long = made.scheduler.submit(FakeCompletion(prompt_of(161), n=2))
    made.run_freely()
    long.result(WAIT_S)
    during = [step for step in made.batch.log if any(not wants for _, _, wants in step)]
    # 160 tokens in pieces of 8, each beside a token of the other request; then the prompt's last token.
    assert [n for step in during for _, n, wants in step if not wants] == [8] * 20
    assert all(any(wants and n == 1 for _, n, wants in step) for step in during)


def test_alone_a_prompt_takes_whole_ubatches(fakes: Callable[..., Fakes]) -> None:
    made = fakes(2, n_ubatch=32, n_piece=8)
    made.scheduler.submit(FakeCompletion(prompt_of(100), n=1)).result(WAIT_S)
    assert [[n for _, n, _ in step] for step in made.batch.log] == [[32], [32], [32], [3], [1]]
    assert [[wants for _, _, wants in step] for step in made.batch.log] == [[False]] * 4 + [[True]]


def test_prompts_take_turns_and_short_ones_share_a_step(fakes: Callable[..., Fakes]) -> None:
    made = fakes(3, stepwise=True, n_ubatch=32)
    made.scheduler.submit(FakeCompletion([9], n=2))  # holds the first step back until all three are there
    until(made.batch.in_step.is_set)
    for first in (20, 40):
        made.scheduler.submit(FakeCompletion(prompt_of(97, first), n=1))
    made.run_freely()
    until(lambda: made.scheduler.stats().n_finished == 3)
    long = [[(s, n) for s, n, wants in step if not wants] for step in made.batch.log]
    order = [step[0][0] for step in long if step]
    assert {len(step) for step in long} <= {0, 1}
    assert all(a is not b for a, b in itertools.pairwise(order))  # in turn
    made.batch.log.clear()
    made.scheduler.submit(FakeCompletion([9], n=2))
    made.scheduler.submit(FakeCompletion(prompt_of(11, 60), n=1))
    made.scheduler.submit(FakeCompletion(prompt_of(12, 80), n=1))
    until(lambda: made.scheduler.stats().n_finished == 6)
    assert max(len(step) for step in made.batch.log) >= 2


@pytest.mark.parametrize("has_window", [False, True])
def test_a_prompts_last_token_is_a_step_of_its_own_after_a_checkpoint(
    fakes: Callable[..., Fakes], has_window: bool
) -> None:
    made = fakes(1, has_window=has_window)
    prompt = prompt_of(50)
    first, again, longer = FakeCompletion(prompt, n=5), FakeCompletion(prompt, n=5), FakeCompletion([*prompt, 3, 4])
    made.scheduler.submit(first).result(WAIT_S)
    assert 49 in made.sessions[0].checkpoints
    made.batch.log.clear()
    made.scheduler.submit(again).result(WAIT_S)
    assert again.reuse == Reuse(49, 0)
    assert again.tokens == first.tokens
    assert [n for step in made.batch.log for _, n, _ in step] == [1] * 5  # nothing is evaluated again
    made.scheduler.submit(longer).result(WAIT_S)
    # It departs after the prompt; a window can only return to its checkpoint, one token before.
    assert longer.reuse == (Reuse(49, 1) if has_window else Reuse(50, 0))
    assert longer.tokens == answer_of([*prompt, 3, 4], 5)


def test_prompt_logits_are_given_where_they_are_wanted(fakes: Callable[..., Fakes]) -> None:
    made = fakes(2, n_ubatch=16)
    prompt = prompt_of(40)
    made.scheduler.submit(FakeCompletion(prompt, n=3)).result(WAIT_S)
    echo = FakeCompletion(prompt, n=3, rows=True)
    made.scheduler.submit(echo).result(WAIT_S)
    assert echo.prompt_rows == [next_token(prompt[: i + 1]) for i in range(39)]  # the last token's are pick()'s
    assert echo.tokens == answer_of(prompt, 3)
    assert echo.reuse == Reuse(0, 0)


# ---- lanes and the queue


def test_the_longest_shared_prefix_chooses_the_lane() -> None:
    def lane(tokens: list[int], last_used: int, **options: Any) -> Lane:
        session: Any = FakeSession(**options)
        session.tokens = list(tokens)
        made = Lane(session)
        made.end(last_used)
        return made

    document, other = prompt_of(60), prompt_of(60, 50)
    a, b, c = lane(document, 1), lane([*document[:30], *other], 2), lane([], 0)

    def chosen(prompt: list[int]) -> Lane:
        return choose([a, b, c], np.array(prompt, np.int32))

    assert chosen([*document, 5]) is a
    assert chosen([*document[:30], *other[:20], 5]) is b
    assert chosen(other) is c  # nothing shared: the one never used
    assert chosen([*document[:5], *other]) is c  # five tokens are not worth sixty
    c.end(3)
    assert chosen(other) is a  # now the least recently used
    # A window that has forgotten spares nothing, however much is shared.
    windowed = lane(document, 9, has_window=True)
    assert choose([windowed, c], np.array([*document[:20], 5], np.int32)) is c
    windowed.session.checkpoints = [15]  # type: ignore[attr-defined]
    assert choose([windowed, c], np.array([*document[:20], 5], np.int32)) is windowed


def test_requests_wait_their_turn_and_too_many_are_refused(fakes: Callable[..., Fakes]) -> None:
    made, order = fakes(1, stepwise=True, n_queue=2), []
    tickets = [
        made.scheduler.submit(FakeCompletion([i + 1], n=2), None, lambda _, i=i: order.append(i)) for i in range(3)
    ]
    until(lambda: made.scheduler.stats().n_queued == 2)
    with pytest.raises(QueueFullError, match="expected at most 2 waiting requests"):
        made.scheduler.submit(FakeCompletion([4], n=2))
    tickets[1].cancel()
    made.step()  # the one that was under way
    assert tickets[1].wait(WAIT_S)
    assert not tickets[0].done
    made.scheduler.submit(FakeCompletion([5], n=2), None, lambda _: order.append(5))
    made.run_freely()
    until(lambda: len(order) == 4)
    assert order == [1, 0, 2, 5]
    assert tickets[1].result()["finish_reason"] == "cancelled"


# ---- faults


def test_a_fault_in_one_request_ends_that_one_alone(fakes: Callable[..., Fakes]) -> None:
    made = fakes(3)
    good = [made.scheduler.submit(FakeCompletion(prompt_of(20, i), n=30)) for i in (1, 2)]
    bad = made.scheduler.submit(FakeCompletion(prompt_of(20, 3), n=30, fails_at=4))
    with pytest.raises(RuntimeError, match="my logits processor is broken"):
        bad.result(WAIT_S)
    for i, ticket in zip((1, 2), good, strict=True):
        assert ticket.result(WAIT_S)["tokens"] == answer_of(prompt_of(20, i), 30)
    assert made.scheduler.submit(FakeCompletion([1, 2], n=3)).result(WAIT_S)["tokens"] == answer_of([1, 2], 3)
    assert made.scheduler.stats().n_failed == 1


def test_a_failing_step_ends_only_whose_fault_it_is(fakes: Callable[..., Fakes]) -> None:
    made = fakes(3, stepwise=True)
    made.batch.poisoned = {93}
    prompts = [prompt_of(20, 1), [*prompt_of(20, 2), 93, 5], prompt_of(20, 3)]
    tickets = [made.scheduler.submit(FakeCompletion(prompt, n=6)) for prompt in prompts]
    made.run_freely()
    with pytest.raises(MemoryError, match="poisoned"):
        tickets[1].result(WAIT_S)
    for i in (0, 2):
        assert tickets[i].result(WAIT_S)["tokens"] == answer_of(prompts[i], 6)


def test_a_full_context_ends_its_own_request(fakes: Callable[..., Fakes]) -> None:
    made = fakes(2, n_ctx=40)
    full = made.scheduler.submit(FakeCompletion(prompt_of(35), n=20))
    other = made.scheduler.submit(FakeCompletion([3], n=30))
    with pytest.raises(ContextFullError, match=r"expected at most 0 more tokens \(n_ctx 40\), got 1"):
        full.result(WAIT_S)
    assert len(full.work.tokens) == 6  # 35 + 5 evaluated, and one more picked
    assert other.result(WAIT_S)["tokens"] == answer_of([3], 30)
    with pytest.raises(ContextFullError, match="expected at most 40 tokens"):
        made.scheduler.submit(FakeCompletion(prompt_of(41)))
    with pytest.raises(ArgumentError, match="prompt: empty"):
        made.scheduler.submit(FakeCompletion([]))


def test_who_no_longer_takes_chunks_has_given_up(fakes: Callable[..., Fakes]) -> None:
    made = fakes(1)

    def broken(_: Any) -> None:
        raise RuntimeError("Event loop is closed")

    ticket = made.scheduler.submit(FakeCompletion([1], n=500), broken)
    assert ticket.wait(WAIT_S)
    assert ticket.cancelled
    assert ticket.result()["finish_reason"] == "cancelled"
    assert len(ticket.work.tokens) == 1


# ---- cancelling and closing


def test_cancelling_frees_the_lane_within_a_step(fakes: Callable[..., Fakes]) -> None:
    made = fakes(1, stepwise=True)
    ticket = made.scheduler.submit(FakeCompletion([1, 2], n=1000))
    made.step(5)
    until(lambda: len(ticket.work.tokens) == 4)
    ticket.cancel()
    ticket.cancel()  # once is enough, twice does no harm
    made.step(1)  # the one that was under way
    assert ticket.wait(WAIT_S)
    n_steps = len(made.batch.log)
    assert n_steps == 6
    assert ticket.result()["tokens"] == answer_of([1, 2], 4)
    following = made.scheduler.submit(FakeCompletion([1, 2, *answer_of([1, 2], 4)], n=2))
    made.run_freely()
    assert following.result(WAIT_S)["tokens"] == answer_of([1, 2], 6)[4:]
    assert following.work.reuse == Reuse(5, 0)  # what the cancelled one held is of use


def test_a_long_step_that_nobody_wants_is_stopped(fakes: Callable[..., Fakes]) -> None:
    made = fakes(1, stepwise=True)
    ticket = made.scheduler.submit(FakeCompletion(prompt_of(200), n=3))
    until(made.batch.in_step.is_set)
    ticket.cancel()
    assert ticket.wait(WAIT_S)  # no step was let through
    assert made.batch.interrupts == 1
    assert made.sessions[0].tokens == []


def test_a_step_that_others_want_goes_on(fakes: Callable[..., Fakes]) -> None:
    made = fakes(2, stepwise=True)
    made.scheduler.submit(FakeCompletion([9], n=1))
    until(made.batch.in_step.is_set)
    kept = made.scheduler.submit(FakeCompletion(prompt_of(100), n=3))
    given_up = made.scheduler.submit(FakeCompletion(prompt_of(100, 50), n=3))
    given_up.cancel()
    made.run_freely()
    assert kept.result(WAIT_S)["tokens"] == answer_of(prompt_of(100), 3)
    assert given_up.wait(WAIT_S)
    assert made.batch.interrupts == 0


def test_close_ends_everything(fakes: Callable[..., Fakes]) -> None:
    made = fakes(1, stepwise=True)
    running = made.scheduler.submit(FakeCompletion(prompt_of(100), n=1000))
    waiting = made.scheduler.submit(FakeCompletion([2], n=10))
    thread = made.scheduler._thread
    until(made.batch.in_step.is_set)
    made.scheduler.close()
    made.scheduler.close()
    assert not thread.is_alive()
    assert all(session.closed for session in made.sessions)
    for ticket in (running, waiting):
        with pytest.raises(EvaluationCancelledError, match="it was closed before the answer was complete"):
            ticket.result(0)
    with pytest.raises(ArgumentError, match="scheduler: it is closed"):
        made.scheduler.submit(FakeCompletion([1]))


def test_a_forgotten_scheduler_ends_its_thread() -> None:
    made = Fakes(1)
    made.scheduler.submit(FakeCompletion([1], n=3)).result(WAIT_S)
    thread, gone = made.scheduler._thread, weakref.ref(made.scheduler)
    sessions = made.sessions
    del made
    gc.collect()
    assert gone() is None
    thread.join(WAIT_S)
    assert not thread.is_alive()
    assert sessions[0].closed


def test_idle_it_does_nothing(fakes: Callable[..., Fakes]) -> None:
    made = fakes(2)
    made.scheduler.submit(FakeCompletion([1], n=3)).result(WAIT_S)
    time.sleep(0.05)
    start = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - start < 0.1  # a thread that polls takes most of the half second


def test_a_fault_of_the_scheduler_itself_reaches_who_waits(fakes: Callable[..., Fakes], caplog: Any) -> None:
    made = fakes(1, stepwise=True)
    ticket = made.scheduler.submit(FakeCompletion([1], n=3))
    until(made.batch.in_step.is_set)
    made.scheduler._engine.lanes[0].advance = None  # type: ignore[assignment, method-assign]
    made.run_freely()
    with pytest.raises(TypeError):
        ticket.result(WAIT_S)
    with pytest.raises(EvaluationCancelledError, match="stopped by a fault"):
        made.scheduler.submit(FakeCompletion([1]))
    assert "the scheduler has stopped" in caplog.text


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_is_refused(fakes: Callable[..., Fakes]) -> None:
    made = fakes(1)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            made.scheduler.submit(FakeCompletion([1]))
        except DeviceError as error:
            status = 0 if "open the model in the child" in str(error) else 2
        os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert made.scheduler.submit(FakeCompletion([1], n=2)).result(WAIT_S)["tokens"] == answer_of([1], 2)


# ---- errands


def test_errands_run_between_steps_in_a_session_of_their_own(fakes: Callable[..., Fakes]) -> None:
    made = fakes(1, n_ubatch=32, n_piece=8)
    texts = [np.array(prompt_of(n), np.int32) for n in (70, 3)]
    alone = made.scheduler.submit_errand(RowsErrand(texts, lambda rows: rows.sum(axis=0)))
    expected = [[float(text.sum()), float(sum(range(len(text))))] for text in texts]
    assert np.array(alone.result(WAIT_S)).tolist() == expected
    side = made.sessions[1]
    assert side.embeds == [32, 32, 6, 3]
    assert side.closed  # nothing is kept when none is left

    answer = made.scheduler.submit(FakeCompletion([1], n=600))
    beside = made.scheduler.submit_errand(RowsErrand(texts, lambda rows: rows.sum(axis=0)))
    assert np.array(beside.result(WAIT_S)).tolist() == expected
    assert answer.result(WAIT_S)["tokens"] == answer_of([1], 600)
    assert max(made.sessions[2].embeds) == 8  # pieces, as a prompt's


def test_an_errand_can_be_cancelled_and_can_fail(fakes: Callable[..., Fakes]) -> None:
    made = fakes(1, stepwise=True)
    text = [np.array([1, 2], np.int32)]
    first = made.scheduler.submit(FakeCompletion([1], n=100))
    until(made.batch.in_step.is_set)
    cancelled: Ticket[Any] = made.scheduler.submit_errand(RowsErrand(text, lambda rows: rows))
    failing: Ticket[Any] = made.scheduler.submit_errand(RowsErrand(text, lambda rows: 1 / 0))  # type: ignore[return-value, arg-type]
    cancelled.cancel()
    made.run_freely()
    assert cancelled.wait(WAIT_S)
    assert cancelled.work.finish_reason == "cancelled"
    with pytest.raises(ZeroDivisionError):
        failing.result(WAIT_S)
    assert first.result(WAIT_S)["tokens"] == answer_of([1], 100)
