"""Sessions in one batch, and the scheduler on the engine: each session gets what it would get alone."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pysa
from pysa.batch import Batch
from pysa.errors import ArgumentError, ContextFullError, EvaluationCancelledError
from pysa.scheduler import Scheduler

WAIT_S = 60.0  # far more than anything here takes
TYPES: dict[str, Any] = {"type_k": "f32", "type_v": "f32", "n_ubatch": 16}
# f32 sums in another order: products of one row and of many rows take other paths through the matrix kernels. The
# largest logits are about 10, and 2e-4 is ten times the difference that was seen.
LOGITS_TOLERANCE = 2e-4
CLEAR = 0.01  # a choice whose two best logits lie this far apart is not turned by that


def until(condition: Callable[[], object]) -> None:
    """Waits for what another thread does."""
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.001)


@pytest.fixture(params=["dense", "shared"])
def any_model(request: pytest.FixtureRequest, dense_gguf: Path, shared_gguf: Path) -> Iterator[pysa.Model]:
    with pysa.Model(dense_gguf if request.param == "dense" else shared_gguf, n_threads=1) as model:
        yield model


def random_prompts(model: pysa.Model, *sizes: int) -> list[list[int]]:
    rng = np.random.default_rng(5)
    return [rng.integers(3, model.n_vocab, n).tolist() for n in sizes]


def greedy(model: pysa.Model, prompt: list[int], n: int) -> tuple[list[int], float]:
    """An answer by a session alone, and how close its closest choice was."""
    with model.session(n_ctx=256, **TYPES) as session:
        logits, tokens, closest = session.eval(prompt)[0], [], np.inf
        for _ in range(n):
            second, best = np.sort(logits)[-2:]
            closest = min(closest, best - second)
            tokens.append(int(np.argmax(logits)))
            logits = session.eval(tokens[-1:])[0]
    return tokens, closest


def clear_prompts(model: pysa.Model, sizes: list[int], n: int) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts whose greedy answers have no choice that rounding could turn, and those answers up to their end."""
    rng, prompts, answers = np.random.default_rng(5), [], []
    while len(prompts) < len(sizes):
        prompt = rng.integers(3, model.n_vocab, sizes[len(prompts)]).tolist()
        tokens, closest = greedy(model, prompt, n)
        if closest > CLEAR:
            prompts.append(prompt)
            answers.append(list(itertools.takewhile(lambda token: not model.is_eog(token), tokens)))
    return prompts, answers


def completion(model: pysa.Model, prompt: list[int], n: int, n_ctx: int = 256) -> Any:
    from pysa.llama.completion import Completion
    from pysa.llama.request import CompletionRequest

    request = CompletionRequest.from_arguments(model, prompt, max_tokens=n, temperature=0.0)
    return Completion(model, request, n_ctx=n_ctx, model_name="m")


def test_a_batch_gives_each_session_its_own_logits(any_model: pysa.Model) -> None:
    prompts = random_prompts(any_model, 40, 1, 9, 23)
    steps = [[7], [200, 8], [5], [11]]
    with ExitStack() as stack:
        alone, batched = (
            [stack.enter_context(any_model.session(n_ctx=256, **TYPES)) for _ in prompts] for _ in range(2)
        )
        for session, prompt in zip([*alone, *batched], prompts * 2, strict=True):
            session.eval(prompt, logits="none")
        batch = Batch(any_model)
        counts, rows = batch.step([(s, t, True) for s, t in zip(batched, steps, strict=True)])
        expected = [session.eval(tokens)[0] for session, tokens in zip(alone, steps, strict=True)]
        assert counts == [1, 2, 1, 1]
        np.testing.assert_allclose(rows, expected, atol=LOGITS_TOLERANCE, rtol=0)
        assert np.abs(expected).max() > 3  # so that the tolerance means something
        assert [s.n_past for s in batched] == [s.n_past for s in alone]
        # A part of a long one: its logits do not come, the next one's do.
        counts, rows = batch.step([(batched[0], [1] * 20, True), (batched[1], [2], True), (batched[2], [3], False)])
        assert counts == [16, 1, 1]
        np.testing.assert_allclose(rows, alone[1].eval([2]), atol=LOGITS_TOLERANCE, rtol=0)


def test_threads_change_nothing_in_a_batch(shared_gguf: Path) -> None:
    def rows(n_threads: int) -> Any:
        with pysa.Model(shared_gguf, n_threads=n_threads) as model, ExitStack() as stack:
            sessions = [stack.enter_context(model.session(n_ctx=64, **{**TYPES, "n_ubatch": 64})) for _ in range(3)]
            batch, prompts = Batch(model), random_prompts(model, 40, 5, 33)
            batch.step([(session, prompt, False) for session, prompt in zip(sessions, prompts, strict=True)])
            return batch.step([(session, [9, 8], True) for session in sessions])[1]

    np.testing.assert_allclose(rows(2), rows(1), atol=LOGITS_TOLERANCE, rtol=0)


def test_a_batch_that_fails_changes_no_session(any_model: pysa.Model, shared_gguf: Path) -> None:
    with ExitStack() as stack:
        a, b = (stack.enter_context(any_model.session(n_ctx=8, **TYPES)) for _ in range(2))
        other = stack.enter_context(pysa.Model(shared_gguf)).session(n_ctx=8)
        for session in (a, b):
            session.eval([5, 6], logits="none")
        batch = Batch(any_model)
        with pytest.raises(ContextFullError):
            batch.step([(a, [1], True), (b, [1] * 7, True)])
        with pytest.raises(EvaluationCancelledError):
            batch.step([(a, [1], True), (b, [1], True)], lambda: True)
        with pytest.raises(ArgumentError, match="every session once"):
            batch.step([(a, [1], True), (a, [2], True)])
        with pytest.raises(ArgumentError, match="entries"):
            batch.step([(a, [1], True), (other, [2], True)])
        with pytest.raises(ArgumentError, match="entries: empty"):
            batch.step([])
        with pytest.raises(ArgumentError, match=r"entries\[1\]\.tokens\[0\]: out of range"):
            batch.step([(a, [1], True), (b, [any_model.n_vocab], True)])
        assert (a.tokens, b.tokens) == ([5, 6], [5, 6])


def test_requests_in_one_batch_equal_requests_alone(any_model: pysa.Model) -> None:
    prompts, answers = clear_prompts(any_model, [30, 3, 1, 55, 12, 41, 8, 19], 12)
    assert sum(map(len, answers)) > 60
    with Scheduler(any_model, lambda: any_model.session(n_ctx=256, **TYPES), n_parallel=5, n_piece=8) as scheduler:
        tickets = [scheduler.submit(completion(any_model, prompt, 12)) for prompt in prompts]
        for ticket in tickets:
            ticket.result(WAIT_S)
        stats = scheduler.stats()
    assert [ticket.work.tokens for ticket in tickets] == answers
    assert stats.n_step_tokens > 2 * stats.n_steps  # they did run together


def test_asking_again_reads_nothing_again(any_model: pysa.Model) -> None:
    (prompt,) = random_prompts(any_model, 120)  # several times the window
    with Scheduler(any_model, lambda: any_model.session(n_ctx=256, **TYPES), n_parallel=2) as scheduler:
        first = scheduler.submit(completion(any_model, prompt, 9)).result(WAIT_S)
        before = scheduler.stats()
        again = scheduler.submit(completion(any_model, prompt, 9)).result(WAIT_S)
        after = scheduler.stats()
    assert again["choices"][0]["text"] == first["choices"][0]["text"]
    assert again["usage"]["prompt_tokens_details"] == {"cached_tokens": 119, "reevaluated_tokens": 0}
    # Every token picked took one to be evaluated, the prompt's last among them.
    assert after.n_step_tokens - before.n_step_tokens == after.n_generated_tokens - before.n_generated_tokens


def test_a_real_prompt_is_stopped_within_an_ubatch(dense_gguf: Path) -> None:
    with (
        pysa.Model(dense_gguf, n_threads=1) as model,
        Scheduler(model, lambda: model.session(n_ctx=2048, n_ubatch=32), n_parallel=1) as scheduler,
    ):
        (prompt,) = random_prompts(model, 2000)
        ticket = scheduler.submit(completion(model, prompt, 40, n_ctx=2048))
        until(lambda: scheduler.stats().n_step_tokens > 0)
        ticket.cancel()
        n_before = scheduler.stats().n_step_tokens
        assert ticket.wait(WAIT_S)
        assert scheduler.stats().n_step_tokens <= n_before + 32
        following = scheduler.submit(completion(model, prompt[:5], 3, n_ctx=2048))
        assert following.result(WAIT_S)["usage"]["prompt_tokens_details"]["cached_tokens"] == 4


def test_what_a_lane_forgets_is_found_on_disk(any_model: pysa.Model, tmp_path: Path) -> None:
    from pysa.prefix_cache import PrefixCache

    a, b = random_prompts(any_model, 90, 80)
    cache = PrefixCache(tmp_path, min_tokens=16)

    def ask(scheduler: Scheduler, prompt: list[int]) -> tuple[list[int], int]:
        ticket = scheduler.submit(completion(any_model, prompt, 5))
        usage = ticket.result(WAIT_S)["usage"]
        return ticket.work.tokens, usage["prompt_tokens_details"]["cached_tokens"]

    def make_session() -> pysa.Session:
        return any_model.session(n_ctx=256, **TYPES)

    with Scheduler(any_model, make_session, n_parallel=1, cache=cache) as scheduler:
        first, n_cached = ask(scheduler, a)
        assert n_cached == 0
        assert ask(scheduler, b)[1] == 0
        assert ask(scheduler, a) == (first, 89)  # from the folder: the only lane had forgotten it
    with Scheduler(any_model, make_session, n_parallel=1, cache=cache) as scheduler:
        assert ask(scheduler, b)[1] == 79  # and after the end of the one that read it


def test_the_benchmark_measures_both_ways(dense_gguf: Path) -> None:
    script = Path(__file__).resolve().parents[2] / "bench" / "batch_throughput.py"
    options = ["-s", "1,3", "-d", "5,80", "-n", "4", "--turn", "2", "-t", "1"]
    found = run_script(script, dense_gguf, *options, "--json", "-")
    rows = json.loads(found)["rows"]
    assert [(row["depth"], row["n_sessions"]) for row in rows] == [(5, 1), (5, 3), (80, 1), (80, 3)]
    assert all(row["gain"] == pytest.approx(row["together_per_s"] / row["alone_per_s"]) for row in rows)
    assert all(row["alone_per_s"] > 0 for row in rows)
    table = run_script(script, dense_gguf, *options)
    assert [line.split("|")[1:3] for line in table.splitlines() if line.startswith("| 80")] == [
        [" 80 ", " 1 "],
        [" 80 ", " 3 "],
    ]
    cancelled = json.loads(run_script(script, dense_gguf, "--cancel", "2", "-t", "1", "--json", "-"))["cancel_ms"]
    assert {phase: len(times) for phase, times in cancelled.items()} == {"prompt": 2, "decode": 2}
    assert max(cancelled["prompt"] + cancelled["decode"]) < 5000  # within an ubatch, not at the end of the prompt


def run_script(script: Path, *arguments: object) -> str:
    command = [sys.executable, str(script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=True).stdout
