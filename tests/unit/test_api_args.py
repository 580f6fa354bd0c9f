"""What Model and Session refuse, and what they promise about positions: the Python side of the engine."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pysa
from pysa.plan import Plan

BAD_TOKENS = [
    ([], "empty"),
    (np.empty(0, np.int64), "empty"),
    ([1.0, 2.0], r"tokens\[0\]: wrong type: expected an integer, got float 1.0"),
    ([1, True], r"tokens\[1\]: wrong type: expected an integer, got bool True"),
    (np.array([1.5]), "expected an integer array, got float64"),
    (np.array([True]), "expected an integer array, got bool"),
    ([[1, 2]], "wrong type"),
    (np.ones((2, 2), np.int32), r"expected \(n_tokens,\), got \(2, 2\)"),
    ("text", "expected a sequence of token ids, got str"),
    (7, "expected a sequence of token ids, got int"),
    ([1, -1], r"tokens\[1\]: out of range: expected 0..275, got -1"),
    ([276], r"tokens\[0\]: out of range: expected 0..275, got 276"),
    ([2**80], r"tokens\[0\]: out of range: expected 0..275, got 1208925819614629174706176"),
    (np.array([2**63], np.uint64), "out of range"),
]
BAD_SESSION = [
    ({"n_ctx": -1}, "n_ctx: out of range: expected 0..2147483647, got -1"),
    ({"n_ctx": True}, "n_ctx: wrong type"),
    ({"n_ubatch": 0}, "n_ubatch: out of range"),
    ({"n_ubatch": 1.5}, "n_ubatch: wrong type: expected an integer, got float 1.5"),
    ({"type_k": "f8"}, "type_k: unknown value: expected one of f32, f16, bf16, q8_0, q4_0, got 'f8'"),
    ({"type_v": None}, "type_v: unknown value"),
    ({"attention": "flash"}, "attention: unknown value: expected one of auto, fused, composed, got 'flash'"),
    ({"plan": 3}, "plan: wrong type: expected a path, got int 3"),
    ({"v_skip": -0.1}, r"v_skip: out of range: expected 0\.\.1, got -0\.1"),
    ({"v_skip": float("nan")}, r"v_skip: out of range: expected 0\.\.1, got nan"),
    ({"v_skip": float("inf")}, "v_skip: out of range"),
    ({"v_skip": 1.0}, r"v_skip: expected 0 \(exact\) or more and below 1, got 1\.0"),
    ({"v_skip": 1 - 1e-12}, r"v_skip: expected 0 \(exact\) or more and below 1, got 1\.0"),  # 1 in f32
    ({"v_skip": "0"}, "v_skip: wrong type: expected a number, got str '0'"),
]
BAD_SAMPLING = [
    ({"temperature": -0.1}, "temperature: out of range"),
    ({"temperature": float("nan")}, "temperature: out of range"),
    ({"top_k": -1}, "top_k: out of range"),
    ({"top_p": 0.0}, "top_p: out of range: expected above 0, at most 1, got 0.0"),
    ({"min_p": 1.1}, "min_p: out of range"),
    ({"seed": -1}, "seed: out of range"),
    ({"max_tokens": -1}, "max_tokens: out of range"),
    ({"max_tokens": "9"}, "max_tokens: wrong type"),
]


@pytest.fixture
def session(shared_model: Any) -> Any:
    return shared_model.session(n_ctx=256)


@pytest.mark.parametrize(("tokens", "message"), BAD_TOKENS)
def test_eval_refuses_tokens(session: Any, tokens: Any, message: str) -> None:
    with pytest.raises(pysa.ArgumentError, match=message):
        session.eval(tokens)
    with pytest.raises(pysa.ArgumentError, match=message):
        session.generate(tokens)
    assert session.n_past == 0


def test_eval_refuses_an_unknown_logits_mode(session: Any) -> None:
    with pytest.raises(pysa.ArgumentError, match="logits: unknown value: expected one of last, all, none, got 'some'"):
        session.eval([1], logits="some")


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.int32, np.int64, np.uint64])
def test_eval_takes_every_integer_type(shared_model: Any, dtype: Any) -> None:
    expected = shared_model.session(n_ctx=64).eval([5, 6, 7])
    strided = np.array([5, 0, 6, 0, 7, 0], dtype)[::2]
    assert np.array_equal(shared_model.session(n_ctx=64).eval(strided), expected)


def test_eval_gives_the_rows_asked_for(shared_model: Any) -> None:
    shapes = {}
    for mode in ("last", "all", "none"):
        out = shared_model.session(n_ctx=64).eval([5, 6, 7], logits=mode)
        assert out.dtype == np.float32
        shapes[mode] = out.shape
    assert shapes == {"last": (1, 276), "all": (3, 276), "none": (0, 276)}


@pytest.mark.parametrize(("options", "message"), BAD_SESSION)
def test_session_refuses(shared_model: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(pysa.ArgumentError, match=message):
        shared_model.session(**options)


def test_session_refuses_an_unknown_keyword(shared_model: Any) -> None:
    with pytest.raises(TypeError, match="n_context"):
        shared_model.session(n_context=5)


@pytest.mark.parametrize(("options", "message"), BAD_SAMPLING)
def test_generate_refuses_at_once(session: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(pysa.ArgumentError, match=message):
        session.generate([1, 2], **options)


def test_model_refuses(shared_gguf: Path, tmp_path: Path) -> None:
    with pytest.raises(pysa.ArgumentError, match=r"n_threads: out of range: expected 0..512, got 513"):
        pysa.Model(shared_gguf, n_threads=513)
    with pytest.raises(pysa.ArgumentError, match="use_mmap: wrong type: expected True or False, got int 1"):
        pysa.Model(shared_gguf, use_mmap=1)  # type: ignore[arg-type]
    with pytest.raises(pysa.ArgumentError, match="path: wrong type: expected a path, got int 5"):
        pysa.Model(5)  # type: ignore[arg-type]
    with pytest.raises(pysa.ArgumentError, match="path: not a path"):
        pysa.Model("a\0b")
    with pytest.raises(pysa.ModelFileError, match=r"absent\.gguf"):
        pysa.Model(tmp_path / "absent.gguf")


def test_a_closed_model_or_session_says_so(shared_gguf: Path) -> None:
    model = pysa.Model(shared_gguf, n_threads=2)
    session = model.session(n_ctx=64)
    with session:
        session.eval([1, 2])
    with pytest.raises(pysa.ArgumentError, match="session: it is closed"):
        session.eval([3])
    model.close()
    model.close()
    with pytest.raises(pysa.ArgumentError, match="the model is closed"):
        model.session()


def test_a_session_outlives_its_model(shared_gguf: Path) -> None:
    with pysa.Model(shared_gguf, n_threads=2) as model:
        expected = model.session(n_ctx=64).eval([1, 2, 3])
        session = model.session(n_ctx=64)
    assert np.array_equal(session.eval([1, 2, 3]), expected)


def test_plan_overrides(shared_model: Any, tiny_plan: dict[str, Any], tmp_path: Path) -> None:
    plan = Plan.from_json(tiny_plan)
    assert shared_model.plan == plan
    assert shared_model.session(n_ctx=64).plan == plan
    assert (shared_model.session(n_ctx=64, plan="dense").plan.kinds() == "owner").all()
    streaming = Plan.streaming(4, 6, 4, 24)
    streaming.save(tmp_path / "plan.json")
    for given in (streaming, streaming.to_json(), tmp_path / "plan.json", str(tmp_path / "plan.json")):
        assert (shared_model.session(n_ctx=64, plan=given).plan.kinds() == "local").all()


def test_a_plan_that_does_not_fit_is_refused(shared_model: Any) -> None:
    with pytest.raises(pysa.PlanError, match=r"does not fit .*expected 4 layers as the model has, got 5"):
        shared_model.session(plan=Plan.dense(5, 6))


def test_text_round_trip_and_bad_text(shared_model: Any) -> None:
    text = "the thing and ünïcode ✓"
    assert shared_model.detokenize(shared_model.tokenize(text, add_special=False)).strip() == text
    assert shared_model.detokenize([]) == ""
    with pytest.raises(pysa.ArgumentError, match="text: wrong type: expected str, got bytes"):
        shared_model.tokenize(b"x")
    with pytest.raises(pysa.ArgumentError, match="text: lone surrogate at character 1"):
        shared_model.tokenize("a\ud800")
    with pytest.raises(pysa.ArgumentError, match=r"tokens\[0\]: out of range: expected 0..275, got 276"):
        shared_model.detokenize([276])


def test_an_abandoned_generator_leaves_the_session_usable(shared_model: Any) -> None:
    session = shared_model.session(n_ctx=256)
    generated = session.generate([5, 6, 7], max_tokens=10, stop_at_eog=False)
    given = [next(generated) for _ in range(4)]
    generated.close()
    assert session.n_past == 3 + 3  # the fourth token was given, not evaluated
    other = shared_model.session(n_ctx=256)
    other.eval([5, 6, 7, *given[:3]], logits="none")
    assert np.allclose(session.eval(given[3:]), other.eval(given[3:]), atol=1e-3)


def test_generate_is_greedy_and_repeatable(shared_model: Any) -> None:
    session = shared_model.session(n_ctx=256)
    tokens = list(session.generate([5, 6, 7], max_tokens=5, stop_at_eog=False))
    assert len(tokens) == 5
    rows = shared_model.session(n_ctx=256).eval([5, 6, 7, *tokens], logits="all")
    assert rows[2:7].argmax(axis=1).tolist() == tokens
    draws = [
        list(
            shared_model.session(n_ctx=64).generate([5, 6], max_tokens=8, temperature=1.5, seed=seed, stop_at_eog=False)
        )
        for seed in (1, 1, 2)
    ]
    assert draws[0] == draws[1] != draws[2]


def test_context_full_keeps_what_was_there(shared_model: Any) -> None:
    session = shared_model.session(n_ctx=16)
    session.eval(range_tokens(16), logits="none")
    with pytest.raises(pysa.ContextFullError, match="16"):
        session.eval([1])
    assert session.n_past == 16


def test_truncate_is_exact_refused_or_reevaluated_with_notice(
    shared_model: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The ring holds some hundred positions; 1500 tokens on, position 40 is long forgotten."""
    session = shared_model.session(n_ctx=2048, n_ubatch=64)
    tokens = range_tokens(1500)
    session.eval(tokens[:40], logits="none")
    session.eval(tokens[40:], logits="none")
    with pytest.raises(pysa.ArgumentError, match=r"n: out of range: expected 0..1500, got 1501"):
        session.truncate(1501)
    with pytest.raises(pysa.RollbackError):
        session.truncate(40)
    assert session.n_past == 1500
    with caplog.at_level(logging.WARNING, "pysa"):
        assert session.truncate(40, reevaluate=True) == 40
    assert "evaluating 40 tokens again" in caplog.text
    assert session.n_past == 40
    fresh = shared_model.session(n_ctx=2048, n_ubatch=64)
    fresh.eval(tokens[:40], logits="none")
    assert np.array_equal(session.eval([9]), fresh.eval([9]))


def test_truncate_returns_to_a_checkpoint_without_work(shared_model: Any, caplog: pytest.LogCaptureFixture) -> None:
    session = shared_model.session(n_ctx=2048, n_ubatch=64)
    tokens = range_tokens(1500)
    session.eval(tokens[:100], logits="none")
    assert session.checkpoint() == 100
    expected = session.eval([9])
    assert session.truncate(100) == 0
    session.eval(tokens[100:], logits="none")
    assert session.truncate(100) == 0
    assert np.array_equal(session.eval([9]), expected)
    session.truncate(100)
    session.eval(tokens[100:], logits="none")
    with caplog.at_level(logging.WARNING, "pysa"):
        assert session.truncate(110, reevaluate=True) == 10  # from the checkpoint, not from 0
    assert session.n_past == 110


def test_a_loaded_session_knows_its_tokens(shared_model: Any, tmp_path: Path) -> None:
    session = shared_model.session(n_ctx=2048, n_ubatch=64)
    session.eval(range_tokens(1500), logits="none")
    session.save(tmp_path / "state")
    with pytest.raises(pysa.PysaError, match="got one; pass force=True"):
        session.save(tmp_path / "state")
    session.save(tmp_path / "state", force=True)
    loaded = shared_model.load_session(tmp_path / "state")
    assert loaded.n_past == 1500
    assert np.array_equal(loaded.eval([9]), session.eval([9]))
    assert loaded.tokens == [*range_tokens(1500), 9]
    assert loaded.truncate(40, reevaluate=True) == 40
    fresh = shared_model.session(n_ctx=2048, n_ubatch=64)
    fresh.eval(range_tokens(40), logits="none")
    assert np.array_equal(loaded.eval([9]), fresh.eval([9]))


def test_import_is_light_and_quick() -> None:
    """`import pysa` needs nothing heavy; 0.3 s is asked for, 1 s allows for a busy machine."""
    code = (
        "import sys, time; start = time.perf_counter(); import pysa; took = time.perf_counter() - start;"
        "heavy = {'torch', 'transformers', 'tqdm', 'gguf', 'jinja2', 'tokenizers'} & set(sys.modules);"
        "print(sorted(heavy), took < 1.0)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split("\n")[0] == "[] True"


def range_tokens(n: int) -> list[int]:
    return [3 + (7 * i) % 200 for i in range(n)]
