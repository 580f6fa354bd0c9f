"""Several sessions in one graph: the same results as alone, and all or nothing.

Alone and together differ in rounding only: a product with several columns adds up in another order. Weights are f32, so
that nothing is rounded to a coarse step on the way.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.plans import GQA3, build_plan
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import pysa
from pysa import _native

N_SINK, N_RECENT = 5, 40
N_CTX, N_UBATCH = 400, 23
# (plan kind, K type, V type, attention): a batch may hold sessions of any of them
SETUPS = [
    ("owners", "f16", "f16", "fused"),
    ("mixed", "f32", "f16", "fused"),
    ("mixed", "q8_0", "q4_0", "composed"),
    ("streaming", "bf16", "f16", "fused"),
    ("sa", "f16", "q8_0", "fused"),
]
# The sum over a row of 160 products, in another order; logits are of the order of 10. A key or value row that rounding
# tips over to the next step of its cache's type is off by one step: 2^-8 of it in bf16, 1/127 in q8_0, 1/7 in q4_0.
TOLERANCE = {"f32": 1e-3, "f16": 1e-2, "bf16": 0.1, "q8_0": 0.1, "q4_0": 0.5}


@pytest.fixture(scope="module")
def model(folder: Path) -> pysa.Model:
    return pysa.Model(GQA3.write(folder), n_threads=1)


def new_session(model: pysa.Model, which: int) -> pysa.Session:
    kind, type_k, type_v, attention = SETUPS[which]
    n_sink, n_recent = (0, 0) if kind == "sa" else (N_SINK, N_RECENT)
    plan = build_plan(kind, GQA3, n_sink, n_recent, bias=kind == "mixed", seed=1)
    types: dict[str, Any] = {"type_k": type_k, "type_v": type_v, "attention": attention}
    return model.session(n_ctx=N_CTX, n_ubatch=N_UBATCH, plan=plan, v_skip=0.0, **types)


def some(n: int, seed: int) -> NDArray[np.int32]:
    return np.random.default_rng(seed).integers(0, 256, n).astype(np.int32)


def limit(which: int) -> float:
    return max(TOLERANCE[SETUPS[which][1]], TOLERANCE[SETUPS[which][2]])


def evaluate(batch: _native.Batch, entries: list[tuple[pysa.Session, NDArray[np.int32]]]) -> list[NDArray[np.float32]]:
    """Steps until every entry is evaluated; the logits of their last tokens, in order."""
    left = [tokens for _, tokens in entries]
    found: list[NDArray[np.float32] | None] = [None] * len(entries)
    while any(len(tokens) for tokens in left):
        taking = [i for i, tokens in enumerate(left) if len(tokens)]
        before = [entries[i][0].n_past for i in taking]
        counts, rows = batch.step([(entries[i][0].native, left[i], True) for i in taking])
        done = [i for i, count in zip(taking, counts, strict=True) if count == len(left[i])]
        assert rows.shape == (len(done), entries[0][0].model.n_vocab)
        assert [entries[i][0].n_past for i in taking] == [n + c for n, c in zip(before, counts, strict=True)]
        assert all(1 <= count <= N_UBATCH for count in counts)
        for i, row in zip(done, rows, strict=True):
            found[i] = row
        for i, count in zip(taking, counts, strict=True):
            left[i] = left[i][count:]
    assert all(row is not None for row in found)
    return [row for row in found if row is not None]


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_together_equals_alone(model: pysa.Model, data: st.DataObject) -> None:
    which = data.draw(st.lists(st.integers(0, len(SETUPS) - 1), min_size=1, max_size=6), label="setups")
    together = [new_session(model, w) for w in which]
    alone = [new_session(model, w) for w in which]
    batch = _native.Batch(model.native)
    for round_ in range(data.draw(st.integers(1, 5), label="rounds")):
        lengths = data.draw(
            st.lists(st.sampled_from([0, 1, 1, 1, 2, 24, 60]), min_size=len(which), max_size=len(which)), label="tokens"
        )
        taking = [i for i, n in enumerate(lengths) if n > 0]
        tokens = {i: some(lengths[i], 100 * round_ + i) for i in taking}
        rows = evaluate(batch, [(together[i], tokens[i]) for i in taking]) if taking else []
        for i, row in zip(taking, rows, strict=True):
            expected = alone[i].eval(tokens[i])[0]
            assert np.abs(row - expected).max() <= limit(which[i]), (round_, i, SETUPS[which[i]])
    for a, b in zip(together, alone, strict=True):
        assert a.tokens == b.tokens


def test_a_graph_kept_from_step_to_step_changes_nothing(model: pysa.Model) -> None:
    kept, anew = ([new_session(model, w) for w in (0, 1, 3)] for _ in range(2))
    for sessions in (kept, anew):
        for i, session in enumerate(sessions):
            session.eval(some(30 + 20 * i, i), logits="none")
    batch = _native.Batch(model.native)
    # 256 positions are passed on the way, where caches grow and graphs must be built again.
    for step in range(230):
        entries = [some(1, step + i) for i in range(3)]
        _, rows = batch.step([(s.native, t, True) for s, t in zip(kept, entries, strict=True)])
        _, expected = _native.Batch(model.native).step(
            [(s.native, t, True) for s, t in zip(anew, entries, strict=True)]
        )
        assert np.array_equal(rows, expected), step


def test_who_wants_logits_gets_them_in_order(model: pysa.Model) -> None:
    sessions = [new_session(model, 0) for _ in range(4)]
    tokens = [some(n, n) for n in (9, 1, 40, 3)]  # the third does not come to its end: n_ubatch is 23
    wants = [True, False, True, True]
    entries = [(s.native, t, w) for s, t, w in zip(sessions, tokens, wants, strict=True)]
    counts, rows = _native.Batch(model.native).step(entries)
    assert counts == [9, 1, N_UBATCH, 3]
    for row, i in zip(rows, (0, 3), strict=True):
        assert np.abs(row - new_session(model, 0).eval(tokens[i])[0]).max() <= limit(0)


@pytest.mark.parametrize("fault", ["context full", "token", "interrupt", "interrupt later", "busy"])
def test_a_fault_leaves_every_session_as_it_was(model: pysa.Model, fault: str) -> None:
    which = (1, 3, 0)
    sessions, fresh = ([new_session(model, w) for w in which] for _ in range(2))
    for group in (sessions, fresh):
        for i, session in enumerate(group):
            session.eval(some(150 if fault != "context full" or i < 2 else N_CTX - 2, i), logits="none")
    tokens = [some(20, 7), some(1, 8), some(3, 9)]
    asked = itertools.count()
    interrupt = None
    expected: type[Exception] = pysa.ContextFullError
    if fault == "token":
        tokens[2][1] = 1 << 20
        expected = pysa.ArgumentError
    elif fault.startswith("interrupt"):
        n_calls = 0 if fault == "interrupt" else 60
        interrupt, expected = (lambda: next(asked) >= n_calls), pysa.EvaluationCancelledError
    batch = _native.Batch(model.native)
    entries = [(s.native, t, True) for s, t in zip(sessions, tokens, strict=True)]
    if fault == "busy":
        expected = pysa.SessionBusyError

        def enter() -> bool:
            batch_of_another = _native.Batch(model.native)
            batch_of_another.step([(sessions[1].native, tokens[1], True)])
            return False

        interrupt = enter
    with pytest.raises(expected):
        batch.step(entries, interrupt)
    for session, other in zip(sessions, fresh, strict=True):
        assert session.tokens == other.tokens
        if session.n_past + 2 <= N_CTX:
            assert np.array_equal(session.eval(some(2, 5)), other.eval(some(2, 5)))


def test_entries_that_make_no_sense(model: pysa.Model, folder: Path) -> None:
    batch = _native.Batch(model.native)
    session = new_session(model, 0)
    foreign = new_session(pysa.Model(GQA3.write(folder), n_threads=1), 0)
    with pytest.raises(pysa.ArgumentError, match=r"entries\[1\]: expected a session of the batch's model"):
        batch.step([(session.native, some(1, 0), True), (foreign.native, some(1, 0), True)])
    with pytest.raises(pysa.ArgumentError, match=r"entries\[1\]: expected every session once"):
        batch.step([(session.native, some(1, 0), True), (session.native, some(1, 0), True)])
    with pytest.raises(pysa.ArgumentError, match="tokens: expected at least one"):
        batch.step([(session.native, some(0, 0), True)])
    with pytest.raises(pysa.ArgumentError, match="expected shape"):
        batch.step([(session.native, some(4, 0).reshape(2, 2), True)])
    assert batch.step([])[0] == []
    assert session.n_past == 0


def test_more_sessions_than_there_was_room_for(model: pysa.Model) -> None:
    batch = _native.Batch(model.native)
    for n in (2, 11, 3):
        sessions = [new_session(model, 0) for _ in range(n)]
        tokens = [some(3 + i, i) for i in range(n)]
        _, rows = batch.step([(s.native, t, True) for s, t in zip(sessions, tokens, strict=True)])
        for row, t in zip(rows, tokens, strict=True):
            assert np.abs(row - new_session(model, 0).eval(t)[0]).max() <= limit(0)


def test_embeddings_are_what_logits_are_made_from(folder: Path) -> None:
    path = GQA3.write(folder)
    tokens = some(40, 3)
    import gguf

    weights = {t.name: np.array(t.data, np.float32) for t in gguf.GGUFReader(path).tensors}
    output = weights.get("output.weight", weights["token_embd.weight"])
    with pysa.Model(path, n_threads=1) as model, model.session(n_ctx=64, n_ubatch=13) as session:
        embeddings = session.native.eval(tokens, "embeddings")
        session.reset()
        logits = session.eval(tokens, logits="all")
    assert embeddings.shape == (40, 96)
    # float64 on this side, float32 on that.
    assert np.abs(embeddings.astype(np.float64) @ output.astype(np.float64).T - logits).max() <= 1e-3
