"""Decoding step by step: a step that takes the last one's graph again, and a cache that was filled or has grown.

Equalities are exact (np.array_equal): the same rows through the same kernels give the same bits. A fresh session that
loads a state builds its graph anew and allocates its cache in one piece, so it says what a kept graph should give.
"""

from __future__ import annotations

import itertools
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.plans import GQA3, build_plan
from numpy.typing import NDArray

import pysa

N_SINK, N_RECENT, N_SLACK = 5, 40, 32
CACHE_PARTS = ("n_past", "n_rows", "n_window_rows", "keys", "values", "window_keys", "window_values", "total", "dense")

# name: (plan kind, K type, V type)
SETUPS = {
    "dense": ("owners", "f16", "f16"),
    "mixed": ("mixed", "f32", "f16"),
    "mixed-quantised": ("mixed", "q8_0", "q4_0"),
    "streaming": ("streaming", "bf16", "f16"),
    "sa": ("sa", "f16", "q8_0"),
}


@pytest.fixture(params=["composed", "fused"])
def attention(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=list(SETUPS))
def setup(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@lru_cache(maxsize=4)
def open_model(path: Path) -> pysa.Model:
    return pysa.Model(path, n_threads=1)


def new_session(folder: Path, setup: str, attention: str, n_ctx: int = 700, **options: Any) -> pysa.Session:
    kind, type_k, type_v = SETUPS[setup]
    n_sink, n_recent = (0, 0) if kind == "sa" else (N_SINK, N_RECENT)
    plan = build_plan(kind, GQA3, n_sink, n_recent, bias=kind == "mixed", seed=1)
    types: dict[str, Any] = {"type_k": type_k, "type_v": type_v, "attention": attention}
    model = open_model(GQA3.write(folder))
    return model.session(n_ctx=n_ctx, n_ubatch=29, n_slack=N_SLACK, plan=plan, **types, **options)


def prompt(n: int, seed: int = 0) -> NDArray[np.int32]:
    return np.random.default_rng(seed).integers(0, 256, n).astype(np.int32)


class Checked:
    """A session whose every evaluation is compared with one of a fresh session in the same state."""

    def __init__(self, session: pysa.Session, path: Path) -> None:
        self.session = session
        self._path = path

    def eval(self, tokens: NDArray[np.int32], logits: Any = "last") -> None:
        """Evaluates, here and there."""
        self.session.save(self._path, force=True)
        with self.session.model.load_session(self._path) as fresh:
            expected = fresh.eval(tokens, logits=logits)
        actual = self.session.eval(tokens, logits=logits)
        assert np.isfinite(actual).all()
        assert np.array_equal(actual, expected), f"at {self.session.n_past}, {len(tokens)} tokens, logits={logits}"


# -- graphs kept from step to step -----------------------------------------------------------------------------------


@pytest.mark.parametrize("n_past", [1, 38, 250])  # sinks to ring; a ring not yet full; the cache grows at 256
def test_single_tokens_equal_those_of_new_graphs(
    folder: Path, tmp_path: Path, setup: str, attention: str, n_past: int
) -> None:
    with new_session(folder, setup, attention) as session:
        session.eval(prompt(n_past), logits="none")
        checked = Checked(session, tmp_path / "state")
        for token in prompt(12, seed=3):
            checked.eval(token[None])


def test_steps_of_changing_shape_equal_those_of_new_graphs(
    folder: Path, tmp_path: Path, setup: str, attention: str
) -> None:
    with new_session(folder, setup, attention) as session:
        checked = Checked(session, tmp_path / "state")
        for n, logits in itertools.product((1, 1, 2, 2, 29, 58, 3, 1), ("last", "last", "none", "all", "none")):
            checked.eval(prompt(n, seed=n), logits)
        assert session.n_past > 256


def test_a_graph_kept_before_going_back_or_failing_is_right_after_it(
    folder: Path, tmp_path: Path, setup: str, attention: str
) -> None:
    with new_session(folder, setup, attention) as session:
        checked = Checked(session, tmp_path / "state")
        session.eval(prompt(100), logits="none")
        for i, token in enumerate(prompt(16, seed=4)):
            checked.eval(token[None])
            if i % 4 == 0:
                session.truncate(session.n_past - 1)
            elif i % 4 == 1:
                asked = itertools.count()
                with pytest.raises(pysa.EvaluationCancelledError):
                    session.native.eval(token[None], "last", lambda n=i, asked=asked: next(asked) >= 3 * n)
            elif i % 4 == 2:
                with pytest.raises(pysa.ContextFullError):
                    session.eval(prompt(700))
        session.reset()
        for token in prompt(8, seed=5):
            checked.eval(token[None])


def test_sessions_do_not_share_graphs(folder: Path, setup: str, attention: str) -> None:
    tokens = prompt(40)
    with new_session(folder, setup, attention) as alone:
        expected = [alone.eval(token[None]) for token in tokens]
    with new_session(folder, setup, attention) as a, new_session(folder, setup, attention) as b:
        for token, row in zip(tokens, expected, strict=True):
            assert np.array_equal(a.eval(token[None]), row)
            assert np.array_equal(b.eval(token[None]), row)


def test_the_next_token_is_the_likeliest_of_eval(folder: Path, setup: str, attention: str) -> None:
    with new_session(folder, setup, attention) as a, new_session(folder, setup, attention) as b:
        given = list(a.generate(prompt(30), max_tokens=20, stop_at_eog=False))
        row = b.eval(prompt(30))
        for token in given:
            assert token == row[-1].argmax()
            row = b.eval([token])


def test_logits_are_the_callers_own(folder: Path) -> None:
    with new_session(folder, "dense", "fused") as session:
        first = session.eval(prompt(3))
        kept = first.copy()
        second = session.eval(prompt(1))
        assert first.flags.writeable
        assert first.flags.owndata
        assert not np.shares_memory(first, second)
        assert np.array_equal(first, kept)


# -- filling ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_past", "n"), [(1, 2), (1, 300), (3, 30), (40, 400), (100, 101), (300, 300), (90, 700)])
def test_a_filled_cache_is_as_long_and_as_large_as_an_evaluated_one(
    folder: Path, setup: str, attention: str, n_past: int, n: int
) -> None:
    with (
        new_session(folder, setup, attention) as filled,
        new_session(folder, setup, attention) as evaluated,
    ):
        tokens = prompt(n)
        filled.eval(tokens[:n_past], logits="none")
        filled._fill(n)
        evaluated.eval(tokens, logits="none")
        assert filled.n_past == n
        memory, expected = filled.memory(), evaluated.memory()
        assert {part: memory[part] for part in CACHE_PARTS} == {part: expected[part] for part in CACHE_PARTS}
        assert len(filled.tokens) == n
        assert set(filled.tokens) <= set(tokens[:n_past].tolist())
        assert filled.tokens[:n_past] == tokens[:n_past].tolist()
        assert can_go_back(filled) == can_go_back(evaluated)
        if n < 700:
            assert np.isfinite(filled.eval([5])).all()


def can_go_back(session: pysa.Session) -> list[bool]:
    """For each position whether truncate() is free, as the ring's bookkeeping has it."""
    return [session.native.rollback_position(n) == n for n in range(session.n_past + 1)]


def test_filling_is_decided_by_the_seed(folder: Path, tmp_path: Path, setup: str) -> None:
    rows = []
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        with new_session(folder, setup, "fused") as session:
            session.eval(prompt(50), logits="none")
            session._fill(350, seed=seed)
            session.save(tmp_path / name)
            rows.append(session.eval([5]))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert np.array_equal(rows[0], rows[1])
    assert (tmp_path / "a").read_bytes() != (tmp_path / "c").read_bytes()


def test_filling_copies_keys_and_values_of_one_position(folder: Path, setup: str, attention: str) -> None:
    """From one position there is only one row to copy: a softmax over equal rows gives the same value at any length."""
    with new_session(folder, setup, attention) as session:
        first = session.eval([9])
        session._fill(2 * N_RECENT)
        assert session.tokens == [9] * 2 * N_RECENT
        session.truncate(0)
        assert np.array_equal(session.eval([9]), first)


def test_both_implementations_read_a_filled_cache_alike(folder: Path, setup: str) -> None:
    rows = []
    for attention in ("composed", "fused"):
        with new_session(folder, setup, attention) as session:
            session.eval(prompt(100), logits="none")
            session._fill(500, seed=3)
            rows.append(session.eval([5]))
    assert np.abs(rows[0] - rows[1]).max() <= 0.05 * np.abs(rows[0]).max()  # q4_0 is the coarsest


def test_a_filled_session_is_saved_and_goes_back_as_any_other(folder: Path, tmp_path: Path, setup: str) -> None:
    with new_session(folder, setup, "fused") as session:
        session.eval(prompt(60), logits="none")
        session._fill(333)
        checked = Checked(session, tmp_path / "state")
        for token in prompt(N_SLACK, seed=4):
            checked.eval(token[None])
        session.truncate(session.n_past - N_SLACK)
        checked.eval(prompt(1))


@pytest.mark.parametrize(
    ("n", "seed", "message"),
    [
        (29, 0, r"fill: n: expected 30 \(held\) to 700 \(n_ctx\), got 29"),
        (701, 0, r"fill: n: expected 30 \(held\) to 700 \(n_ctx\), got 701"),
        (-1, 0, "n: out of range"),
        (1.5, 0, "n: wrong type"),
        (40, -1, "seed: out of range"),
    ],
)
def test_fill_refuses(folder: Path, n: Any, seed: int, message: str) -> None:
    with new_session(folder, "mixed", "auto") as session:
        with pytest.raises(pysa.ArgumentError, match="fill: expected a session that holds tokens, got none"):
            session._fill(40)
        session.eval(prompt(30), logits="none")
        with pytest.raises(pysa.ArgumentError, match=message):
            session._fill(n, seed)
        assert session.n_past == 30


# -- growth ----------------------------------------------------------------------------------------------------------


def rows_for(session: pysa.Session, n: int) -> int:
    """Rows allocated when n tokens are asked for: room is made before the first is computed, so stop right there."""
    with pytest.raises(pysa.EvaluationCancelledError):
        session.native.eval(np.zeros(n - session.n_past, np.int32), "none", lambda: True)
    return session.memory()["n_rows"]


def test_a_long_cache_grows_by_a_share_of_itself(folder: Path) -> None:
    with new_session(folder, "sa", "composed", n_ctx=20000) as session:
        assert rows_for(session, 1) == 256
        assert rows_for(session, 257) == 512
        assert rows_for(session, 4000) == 4096
        assert rows_for(session, 4097) == 4096 + 256
        assert rows_for(session, 16000) == 16128  # what is asked for, in whole blocks
        assert rows_for(session, 16129) == 16128 + 1024
        assert rows_for(session, 19968) == 19968
        assert rows_for(session, 19969) == 20224  # never more than n_ctx needs


def test_rows_outlive_growth(folder: Path, tmp_path: Path, setup: str) -> None:
    with new_session(folder, setup, "fused", n_ctx=3000) as session:
        session.eval(prompt(200), logits="none")
        session.save(tmp_path / "state")
        assert rows_for(session, 2900) == 3072
        with session.model.load_session(tmp_path / "state") as small:
            assert np.array_equal(session.eval(prompt(2)), small.eval(prompt(2)))


# -- values left out -------------------------------------------------------------------------------------------------


def test_composed_attention_leaves_nothing_out(folder: Path, setup: str) -> None:
    with (
        new_session(folder, setup, "composed", v_skip=0.0) as exact,
        new_session(folder, setup, "composed", v_skip=0.5) as session,
    ):
        assert (exact.v_skip, session.v_skip) == (0.0, 0.5)
        assert np.array_equal(session.eval(prompt(200), logits="all"), exact.eval(prompt(200), logits="all"))
        for token in prompt(5):
            assert np.array_equal(session.eval(token[None]), exact.eval(token[None]))
        assert set(session.skip_report().values()) == {0}


def test_the_skip_report_starts_at_zero_and_anew(folder: Path, tmp_path: Path, setup: str, attention: str) -> None:
    names = {"n_values", "n_values_read", "dropped_mass_max", "dropped_mass_mean"}
    with new_session(folder, setup, attention, v_skip=0.25) as session:
        assert session.skip_report() == dict.fromkeys(names, 0)
        session.eval(prompt(200), logits="none")
        session.eval(prompt(1))
        report = session.skip_report()
        assert 0 <= report["n_values_read"] <= report["n_values"]
        assert 0 <= report["dropped_mass_mean"] <= report["dropped_mass_max"] <= 0.25 * 1.0001  # f16 sums
        session.save(tmp_path / "state")
        session.reset()
        assert session.skip_report() == dict.fromkeys(names, 0)
        with session.model.load_session(tmp_path / "state") as loaded:
            assert loaded.v_skip == 0.25
            assert loaded.skip_report() == dict.fromkeys(names, 0)
