"""Calls that must raise the right exception and leave everything usable. Damaged files are in test_bad_files.py.

The public wrappers check first; the native module is called directly as well, in a child process, because there an
abort would otherwise end the whole test run.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.plans import GQA3, build_plan, make_plan, owners
from helpers.tiny_gguf import write_tiny_gguf

import pysa
from pysa import Plan


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return GQA3.write(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def model(path: Path) -> Iterator[pysa.Model]:
    with pysa.Model(path, n_threads=1) as opened:
        yield opened


@pytest.fixture
def session(model: pysa.Model) -> Iterator[pysa.Session]:
    with model.session(n_ctx=40) as opened:
        opened.eval([1, 2, 3], logits="none")
        yield opened


# -- tokens ----------------------------------------------------------------------------------------------------------

BAD_TOKENS: dict[str, tuple[Any, str]] = {
    "empty list": ([], "empty"),
    "empty array": (np.empty(0, np.int32), "empty"),
    "negative": ([1, -1], r"\[1\].*-1"),
    "n_vocab": ([0, 5, 273], r"\[2\].*0\.\.272.*273"),
    "beyond 32 bits": ([2**33], r"8589934592"),
    "beyond 64 bits": ([2**70], r"\[0\].*1180591620717411303424"),
    "wraps to a valid id in 32 bits": (np.array([2**32 + 5], np.int64), r"4294967301"),
    "largest uint64": (np.array([2**64 - 1], np.uint64), r"18446744073709551615"),
    "float": ([1.0], "float"),
    "float array": (np.array([1.0]), "float64"),
    "bool": ([True], "bool"),
    "bool array": (np.array([True]), "bool"),
    "text": ("abc", "str"),
    "bytes": (b"abc", "bytes"),
    "none": (None, "NoneType"),
    "one number": (5, "int"),
    "two dimensions": (np.zeros((1, 2), np.int32), r"\(1, 2\)"),
    "no dimension": (np.array(3), r"\(\)"),
    "nested": ([[1, 2]], "list"),
    "set": ({1, 2}, "set"),
}


@pytest.mark.parametrize("name", list(BAD_TOKENS))
def test_bad_tokens(session: pysa.Session, name: str) -> None:
    tokens, found = BAD_TOKENS[name]
    with pytest.raises(pysa.ArgumentError, match=f"(?s)^tokens.*{found}"):
        session.eval(tokens)
    assert session.n_past == 3
    assert session.eval([4]).shape == (1, 273)


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int16, np.int64, np.uint64])
def test_any_integer_type_is_taken(model: pysa.Model, kind: type) -> None:
    with model.session(n_ctx=8) as a, model.session(n_ctx=8) as b:
        tokens = np.array([1, 0, 99, 0, 101, 0], kind)[::2]  # not contiguous
        assert np.array_equal(a.eval(tokens), b.eval([1, 99, 101]))


def test_full_context_names_the_numbers(session: pysa.Session) -> None:
    with pytest.raises(pysa.ContextFullError, match=r"(?s)37 more.*n_ctx 40.*got 38"):
        session.eval(np.ones(38, np.int32))
    assert session.n_past == 3
    session.eval(np.ones(37, np.int32), logits="none")
    assert session.n_past == 40


def test_context_full_while_generating(session: pysa.Session) -> None:
    made = []
    with pytest.raises(pysa.ContextFullError):
        made.extend(session.generate([1] * 30, max_tokens=50, stop_at_eog=False))
    assert session.n_past == 40


# -- options ---------------------------------------------------------------------------------------------------------

Call = Callable[[pysa.Model, pysa.Session], Any]
BAD_CALLS: dict[str, tuple[Call, type[Exception], str]] = {
    "unknown logits mode": (lambda m, s: s.eval([1], logits="first"), pysa.ArgumentError, "logits.*first"),
    "logits mode of a wrong type": (lambda m, s: s.eval([1], logits=1), pysa.ArgumentError, "logits.*1"),
    "unknown keyword of eval": (lambda m, s: s.eval([1], n_threads=1), TypeError, "n_threads"),
    "unknown keyword of session": (lambda m, s: m.session(n_batch=5), TypeError, "n_batch"),
    "unknown keyword of Model": (lambda m, s: pysa.Model(m.path, gpu=1), TypeError, "gpu"),
    "negative n_ctx": (lambda m, s: m.session(n_ctx=-1), pysa.ArgumentError, "n_ctx.*-1"),
    "huge n_ctx": (lambda m, s: m.session(n_ctx=2**40), pysa.ArgumentError, "n_ctx"),
    "n_ctx of a wrong type": (lambda m, s: m.session(n_ctx=64.0), pysa.ArgumentError, "n_ctx.*float"),
    "n_ctx as a bool": (lambda m, s: m.session(n_ctx=True), pysa.ArgumentError, "n_ctx.*bool"),
    "unknown type_k": (lambda m, s: m.session(type_k="q5_1"), pysa.ArgumentError, "type_k.*q5_1"),
    "unknown type_v": (lambda m, s: m.session(type_v="F16"), pysa.ArgumentError, "type_v.*F16"),
    "unknown attention": (lambda m, s: m.session(attention="flash"), pysa.ArgumentError, "attention.*flash"),
    "n_ubatch of 0": (lambda m, s: m.session(n_ubatch=0), pysa.ArgumentError, "n_ubatch.*0"),
    "negative budget": (lambda m, s: m.session(distant_budget_bytes=-5), pysa.ArgumentError, "distant_budget_bytes"),
    "negative n_threads": (lambda m, s: pysa.Model(m.path, n_threads=-1), pysa.ArgumentError, "n_threads.*-1"),
    "text as n_threads": (lambda m, s: pysa.Model(m.path, n_threads="2"), pysa.ArgumentError, "n_threads.*str"),
    "number as a path": (lambda m, s: pysa.Model(5), pysa.ArgumentError, "path.*int"),
    "path with a null": (lambda m, s: pysa.Model("a\0b"), pysa.PysaError, "path"),
    "missing file": (lambda m, s: pysa.Model("no/such.gguf"), pysa.ModelFileError, "no/such.gguf"),
    "directory as a file": (lambda m, s: pysa.Model(Path(m.path).parent), pysa.ModelFileError, "directory|regular"),
    "truncate beyond n_past": (lambda m, s: s.truncate(4), pysa.ArgumentError, r"0\.\.3.*4"),
    "negative truncate": (lambda m, s: s.truncate(-1), pysa.ArgumentError, "-1"),
    "truncate of a wrong type": (lambda m, s: s.truncate("1"), pysa.ArgumentError, "str"),
    "negative temperature": (lambda m, s: s.generate([1], temperature=-0.5), pysa.ArgumentError, "temperature"),
    "temperature nan": (lambda m, s: s.generate([1], temperature=float("nan")), pysa.ArgumentError, "temperature"),
    "top_p of 0": (lambda m, s: s.generate([1], top_p=0.0), pysa.ArgumentError, "top_p"),
    "min_p above 1": (lambda m, s: s.generate([1], min_p=1.5), pysa.ArgumentError, "min_p"),
    "negative top_k": (lambda m, s: s.generate([1], top_k=-1), pysa.ArgumentError, "top_k"),
    "negative max_tokens": (lambda m, s: s.generate([1], max_tokens=-1), pysa.ArgumentError, "max_tokens"),
    "negative seed": (lambda m, s: s.generate([1], seed=-1), pysa.ArgumentError, "seed"),
    "empty prompt to generate": (lambda m, s: s.generate([]), pysa.ArgumentError, "empty"),
    "state that is missing": (lambda m, s: m.load_session("no/state"), pysa.StateFileError, "no/state"),
    "state that is a model": (lambda m, s: m.load_session(m.path), pysa.StateFileError, "gguf"),
    "save into a missing folder": (lambda m, s: s.save("no/such/state"), pysa.StateFileError, "no/such"),
    "text that is no text": (lambda m, s: m.tokenize(b"abc"), pysa.ArgumentError, "text.*bytes"),
    "lone surrogate": (lambda m, s: m.tokenize("\ud800"), pysa.ArgumentError, "surrogate"),
    "token to detokenize out of range": (lambda m, s: m.detokenize([273]), pysa.ArgumentError, "273"),
    "token of is_eog out of range": (lambda m, s: m.is_eog(-1), pysa.ArgumentError, "-1"),
    "cache bytes of a negative n": (lambda m, s: m.cache_bytes(-1), pysa.ArgumentError, "n:.*-1"),
}


@pytest.mark.parametrize("name", list(BAD_CALLS))
def test_bad_calls(model: pysa.Model, session: pysa.Session, name: str) -> None:
    call, error, message = BAD_CALLS[name]
    with pytest.raises(error, match=f"(?s){message}"):
        call(model, session)
    assert session.n_past == 3
    assert np.isfinite(session.eval([7])).all()


# -- plans -----------------------------------------------------------------------------------------------------------


def with_source(il: int, h: int, source_layer: int, source_head: int, **fields: Any) -> Plan:
    """An owners-only plan in which one head has another source."""
    layer, head = owners(GQA3.n_layer, GQA3.n_head)
    layer[il, h], head[il, h] = source_layer, source_head
    return make_plan(layer, head, 4, 24, **fields)


def chain() -> Plan:
    layer, head = owners(GQA3.n_layer, GQA3.n_head)
    layer[1, 2], head[1, 2] = 0, 2
    layer[3, 2], head[3, 2] = 1, 2
    return make_plan(layer, head, 4, 24)


def keys_from_two_layers() -> Plan:
    layer, head = owners(GQA3.n_layer, GQA3.n_head)
    layer[2, 0], layer[2, 1] = 0, 1
    return make_plan(layer, head, 4, 24, distant="keys")


def mass_bias(value: float) -> Plan:
    bias = np.zeros((GQA3.n_layer, GQA3.n_head), np.float32)
    bias[1, 1] = value
    return make_plan(*owners(GQA3.n_layer, GQA3.n_head), 4, 24, mass_bias=bias)


def sound_json() -> dict[str, Any]:
    return make_plan(*owners(GQA3.n_layer, GQA3.n_head), 4, 24).to_json()


BAD_PLANS: dict[str, tuple[Callable[[], Any], str]] = {
    "source in a later layer": (lambda: with_source(1, 2, 3, 2), "layer 1 head 2"),
    "source in the same layer": (lambda: with_source(2, 3, 2, 4), "layer 2 head 3"),
    "source layer beyond the model": (lambda: with_source(3, 0, 4, 0), "layer 3 head 0"),
    "source head beyond the model": (lambda: with_source(3, 0, 1, 6), "layer 3 head 0"),
    "source below -1": (lambda: with_source(3, 5, -2, 5), "layer 3 head 5"),
    "half a local head": (lambda: with_source(3, 5, -1, 5), "layer 3 head 5"),
    "source that is a follower": (chain, "layer 3 head 2"),
    "source that is local": (
        lambda: make_plan(
            *(
                np.where(np.arange(4)[:, None] == 0, -1, np.where(np.arange(4)[:, None] == 3, 0, sources))
                for sources in owners(4, 6)
            ),
            4,
            24,
        ),
        "layer 3 head 0",
    ),
    "keys from another KV group": (lambda: with_source(2, 1, 0, 4, distant="keys"), "KV group"),
    "keys from two layers": (keys_from_two_layers, "one source layer"),
    "local head without a window": (
        lambda: dataclasses.replace(with_source(1, 1, -1, -1), n_sink=0, n_recent=0),
        "window",
    ),
    "sinks without a window": (lambda: make_plan(*owners(4, 6), 4, 0), "n_recent|n_sink"),
    "negative n_recent": (lambda: make_plan(*owners(4, 6), 4, -3), "n_recent.*-3"),
    "huge n_recent": (lambda: make_plan(*owners(4, 6), 4, 2**40), "n_recent"),
    "gate of 0": (lambda: make_plan(*owners(4, 6), 4, 24, skip_gate=0.0), "skip_gate"),
    "gate above 1": (lambda: make_plan(*owners(4, 6), 4, 24, skip_gate=1.5), "skip_gate"),
    "gate nan": (lambda: make_plan(*owners(4, 6), 4, 24, skip_gate=float("nan")), "skip_gate"),
    "mass bias nan": (lambda: mass_bias(float("nan")), "mass_bias"),
    "mass bias infinite": (lambda: mass_bias(float("inf")), "mass_bias"),
    "too few layers": (lambda: make_plan(*owners(3, 6), 4, 24), "4"),
    "too many heads": (lambda: make_plan(*owners(4, 7), 4, 24), "7|6"),
    "unknown distant": (lambda: make_plan(*owners(4, 6), 4, 24, distant="values"), "distant.*values"),
    "unknown version": (lambda: dataclasses.replace(make_plan(*owners(4, 6), 4, 24), version=2), "version.*2"),
    "unknown key": (lambda: {**sound_json(), "n_rescent": 5}, "n_rescent"),
    "missing key": (lambda: {k: v for k, v in sound_json().items() if k != "n_sink"}, "n_sink"),
}


@pytest.mark.parametrize("name", list(BAD_PLANS))
def test_bad_plans_are_refused(model: pysa.Model, name: str) -> None:
    make, message = BAD_PLANS[name]
    with pytest.raises(pysa.PlanError, match=f"(?s){message}"):
        model.session(n_ctx=64, plan=make())


def test_all_faults_of_a_plan_are_named_at_once(model: pysa.Model) -> None:
    plan = with_source(1, 2, 3, 2)
    plan.score_layer[2, 4] = 9
    plan = dataclasses.replace(plan, skip_gate=7.0)
    with pytest.raises(pysa.PlanError) as caught:
        model.session(plan=plan)
    text = str(caught.value)
    assert all(part in text for part in ("layer 1 head 2", "layer 2 head 4", "skip_gate"))


@pytest.mark.parametrize("value", [5, 1.5, [1], object()])
def test_plans_of_a_wrong_type(model: pysa.Model, value: Any) -> None:
    with pytest.raises(pysa.PysaError, match="plan"):
        model.session(plan=value)


def test_plan_file_faults_name_the_file(model: pysa.Model, tmp_path: Path) -> None:
    bad = tmp_path / "bad-plan.json"
    for text in ("", "{", "[]", "null", '{"version": 1}', "\x00\x01"):
        bad.write_text(text)
        with pytest.raises(pysa.PlanError, match=r"bad-plan\.json"):
            model.session(plan=bad)
    with pytest.raises(pysa.PlanError, match=r"missing\.json"):
        model.session(plan=tmp_path / "missing.json")


# -- the native module by itself -------------------------------------------------------------------------------------

NATIVE = """
import json, sys
import numpy as np
from pysa import _native
path, state, plan = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
model = _native.Model(path, n_threads=1)
session = model.session(n_ctx=16, plan=plan)
session.eval(np.array([1, 2, 3], np.int32))
broken = lambda **fields: {**plan, **fields}
calls = {
    "empty": lambda: session.eval(np.empty(0, np.int32)),
    "negative token": lambda: session.eval(np.array([1, -1], np.int32)),
    "token n_vocab": lambda: session.eval(np.array([273], np.int32)),
    "largest int32": lambda: session.eval(np.array([2**31 - 1], np.int32)),
    "smallest int32": lambda: session.eval(np.array([-(2**31)], np.int32)),
    "two dimensions": lambda: session.eval(np.zeros((2, 2), np.int32)),
    "context full": lambda: session.eval(np.ones(14, np.int32)),
    "logits mode": lambda: session.eval(np.ones(1, np.int32), "first"),
    "truncate beyond": lambda: session.truncate(4),
    "truncate negative": lambda: session.truncate(-1),
    "type_k": lambda: model.session(type_k="q2_k"),
    "type_v": lambda: model.session(type_v="i32"),
    "attention": lambda: model.session(attention="none"),
    "n_ctx": lambda: model.session(n_ctx=-1),
    "n_ubatch": lambda: model.session(n_ubatch=0),
    "n_ubatch negative": lambda: model.session(n_ubatch=-(2**31)),
    "n_threads": lambda: _native.Model(path, n_threads=-1),
    "n_threads huge": lambda: _native.Model(path, n_threads=2**31 - 1),
    "plan empty": lambda: model.session(plan={}),
    "plan unknown key": lambda: model.session(plan=broken(n_slack=3)),
    "plan short rows": lambda: model.session(plan=broken(score_layer=[[0]])),
    "plan ragged": lambda: model.session(plan=broken(score_head=[*plan["score_head"][:-1], [0]])),
    "plan upward": lambda: model.session(plan=broken(score_layer=[[3] * 6] * 4)),
    "plan text": lambda: model.session(plan=broken(n_recent="5")),
    "plan huge": lambda: model.session(plan=broken(n_recent=2**40)),
    "plan negative": lambda: model.session(plan=broken(n_sink=-1)),
    "plan window beyond memory": lambda: model.session(plan=broken(n_sink=2**31 - 1, n_recent=2**31 - 1)),
    "plan gate": lambda: model.session(plan=broken(skip_gate=float("nan"))),
    "plan distant": lambda: model.session(plan=broken(distant="")),
    "plan None rows": lambda: model.session(plan=broken(score_layer=None)),
    "cache_bytes n": lambda: model.cache_bytes(-1, None, "f16", "f16", 512),
    "cache_bytes type": lambda: model.cache_bytes(5, None, "f17", "f16", 512),
    "sampler shape": lambda: _native.Sampler(0.0, 0, 1.0, 0.0, 0).sample(np.zeros(0, np.float32)),
    "sampler temperature": lambda: _native.Sampler(float("nan"), 0, 1.0, 0.0, 0),
    "quantize type": lambda: _native.quantize(path, state, "q9", 1),
    "token_to_piece": lambda: model.vocab.token_to_piece(10**9),
    "token_to_piece negative": lambda: model.vocab.token_to_piece(-1),
    "detokenize": lambda: model.vocab.detokenize([1, -5]),
    "is_eog": lambda: model.vocab.is_eog(2**31 - 1),
    "vocab of a missing file": lambda: _native.Vocab("missing"),
    "gguf_read of a missing file": lambda: _native.gguf_read("missing"),
    "gguf_read of a folder": lambda: _native.gguf_read("."),
    "load a missing state": lambda: model.load_session("missing"),
}
for name, call in calls.items():
    print(json.dumps(name), end=" ", flush=True)
    try:
        call()
        found = "nothing"
    except Exception as error:
        found = type(error).__name__ + ": " + str(error)
    assert session.n_past == 3
    print(json.dumps(found), flush=True)
session.eval(np.array([4], np.int32))
print(json.dumps("end"), json.dumps(str(session.n_past)))
"""

# What a call may raise where it is not ArgumentError.
NATIVE_ERRORS = {
    "context full": "ContextFullError",
    "plan": "PlanError",
    "vocab": "ModelFileError",
    "gguf_read": "ModelFileError",
    "load": "StateFileError",
    "quantize": "ConvertError",
}
# A window as large as int32 is within the rules, and no token beyond the vocabulary ends a text.
MAY_SUCCEED = {"plan window beyond memory", "is_eog"}


def test_native_calls_raise_and_never_abort(path: Path, tmp_path: Path) -> None:
    plan = build_plan("mixed", GQA3, 4, 24, seed=1).to_json()
    command = [sys.executable, "-c", textwrap.dedent(NATIVE), str(path), str(tmp_path / "out"), json.dumps(plan)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, f"ended after {done.stdout.splitlines()[-1:]}:\n{done.stderr[-2000:]}"
    decoder = json.JSONDecoder()
    results: dict[str, str] = {}
    for line in done.stdout.splitlines():
        name, at = decoder.raw_decode(line)
        results[name] = decoder.raw_decode(line[at + 1 :])[0]
    assert results.pop("end") == "4"
    wrong = {}
    for name, found in results.items():
        expected = next((e for start, e in NATIVE_ERRORS.items() if name.startswith(start)), "ArgumentError")
        accepted = (expected, "TypeError", "ArgumentError") if expected != "ArgumentError" else (expected, "TypeError")
        if found.split(":")[0] not in accepted and name not in MAY_SUCCEED:
            wrong[name] = f"expected {expected}, got {found}"
    assert wrong == {}


def test_vocabulary_of_another_size(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "wide.gguf", n_vocab=301)
    with pysa.Model(path, n_threads=1) as model, model.session(n_ctx=16) as session:
        assert session.eval([300]).shape == (1, 301)
        with pytest.raises(pysa.ArgumentError, match=r"0\.\.300.*301"):
            session.eval([301])
