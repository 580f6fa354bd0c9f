"""The split cache: what must come back bit for bit, what must be refused, and what it costs in bytes.

Equalities here are exact (np.array_equal): the same rows through the same kernels give the same bits. Where the kernels
may differ, because tokens were cut into other batches, the limit is stated.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import sys
import textwrap
import threading
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.plans import GQA2, GQA3, Dims, build_plan, make_plan, owners, relative_error
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import pysa
from pysa import Plan

ATTENTIONS = ("composed", "fused")
N_SINK, N_RECENT = 5, 40
N_SLACK = 32
N_UBATCH = 29

# name: (plan kind, K type, V type). The window is far smaller than the prompts, so the rings turn over.
SETUPS = {
    "dense": ("owners", "f16", "f16"),
    "mixed": ("mixed", "f32", "f32"),
    "mixed-f16": ("mixed", "f16", "f16"),
    "mixed-quantised": ("mixed", "q8_0", "q4_0"),
    "streaming": ("streaming", "bf16", "f16"),
    "sa": ("sa", "f16", "q8_0"),
}


@pytest.fixture(params=ATTENTIONS)
def attention(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=list(SETUPS))
def setup(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@lru_cache(maxsize=8)
def open_model(path: Path) -> pysa.Model:
    return pysa.Model(path, n_threads=1)


def plan_for(kind: str, dims: Dims = GQA3) -> Plan:
    n_sink, n_recent = (0, 0) if kind == "sa" else (N_SINK, N_RECENT)
    return build_plan(kind, dims, n_sink, n_recent, bias=kind == "mixed", seed=1)


def new_session(folder: Path, setup: str, attention: str, n_ctx: int = 700) -> pysa.Session:
    kind, type_k, type_v = SETUPS[setup]
    model = open_model(GQA3.write(folder))
    options: dict[str, Any] = {"type_k": type_k, "type_v": type_v, "attention": attention}
    return model.session(n_ctx=n_ctx, n_ubatch=N_UBATCH, n_slack=N_SLACK, plan=plan_for(kind), **options)


def prompt(n: int, seed: int = 0) -> NDArray[np.int32]:
    return np.random.default_rng(seed).integers(0, 256, n).astype(np.int32)


def continued(session: pysa.Session, seed: int = 77) -> list[NDArray[np.float32]]:
    """Logits of a fixed continuation: a chunk longer than the window, then single tokens."""
    tokens = prompt(60, seed)
    return [session.eval(tokens[:53], logits="all"), *(session.eval(tokens[i : i + 1]) for i in range(53, 60))]


def assert_same_bits(actual: list[NDArray[np.float32]], expected: list[NDArray[np.float32]]) -> None:
    assert len(actual) == len(expected)
    for a, b in zip(actual, expected, strict=True):
        assert a.shape == b.shape
        assert np.isfinite(a).all()
        assert np.array_equal(a, b)


# -- save and load ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_past", [1, 30, 257, 391])
def test_saved_session_continues_bit_for_bit(
    folder: Path, tmp_path: Path, setup: str, attention: str, n_past: int
) -> None:
    with new_session(folder, setup, attention) as session:
        session.eval(prompt(n_past), logits="none")
        session.save(tmp_path / "state")
        expected = continued(session)
        with session.model.load_session(tmp_path / "state") as loaded:
            assert loaded.n_past == n_past
            assert (loaded.n_ctx, loaded.n_ubatch, loaded.attention) == (700, N_UBATCH, attention)
            assert loaded.plan == session.plan
            loaded.save(tmp_path / "again")
            assert (tmp_path / "again").read_bytes() == (tmp_path / "state").read_bytes()
            assert_same_bits(continued(loaded), expected)


def test_save_does_not_replace_a_file_unasked(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "state"
    with new_session(folder, "mixed", "auto") as session:
        session.eval(prompt(50), logits="none")
        session.save(path)
        before = path.read_bytes()
        session.eval(prompt(9), logits="none")
        with pytest.raises(pysa.ArgumentError, match="state"):
            session.save(path)
        assert path.read_bytes() == before
        session.save(path, force=True)
        assert session.model.load_session(path).n_past == 59
    assert [entry.name for entry in tmp_path.iterdir()] == ["state"]


@pytest.fixture(scope="module")
def state_bytes(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("state") / "state"
    with new_session(folder, "mixed-f16", "composed") as session:
        session.eval(prompt(120), logits="none")
        session.save(path)
    return path.read_bytes()


def test_truncated_state_files_are_refused(folder: Path, tmp_path: Path, state_bytes: bytes) -> None:
    model = open_model(GQA3.write(folder))
    n = len(state_bytes)
    path = tmp_path / "state"
    for size in sorted({0, 1, 3, 4, 7, 8, 15, 16, 31, 64, 100, 500, n // 2, n - 1000, n - 9, n - 1}):
        path.write_bytes(state_bytes[:size])
        with pytest.raises(pysa.StateFileError, match="state"):
            model.load_session(path)
    path.write_bytes(state_bytes + b"\0")
    with pytest.raises(pysa.StateFileError, match="state"):
        model.load_session(path)
    with pytest.raises(pysa.StateFileError, match="missing"):
        model.load_session(tmp_path / "missing")


def test_flipped_bits_in_a_state_file_are_refused(folder: Path, tmp_path: Path, state_bytes: bytes) -> None:
    model = open_model(GQA3.write(folder))
    path = tmp_path / "state"
    n = len(state_bytes)
    spread = np.random.default_rng(3).integers(0, n, 150).tolist()
    for offset in sorted({*range(min(n, 250)), *spread, n - 1}):
        damaged = bytearray(state_bytes)
        damaged[offset] ^= 1 << (offset % 8)
        path.write_bytes(damaged)
        with pytest.raises(pysa.StateFileError):
            model.load_session(path)
    path.write_bytes(state_bytes)
    assert model.load_session(path).n_past == 120


OTHER_MODELS: dict[str, tuple[Dims, dict[str, Any]]] = {
    "weights": (GQA3, {"seed": 1}),
    "weight type": (GQA3, {"dtype": "f16"}),
    "dimensions": (GQA2, {}),
    "plan": (GQA3, {"plan": plan_for("pod").to_json()}),
}


@pytest.mark.parametrize("other", list(OTHER_MODELS))
def test_state_of_another_model_is_refused(folder: Path, tmp_path: Path, state_bytes: bytes, other: str) -> None:
    path = tmp_path / "state"
    path.write_bytes(state_bytes)
    dims, fields = OTHER_MODELS[other]
    with pytest.raises(pysa.StateFileError, match="state"):
        open_model(dims.write(folder, **fields)).load_session(path)


# -- truncate and checkpoint -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_back", [1, 7, N_SLACK + 1])
def test_truncating_within_the_slack_equals_never_having_gone_further(
    folder: Path, setup: str, attention: str, n_back: int
) -> None:
    n = 203
    with new_session(folder, setup, attention) as fresh, new_session(folder, setup, attention) as session:
        fresh.eval(prompt(n), logits="none")
        session.eval(prompt(n), logits="none")
        session.eval(prompt(n_back, seed=5), logits="none")
        assert session.truncate(n) == 0
        assert session.n_past == n
        assert_same_bits(continued(session), continued(fresh))


def test_truncating_into_a_chunk_equals_evaluating_the_shorter_prompt(folder: Path, setup: str, attention: str) -> None:
    """The kept rows were computed in a batch of another length, whose kernels may sum in another order."""
    tokens = prompt(230)
    with new_session(folder, setup, attention) as fresh, new_session(folder, setup, attention) as session:
        fresh.eval(tokens[:219], logits="none")
        session.eval(tokens, logits="none")
        session.truncate(219)
        limit = 3e-2 if setup == "mixed-quantised" else 1e-3
        for actual, expected in zip(continued(session), continued(fresh), strict=True):
            assert relative_error(actual, expected) <= limit


def test_checkpoint_returns_exactly(folder: Path, setup: str, attention: str) -> None:
    with new_session(folder, setup, attention) as fresh, new_session(folder, setup, attention) as session:
        fresh.eval(prompt(150), logits="none")
        session.eval(prompt(150), logits="none")
        assert session.checkpoint() == 150
        expected = continued(fresh)
        for seed in (5, 6):
            session.eval(prompt(200, seed), logits="none")
            assert session.truncate(150) == 0
            assert session.n_past == 150
            assert_same_bits(continued(session), expected)
            session.truncate(150)


def test_truncate_to_zero_and_reset_start_anew(folder: Path, setup: str, attention: str) -> None:
    with new_session(folder, setup, attention) as fresh, new_session(folder, setup, attention) as session:
        expected = continued(fresh)
        session.eval(prompt(300), logits="none")
        session.reset()
        assert session.n_past == 0
        assert_same_bits(continued(session), expected)


@pytest.mark.parametrize("setup", ["mixed", "mixed-quantised", "streaming"])
def test_what_the_ring_has_forgotten_is_refused(folder: Path, setup: str, attention: str) -> None:
    with new_session(folder, setup, attention) as fresh, new_session(folder, setup, attention) as session:
        for each in (fresh, session):
            each.eval(prompt(300), logits="none")
        for n in (300 - N_SLACK - 2, 150, 100, N_SINK + 1):
            with pytest.raises(pysa.RollbackError, match=str(n)):
                session.truncate(n)
            assert session.n_past == 300
        assert_same_bits(continued(session), continued(fresh))


def test_refused_positions_are_those_whose_window_is_gone(folder: Path) -> None:
    """Wherever truncate agrees, the result is right: tried from far back to near, on one session each."""
    tokens = prompt(260)
    n_agreed = 0
    for n in range(259, 180, -9):
        with new_session(folder, "mixed", "composed") as session, new_session(folder, "mixed", "composed") as fresh:
            session.eval(tokens, logits="none")
            try:
                session.truncate(n)
            except pysa.RollbackError:
                continue
            n_agreed += 1
            fresh.eval(tokens[:n], logits="none")
            for actual, expected in zip(continued(session), continued(fresh), strict=True):
                assert relative_error(actual, expected) <= 1e-4, n
    assert n_agreed == N_SLACK // 9 + 1


@pytest.mark.parametrize("setup", ["dense", "sa"])
def test_without_a_ring_any_position_is_free(folder: Path, setup: str, attention: str) -> None:
    with new_session(folder, setup, attention) as fresh, new_session(folder, setup, attention) as session:
        fresh.eval(prompt(64), logits="none")
        session.eval(prompt(64), logits="none")
        session.eval(prompt(300, seed=9), logits="none")
        assert session.truncate(64) == 0
        assert_same_bits(continued(session), continued(fresh))


def test_reevaluation_on_request_gives_the_same_conversation(folder: Path) -> None:
    tokens = prompt(300)
    with new_session(folder, "mixed", "composed") as session, new_session(folder, "mixed", "composed") as fresh:
        session.eval(tokens, logits="none")
        assert session.truncate(128, reevaluate=True) == 128
        fresh.eval(tokens[:128], logits="none")
        assert_same_bits(continued(session), continued(fresh))


# -- failures leave the session as it was ----------------------------------------------------------------------------


@pytest.mark.parametrize("n_calls", [0, 3, 40, 700])
def test_interruption_leaves_the_session_as_it_was(folder: Path, setup: str, attention: str, n_calls: int) -> None:
    with new_session(folder, setup, attention) as fresh, new_session(folder, setup, attention) as session:
        for each in (fresh, session):
            each.eval(prompt(170), logits="none")
        asked = itertools.count()

        def interrupt() -> bool:
            return next(asked) >= n_calls

        with pytest.raises(pysa.EvaluationCancelledError):
            session.native.eval(prompt(400, seed=8), "last", interrupt)
        assert session.n_past == 170
        assert_same_bits(continued(session), continued(fresh))


def test_error_in_the_interrupt_callback_reaches_the_caller(folder: Path) -> None:
    def interrupt() -> bool:
        raise LookupError("from the callback")

    with new_session(folder, "mixed", "auto") as fresh, new_session(folder, "mixed", "auto") as session:
        for each in (fresh, session):
            each.eval(prompt(100), logits="none")
        with pytest.raises(LookupError, match="from the callback"):
            session.native.eval(prompt(200, seed=8), "last", interrupt)
        assert session.n_past == 100
        assert_same_bits(continued(session), continued(fresh))


def test_full_context_is_refused_and_leaves_the_session_usable(folder: Path, setup: str, attention: str) -> None:
    with new_session(folder, setup, attention) as fresh, new_session(folder, setup, attention, n_ctx=161) as session:
        for each in (fresh, session):
            each.eval(prompt(100), logits="none")
        with pytest.raises(pysa.ContextFullError, match="161"):
            session.eval(prompt(62, seed=4))
        assert session.n_past == 100
        assert_same_bits(continued(session), continued(fresh))
        session.eval(prompt(1))
        assert session.n_past == 161
        with pytest.raises(pysa.ContextFullError, match="161"):
            session.eval(prompt(1))


def test_second_thread_is_refused(folder: Path) -> None:
    inside, go_on = threading.Event(), threading.Event()
    out: list[NDArray[np.float32]] = []

    def hold() -> bool:
        inside.set()
        assert go_on.wait(30)
        return False

    with new_session(folder, "mixed", "auto") as fresh, new_session(folder, "mixed", "auto") as session:
        tokens = prompt(90)
        worker = threading.Thread(target=lambda: out.append(session.native.eval(tokens, "last", hold)))
        worker.start()
        try:
            assert inside.wait(30)
            for call in (
                lambda: session.eval(prompt(1)),
                lambda: session.truncate(0),
                session.checkpoint,
                session.reset,
            ):
                with pytest.raises(pysa.SessionBusyError):
                    call()
        finally:
            go_on.set()
            worker.join()
        assert session.n_past == 90
        assert np.array_equal(out[0], fresh.eval(tokens))


def test_sessions_of_one_model_compute_side_by_side(folder: Path) -> None:
    tokens = [prompt(150, seed) for seed in range(4)]
    expected = []
    for each in tokens:
        with new_session(folder, "mixed", "auto") as session:
            expected.append(session.eval(each))
    actual: dict[int, NDArray[np.float32]] = {}

    def work(i: int) -> None:
        with new_session(folder, "mixed", "auto") as session:
            actual[i] = session.eval(tokens[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(4):
        assert np.array_equal(actual[i], expected[i])


def test_closed_sessions_and_models_are_refused(folder: Path) -> None:
    model = pysa.Model(GQA3.write(folder), n_threads=1)
    session = model.session(n_ctx=64)
    model.close()
    assert session.eval(prompt(5)).shape == (1, session._n_vocab)
    session.close()
    session.close()
    with pytest.raises(pysa.ArgumentError, match="closed"):
        session.eval(prompt(1))
    with pytest.raises(pysa.ArgumentError, match="closed"):
        model.session()


# -- bytes -----------------------------------------------------------------------------------------------------------

PARTS = {"keys": "k_full", "values": "v_full", "window_keys": "k_window", "window_values": "v_window", "total": "total"}


BLOCKS = {"f32": (1, 4), "f16": (1, 2), "bf16": (1, 2), "q8_0": (32, 34), "q4_0": (32, 18)}  # values, bytes


def row_bytes(kind: str, dims: Dims = GQA3) -> int:
    n_values, n_bytes = BLOCKS[kind]
    return dims.head_dim // n_values * n_bytes


@pytest.mark.parametrize("n", [1, 40, 256, 257, 391])
def test_allocated_bytes_equal_the_formula(folder: Path, setup: str, attention: str, n: int) -> None:
    """Rows are allocated in blocks of 256, so the formula holds at n rounded up."""
    kind, type_k, type_v = SETUPS[setup]
    plan = plan_for(kind)
    with new_session(folder, setup, attention) as session:
        assert session.memory()["total"] == 0
        session.eval(prompt(n), logits="none")
        memory = session.memory()
        assert (memory["n_past"], memory["n_rows"]) == (n, -(-n // 256) * 256)
        rows = (row_bytes(type_k), row_bytes(type_v))
        expected = plan.cache_bytes(memory["n_rows"], GQA3.n_head_kv, *rows, n_slack=N_SLACK)
        assert {part: memory[part] for part in PARTS} == {part: expected[name] for part, name in PARTS.items()}
        assert memory["dense"] == memory["n_rows"] * GQA3.n_layer * GQA3.n_head_kv * sum(rows)
        formula = session.model.cache_bytes(memory["n_rows"], plan, type_k, type_v)
        unslacked = plan.cache_bytes(memory["n_rows"], GQA3.n_head_kv, *rows)
        assert {part: formula[part] for part in PARTS} == {part: unslacked[name] for part, name in PARTS.items()}


def test_formula_by_hand() -> None:
    """Layer 0 owns; layer 1: KV head 0 follows but for a local head, KV head 1 is local."""
    dims = Dims("llama", n_layer=2, n_head=6, n_head_kv=2, head_dim=32, n_embd=96, n_ff=160)
    layer, head = owners(2, 6)
    layer[1], head[1] = [0, 0, -1, -1, -1, -1], [0, 4, -1, -1, -1, -1]
    plan = make_plan(layer, head, 5, 40)
    row_k, row_v = row_bytes("q8_0", dims), row_bytes("f16", dims)
    assert (row_k, row_v) == (34, 64)
    assert plan.cache_bytes(1000, 2, row_k, row_v) == {
        "k_full": 1000 * 2 * 34,
        "v_full": 1000 * 3 * 64,
        "k_window": 45 * 2 * 34,
        "v_window": 45 * 1 * 64,
        "total": 1000 * 2 * 34 + 1000 * 3 * 64 + 45 * 2 * 34 + 45 * 64,
    }


def test_a_checkpoint_costs_the_window_rows_that_are_overwritten_after_it(folder: Path) -> None:
    with new_session(folder, "mixed", "composed") as session:
        session.eval(prompt(300), logits="none")
        memory = session.memory()
        window = memory["window_keys"] + memory["window_values"]
        row, ring = window // memory["n_window_rows"], memory["n_window_rows"] - N_SINK
        assert memory["checkpoints"] == 0
        for _ in range(2):
            session.checkpoint()  # twice at one place costs nothing more
        kept = []
        for n in (1, 1, 10, ring - 12, 50):
            session.eval(prompt(n), logits="none")
            kept.append(session.memory()["checkpoints"] // row)
        assert kept == [1, 2, 12, ring, ring]
        session.checkpoint()  # its window is still in the ring
        session.eval(prompt(7), logits="none")
        assert session.memory()["checkpoints"] == (ring + 7) * row
        session.truncate(300)
        assert session.memory()["checkpoints"] <= ring * row
        session.reset()
        assert session.memory()["checkpoints"] == 0


def test_many_checkpoints_take_four_windows_at_most(folder: Path) -> None:
    with new_session(folder, "mixed", "fused") as session:
        rng = np.random.default_rng(0)
        places = []
        for i in range(40):
            session.eval(prompt(int(rng.integers(1, 30)), i), logits="none")
            places.append(session.checkpoint())
            memory = session.memory()
            row = (memory["window_keys"] + memory["window_values"]) // max(memory["n_window_rows"], 1)
            assert memory["checkpoints"] <= 4 * (memory["n_window_rows"] - N_SINK) * row
        assert session.native.rollback_position(places[-2]) == places[-2]
        assert session.native.rollback_position(places[0]) < places[0]  # the oldest had to go


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1), setup=st.sampled_from(list(SETUPS)))
def test_a_walk_of_turns_returns_to_every_checkpoint_bit_for_bit(
    folder: Path, tmp_path: Path, seed: int, setup: str
) -> None:
    """What a session was at a checkpoint is a file of its own, saved then and loaded when the walk comes back."""
    rng = np.random.default_rng(seed)
    session = new_session(folder, setup, "fused", n_ctx=500)
    saved: dict[int, Path] = {}
    for step in range(25):
        action = rng.choice(["eval", "eval", "turn", "back", "reload", "fail"])
        room = session.n_ctx - session.n_past
        tokens = prompt(int(min(rng.choice([1, 2, 7, 30, 90]), max(room, 1))), seed=int(rng.integers(1 << 30)))
        if action in ("eval", "turn") and room >= len(tokens):
            session.eval(tokens, logits="none")
        if action == "turn":
            at = session.checkpoint()
            saved[at] = tmp_path / f"{at}"
            session.save(saved[at], force=True)
        elif action == "reload":
            session.save(tmp_path / "now", force=True)
            session = session.model.load_session(tmp_path / "now")
        elif action == "fail" and room >= len(tokens):
            asked, n_calls = itertools.count(), int(rng.integers(0, 60))
            with contextlib.suppress(pysa.EvaluationCancelledError):
                session.native.eval(tokens, "none", lambda asked=asked, n=n_calls: next(asked) >= n)
        elif action == "back":
            can = [at for at in saved if session.native.rollback_position(at) == at]
            if not can:
                continue
            at = int(rng.choice(can))
            session.truncate(at)
            saved = {place: path for place, path in saved.items() if place <= at}
            n = min(12, session.n_ctx - at)
            if n > 0:
                again = session.model.load_session(saved[at])
                for part in (tokens[:n], tokens[n:][:1]):
                    if len(part) and session.n_past + len(part) <= session.n_ctx:
                        assert np.array_equal(session.eval(part, logits="all"), again.eval(part, logits="all")), step


def allocated_at(model: pysa.Model, n: int, plan: Plan | str) -> dict[str, int]:
    """What a session allocates for n tokens: room is made before the first token is computed, so stop right there."""
    with model.session(n_ctx=n, plan=plan) as session:
        with pytest.raises(pysa.EvaluationCancelledError):
            session.native.eval(np.zeros(n, np.int32), "none", lambda: True)
        memory: dict[str, int] = session.memory()
    assert (memory["n_past"], memory["n_rows"]) == (0, n)
    return memory


def test_four_fifths_of_the_heads_following_save_35_percent_at_32k(folder: Path) -> None:
    dims = Dims("llama", n_layer=10, n_head=6, n_head_kv=2, head_dim=32, n_embd=64, n_ff=96)
    layer, head = owners(dims.n_layer, dims.n_head)
    layer[1:5], layer[6:10] = 0, 5
    plan = make_plan(layer, head, 16, 4080)
    assert np.mean(plan.kinds() == "follower") == 0.8
    n = 32 * 1024
    with pysa.Model(dims.write(folder), n_threads=1) as model:
        dense, shared = allocated_at(model, n, "dense"), allocated_at(model, n, plan)
        assert dense["total"] == dense["dense"] == n * 10 * 2 * (64 + 64)
        assert (dense["total"] - shared["total"]) * 100 >= 35 * dense["total"]
        assert shared["total"] == model.cache_bytes(n, plan)["total"]


GROWTH = """
import json, os, sys
import numpy as np
import pysa

def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

model = pysa.Model(sys.argv[1], n_threads=1)
tokens = np.arange(500, dtype=np.int32) % 256
report = {}
for name, plan in (("warm-up", "dense"), ("dense", "dense"), ("shared", sys.argv[2]), ("streaming", sys.argv[3])):
    with model.session(n_ctx=512, type_k="f32", type_v="f32", n_ubatch=16, attention="composed", plan=plan) as session:
        before = resident()
        session.eval(tokens, logits="none")
        memory = session.memory()
        report[name] = (resident() - before, memory["total"] + memory["attention"] + memory["compute"], memory["total"])
print(json.dumps(report))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the resident size from /proc")
def test_process_grows_by_what_memory_reports(folder: Path, tmp_path: Path) -> None:
    """Within 10 % and 4 MiB: the graph's own memory and the allocator's pages are not the cache's."""
    dims = Dims("llama", n_layer=6, n_head=14, n_head_kv=7, head_dim=256, n_embd=32, n_ff=64)
    layer, head = owners(dims.n_layer, dims.n_head)
    layer[1:] = 0
    plans = {"shared": make_plan(layer, head, 8, 56), "streaming": build_plan("streaming", dims, 8, 56)}
    for name, plan in plans.items():
        plan.save(tmp_path / name)
    # Blocks that glibc would keep for itself are given back at once.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
    command = [
        sys.executable,
        "-c",
        textwrap.dedent(GROWTH),
        str(dims.write(folder)),
        *(str(tmp_path / n) for n in plans),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    for name in ("dense", "shared", "streaming"):
        growth, expected, _ = report[name]
        assert abs(growth - expected) <= 0.1 * expected + 2**22, (name, report)
    assert report["dense"][2] == 512 * 6 * 7 * 2 * 1024
    assert report["streaming"][2] == report["dense"][2] // 8
    assert report["shared"][2] * 100 == report["dense"][2] * 100 - report["dense"][2] * 100 * 5 * 7 // (6 * 2 * 8)
