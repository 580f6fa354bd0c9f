"""Dense pysa equals llama_decode of the same build (pysa._oracle) on the same files; plans do not disturb llama.cpp.

Two rules for logits, as a share of their range. With an f32 cache and flash attention off, llama.cpp computes in
float32 as pysa does: 1e-3, of which a fiftieth is measured. Elsewhere llama.cpp rounds inside its attention (weights to
f16 before V without flash attention, the running sum of V to f16 with it), so that its own two paths can lie further
than 1e-3 apart on these peaked random models: there pysa must be within the limit, or nearer to one of them than they
are to each other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.plans import GQA3, build_plan, relative_error
from helpers.tiny_gguf import write_tiny_gguf
from numpy.typing import NDArray

import pysa

_oracle = pytest.importorskip("pysa._oracle", reason="built with the CMake option PYSA_TESTS")

LIMIT = 1e-3
N_CTX = 768
N_PROMPTS = (1, 255, 256, 257, 600)
N_GREEDY = 64
ATTENTIONS = ("composed", "fused")

YARN = {
    "llama.rope.scaling.type": "yarn",
    "llama.rope.scaling.factor": 4.0,
    "llama.rope.scaling.original_context_length": 128,
}
FILES: dict[str, dict[str, Any]] = {
    "llama": {"arch": "llama", "n_layer": 4},
    "llama-rope-freqs": {"arch": "llama", "n_layer": 3, "rope_freqs": True, "n_head": 5, "n_head_kv": 1},
    "llama-yarn-tied": {"arch": "llama", "n_layer": 3, "tied": True, "extra_kv": YARN},
    "llama-bias-spm": {"arch": "llama", "n_layer": 3, "qkv_bias": True, "vocab": "llama", "head_dim": 64},
    "llama-linear": {
        "arch": "llama",
        "n_layer": 2,
        "extra_kv": {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 3.0},
    },
    "qwen2": {"arch": "qwen2", "n_layer": 3, "n_head": 8, "n_head_kv": 4},
    "qwen3": {"arch": "qwen3", "n_layer": 4, "head_dim": 64},
}
# llama.cpp also rounds every query to the type of the keys; two layers deep.
CACHE_LIMITS = {"f16": 1e-3, "bf16": 1e-2, "q8_0": 4e-2}
# A float32 difference tips some activations over to the next step of the type that a product rounds them to.
WEIGHT_LIMITS = {"f16": 1e-3, "bf16": 5e-3, "q8_0": 1.5e-2, "q4_0": 1.5e-2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def file_of(folder: Path, name: str, **fields: Any) -> Path:
    path = folder / f"{name}-{'-'.join(f'{k}={v}' for k, v in fields.items() if k != 'plan')}.gguf"
    return path if path.exists() else write_tiny_gguf(path, **{"seed": 3, **FILES[name], **fields})


def oracle(path: Path, cache: str = "f32", flash: str = "off") -> Any:
    return _oracle.Oracle(str(path), n_ctx=N_CTX, n_threads=1, type_k=cache, type_v=cache, flash_attn=flash)


def prompt(n: int) -> NDArray[np.int32]:
    return np.random.default_rng(n).integers(0, 256, n).astype(np.int32)


def greedy(evaluate: Any, n: int) -> tuple[list[int], NDArray[np.float64]]:
    """N_GREEDY tokens after a prompt of n, and the logits (N_GREEDY, n_vocab) that chose them."""
    row = evaluate(prompt(n))[-1]
    tokens: list[int] = []
    rows = []
    for _ in range(N_GREEDY):
        rows.append(np.asarray(row, dtype=np.float64))
        tokens.append(int(row.argmax()))
        row = evaluate(np.array(tokens[-1:], np.int32))[-1]
    return tokens, np.stack(rows)


def evaluate_with(session: pysa.Session, logits: Any = "last") -> Any:
    return lambda tokens: session.eval(tokens, logits=logits)


def decode_with(context: Any, logits: str = "last") -> Any:
    return lambda tokens: context.eval(tokens.tolist(), logits)


@pytest.mark.parametrize("n", N_PROMPTS)
@pytest.mark.parametrize("name", list(FILES))
def test_same_greedy_tokens_and_logits(folder: Path, name: str, n: int) -> None:
    path = file_of(folder, name)
    tokens, expected = greedy(decode_with(oracle(path)), n)
    assert len(set(tokens)) > 5  # no loop of two tokens that anything would follow
    with pysa.Model(path, n_threads=1) as model:
        for attention in ATTENTIONS:
            with model.session(n_ctx=N_CTX, type_k="f32", type_v="f32", attention=attention) as session:
                found, actual = greedy(evaluate_with(session), n)
            assert found == tokens, attention
            assert relative_error(actual, expected) <= LIMIT, attention


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("name", list(FILES))
def test_all_logits_of_a_prompt(folder: Path, name: str, attention: str) -> None:
    path = file_of(folder, name)
    expected = oracle(path).eval(prompt(600).tolist(), "all")
    with (
        pysa.Model(path, n_threads=2) as model,
        model.session(n_ctx=N_CTX, type_k="f32", type_v="f32", attention=attention) as session,
    ):
        assert relative_error(session.eval(prompt(600), logits="all"), expected) <= LIMIT


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("cache", list(CACHE_LIMITS))
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_small_cache_types(
    folder: Path, name: str, cache: str, attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """llama.cpp rotates rows before it quantises them unless told not to; pysa stores them as they are."""
    monkeypatch.setenv("LLAMA_ATTN_ROT_DISABLE", "1")
    path = file_of(folder, name, n_layer=2)
    flash = oracle(path, cache, "on").eval(prompt(257).tolist(), "all")
    # A quantised V needs flash attention in llama.cpp.
    plain = flash if cache == "q8_0" else oracle(path, cache, "off").eval(prompt(257).tolist(), "all")
    with (
        pysa.Model(path, n_threads=1) as model,
        model.session(n_ctx=N_CTX, type_k=cache, type_v=cache, attention=attention) as session,
    ):
        actual = session.eval(prompt(257), logits="all")
    limit = max(CACHE_LIMITS[cache], relative_error(plain, flash))
    nearer = min(relative_error(actual, plain), relative_error(actual, flash))
    assert nearer <= limit


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("dtype", list(WEIGHT_LIMITS))
def test_weight_types(folder: Path, dtype: str, attention: str) -> None:
    """Two layers, and llama.cpp's tokens lead; a token may differ only where its own two best lie within the limit."""
    path = file_of(folder, "llama", dtype=dtype, n_layer=2)
    tokens, expected = greedy(decode_with(oracle(path)), 257)
    with (
        pysa.Model(path, n_threads=1) as model,
        model.session(n_ctx=N_CTX, type_k="f32", type_v="f32", attention=attention) as session,
    ):
        rows = [session.eval(prompt(257)), *(session.eval([token]) for token in tokens[:-1])]
    actual = np.concatenate(rows)
    limit = WEIGHT_LIMITS[dtype]
    assert relative_error(actual, expected) <= limit
    best = np.sort(expected, axis=1)
    is_clear = best[:, -1] - best[:, -2] > 2 * limit * np.ptp(expected)
    assert is_clear.sum() > N_GREEDY // 4
    assert np.array_equal(actual.argmax(1)[is_clear], np.array(tokens)[is_clear])


# -- files with a plan -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_annotated_file_is_the_same_file_to_llama_cpp(folder: Path, name: str) -> None:
    plain = file_of(folder, name)
    with pysa.Model(plain, n_threads=1) as model:
        plan = pysa.Plan.streaming(model.n_layer, model.n_head, 4, 24)
    annotated = file_of(folder, name, plan=plan.to_json(), n_ctx=1024)
    expected = oracle(plain, "f16", "auto").eval(prompt(257).tolist(), "all")
    assert np.array_equal(oracle(annotated, "f16", "auto").eval(prompt(257).tolist(), "all"), expected)
    with pysa.Model(annotated, n_threads=1) as model, model.session(n_ctx=N_CTX, attention="composed") as session:
        assert model.plan == plan
        assert relative_error(session.eval(prompt(257), logits="all"), expected) > 0.05  # pysa does run the plan


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("kind", ["mixed", "sa", "streaming"])
def test_disabled_plan_is_bit_identical_to_no_plan(folder: Path, kind: str, attention: str) -> None:
    window = (0, 0) if kind == "sa" else (4, 24)
    plan = build_plan(kind, GQA3, *window, bias=True, seed=1).to_json()
    shape = {"n_layer": GQA3.n_layer, "n_head": GQA3.n_head, "n_head_kv": GQA3.n_head_kv}
    made = {
        state: write_tiny_gguf(folder / f"{kind}-{attention}-{state}.gguf", seed=5, plan=keys, **shape)
        for state, keys in {"none": None, "off": {**plan, "enabled": False}, "on": {**plan, "enabled": True}}.items()
    }
    logits = {}
    for state, path in made.items():
        with pysa.Model(path, n_threads=1) as model, model.session(n_ctx=N_CTX, attention=attention) as session:
            steps = [session.eval(prompt(257), logits="all"), *(session.eval([t]) for t in range(20))]
            logits[state] = np.concatenate(steps)
            assert (model.plan is None) == (state == "none")
    assert np.array_equal(logits["off"], logits["none"])
    assert not np.array_equal(logits["on"], logits["none"])


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_plan_dense_is_bit_identical_to_no_plan(folder: Path, attention: str) -> None:
    plan = build_plan("mixed", GQA3, 4, 24, bias=True, seed=1)
    shape = {"n_layer": GQA3.n_layer, "n_head": GQA3.n_head, "n_head_kv": GQA3.n_head_kv}
    path = write_tiny_gguf(folder / f"overridden-{attention}.gguf", seed=5, plan=plan.to_json(), **shape)
    plain = write_tiny_gguf(folder / f"plain-{attention}.gguf", seed=5, **shape)
    with (
        pysa.Model(path, n_threads=1) as model,
        model.session(n_ctx=N_CTX, attention=attention, plan="dense") as session,
    ):
        actual = session.eval(prompt(257), logits="all")
    with pysa.Model(plain, n_threads=1) as model, model.session(n_ctx=N_CTX, attention=attention) as session:
        assert np.array_equal(session.eval(prompt(257), logits="all"), actual)
