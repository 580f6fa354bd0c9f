"""Prefix reuse: what is kept is exact, what is not is counted, and the engine evaluates no more than was said."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import N_THREADS
from helpers.plans import TOLERANCES, relative_error
from hypothesis import given
from hypothesis import strategies as st

import pysa
from pysa.prefix import Reuse, common_prefix, evaluate_prompt, returnable, rewind

N_UBATCH = 32
FIELDS: dict[str, Any] = {"n_ctx": 1024, "n_ubatch": N_UBATCH, "type_k": "f32", "type_v": "f32"}


class Spy:
    """A native session that counts the tokens it really evaluates."""

    def __init__(self, native: Any) -> None:
        self.native = native
        self.n_evaluated = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.native, name)

    def eval(self, ids: Any, *arguments: Any) -> Any:
        out = self.native.eval(ids, *arguments)
        self.n_evaluated += len(ids)
        return out


@pytest.fixture(scope="module", params=["window", "dense"])
def model(request: pytest.FixtureRequest, shared_gguf: Path, dense_gguf: Path) -> Iterator[pysa.Model]:
    path = shared_gguf if request.param == "window" else dense_gguf
    with pysa.Model(path, n_threads=N_THREADS) as opened:
        yield opened


@pytest.fixture
def make(model: pysa.Model) -> Callable[..., pysa.Session]:
    def session(**fields: Any) -> pysa.Session:
        made = model.session(**{**FIELDS, **fields})
        made._session = Spy(made.native)  # type: ignore[assignment]
        return made

    return session


def text(n: int, seed: int) -> list[int]:
    """Random ids of bytes."""
    return np.random.default_rng(seed).integers(3, 259, n).tolist()


def say(session: pysa.Session, n: int, seed: int = 9) -> list[int]:
    """As if `n` tokens had been generated, one after the other."""
    tokens = text(n, seed)
    for token in tokens:
        session.eval([token])
    return tokens


def test_another_answer_is_free_and_the_same_bit_for_bit(make: Callable[..., pysa.Session]) -> None:
    session, prompt = make(), text(301, 1)
    first, reuse = evaluate_prompt(session, prompt)
    assert reuse == Reuse(0, 0)
    say(session, 90)  # the window, 24 tokens, has forgotten the prompt's end
    n_before = session.native.n_evaluated

    again, reuse = evaluate_prompt(session, prompt)
    assert reuse == Reuse(300, 0)
    assert session.native.n_evaluated - n_before == 1
    np.testing.assert_array_equal(again, first)
    fresh, _ = evaluate_prompt(make(), prompt)
    np.testing.assert_array_equal(fresh, first)
    assert session.tokens == prompt


def test_a_turn_more_evaluates_the_turn_alone(make: Callable[..., pysa.Session]) -> None:
    session, prompt = make(), text(120, 2)
    evaluate_prompt(session, prompt)
    answer = say(session, 40)
    n_before = session.native.n_evaluated
    _, reuse = evaluate_prompt(session, prompt + answer + text(17, 3))
    assert reuse == Reuse(160, 0)
    assert session.native.n_evaluated - n_before == 17


def test_an_edited_turn_returns_to_where_it_began(make: Callable[..., pysa.Session]) -> None:
    edited, straight = make(), make()
    history = text(140, 4)
    second, other = [5, *text(60, 5)], [6, *text(33, 6)]
    for session in (edited, straight):
        evaluate_prompt(session, history)
    history = history + say(edited, 50)
    say(straight, 50)

    evaluate_prompt(edited, history + second)
    say(edited, 70, seed=11)
    n_before = edited.native.n_evaluated
    logits, reuse = evaluate_prompt(edited, history + other)
    assert reuse == Reuse(190, 0)
    assert edited.native.n_evaluated - n_before == 34
    # As if the other version had never been.
    expected, _ = evaluate_prompt(straight, history + other)
    np.testing.assert_array_equal(logits, expected)


def test_an_undone_turn_returns_to_the_one_before(make: Callable[..., pysa.Session]) -> None:
    session, prompts, prompt = make(), [], []
    logits = []
    for turn in range(3):  # the engine keeps rows of some windows, 24 tokens each, to go back to
        prompt = prompt + text(10 + turn, 20 + turn)
        logits.append(evaluate_prompt(session, prompt)[0])
        prompts.append(prompt)
        prompt = prompt + say(session, 12, seed=30 + turn)
    for turn in (2, 1, 0):
        again, reuse = evaluate_prompt(session, prompts[turn])
        assert reuse == Reuse(len(prompts[turn]) - 1, 0)
        np.testing.assert_array_equal(again, logits[turn])


def test_what_the_window_forgot_is_evaluated_again_and_counted(shared_model: pysa.Model) -> None:
    session = shared_model.session(**FIELDS)
    prompt = text(300, 7)
    session.eval(prompt)  # leaves no checkpoint
    assert rewind(session, prompt[:150] + text(10, 8)) == Reuse(0, 150)
    assert session.n_past == 0

    session.eval(prompt)
    assert session.native.rollback_position(150) == 4  # the sinks are held; a fresh session would not begin there
    session.truncate(0)
    session.eval(prompt[:100])
    session.checkpoint()
    session.eval(prompt[100:])
    logits, reuse = evaluate_prompt(session, prompt[:150])
    assert reuse == Reuse(100, 49)
    expected, _ = evaluate_prompt(shared_model.session(**FIELDS), prompt[:150])
    assert relative_error(logits, expected) <= 2 * TOLERANCES["fused", "f32"]


def test_the_third_question_about_a_text_is_free(shared_model: pysa.Model) -> None:
    session = shared_model.session(**FIELDS)
    document = text(330, 13)
    reuses = [evaluate_prompt(session, [*document, 5 + i, *text(70, 14 + i)])[1] for i in range(3)]
    # Where the text ends is not known before the second question departs from the first.
    assert reuses[0] == Reuse(0, 0)
    assert reuses[1].n_reused < 330
    assert reuses[1].n_reused + reuses[1].n_reevaluated == 330
    assert reuses[2] == Reuse(330, 0)


def test_a_long_prompt_leaves_checkpoints_towards_its_end(shared_model: pysa.Model) -> None:
    session = shared_model.session(**FIELDS)
    prompt = text(1000, 10)
    evaluate_prompt(session, prompt)
    # An edit near the end costs little, one further up more: never more than about four times the distance.
    costs = {}
    for n_kept in (980, 900, 800, 600):
        other = shared_model.session(**FIELDS)
        evaluate_prompt(other, prompt)
        costs[n_kept] = rewind(other, prompt[:n_kept] + text(10, 12)).n_reevaluated
    assert all(cost <= 4 * (1000 - n) + 2 * N_UBATCH for n, cost in costs.items()), costs
    assert returnable(session)[0] == (999, 1000)


def test_random_walks_of_edits_equal_fresh_evaluation(make: Callable[..., pysa.Session]) -> None:
    # Two evaluations of the same tokens, cut into other ubatches, each within the tolerance of the float64 reference.
    limit = 2 * TOLERANCES["fused", "f32"]
    rng = np.random.default_rng(5)
    session = make(v_skip=0.0)
    prompt = text(60, 40)
    for step in range(15):
        n_kept = int(rng.integers(0, len(prompt) + 1)) if rng.random() < 0.6 else len(prompt)
        prompt = (prompt[:n_kept] + text(int(rng.integers(1, 90)), 100 + step))[:900]
        held, n_before = session.tokens, session.native.n_evaluated
        logits, reuse = evaluate_prompt(session, prompt)
        assert session.tokens == prompt
        assert reuse.n_reused + reuse.n_reevaluated == common_prefix(held, prompt[:-1])
        assert session.native.n_evaluated - n_before == len(prompt) - reuse.n_reused
        expected = make(v_skip=0.0).eval(prompt)[0]
        assert relative_error(logits, expected) <= limit, (step, reuse)
        if rng.random() < 0.5:
            prompt = prompt + say(session, int(rng.integers(1, 60)), seed=300 + step)


def test_an_interrupt_keeps_what_was_read(make: Callable[..., pysa.Session]) -> None:
    prompt = text(400, 50)
    expected, _ = evaluate_prompt(make(), prompt)
    session = make()
    with pytest.raises(pysa.EvaluationCancelledError):
        evaluate_prompt(session, prompt, interrupt=lambda: session.n_past >= 3 * N_UBATCH)
    assert session.tokens == prompt[: 3 * N_UBATCH]
    logits, reuse = evaluate_prompt(session, prompt)
    assert reuse == Reuse(3 * N_UBATCH, 0)
    np.testing.assert_array_equal(logits, expected)


def test_keep_last_leaves_tokens_to_evaluate(make: Callable[..., pysa.Session]) -> None:
    session, prompt = make(), text(20, 60)
    session.eval(prompt)
    assert rewind(session, prompt, keep_last=0) == Reuse(20, 0)
    assert rewind(session, prompt[:19], keep_last=0) == Reuse(19, 0)
    assert rewind(session, prompt, keep_last=5) == Reuse(15, 0)
    assert rewind(session, prompt, keep_last=100) == Reuse(0, 0)
    assert session.n_past == 0


def test_a_prompt_that_does_not_fit_changes_nothing(make: Callable[..., pysa.Session]) -> None:
    session = make(n_ctx=64)
    evaluate_prompt(session, text(50, 70))
    with pytest.raises(pysa.ContextFullError, match=r"at most 64 tokens \(n_ctx\), got 65"):
        evaluate_prompt(session, text(65, 71))
    assert session.tokens == text(50, 70)
    logits, _ = evaluate_prompt(session, text(64, 71))  # as many as there is room for
    assert np.isfinite(logits).all()


@pytest.mark.parametrize("tokens", [[], [1.5], [-1], [10**6], "text", [[1, 2]]])
def test_what_are_no_tokens_is_refused(make: Callable[..., pysa.Session], tokens: Any) -> None:
    session = make()
    session.eval([7, 8])
    with pytest.raises(pysa.ArgumentError, match="tokens"):
        evaluate_prompt(session, tokens)
    assert session.tokens == [7, 8]


def test_returnable_says_what_rollback_position_does(make: Callable[..., pysa.Session]) -> None:
    session = make(n_slack=7)
    evaluate_prompt(session, text(300, 80))
    say(session, 30)
    said = {n for low, high in returnable(session) for n in range(low, high + 1)}
    n_sink = session.plan.n_sink
    real = {n for n in range(session.n_past + 1) if session.native.rollback_position(n) == n}
    assert said | set(range(n_sink + 1)) == real
    assert max(said) == 330


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_common_prefix(a: list[int], b: list[int]) -> None:
    n = common_prefix(a, b)
    assert a[:n] == b[:n]
    assert n == min(len(a), len(b)) or a[n] != b[n]
