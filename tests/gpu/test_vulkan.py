"""Composed attention on a Vulkan device, such as Mesa's lavapipe: `make test-vulkan`. Elsewhere skipped.

Layers, caches and what crosses over between CPU and device, with a driver that none of us wrote.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.gpus import check_going_back, on_gpu
from helpers.plans import CASES, GQA2, Case, build_plan, relative_error

import pysa

NAMES = [device.name for device in pysa.devices() if device.name.startswith("Vulkan")]
PLAN = build_plan("mixed", GQA2, 4, 20, seed=5, bias=True)
TOKENS = np.arange(3, 203) % 250
pytestmark = pytest.mark.skipif(not NAMES, reason="no Vulkan device, or a build without PYSA_VULKAN")

# About three times what lavapipe was measured at; its products and exponentials are less exact than the CPU's.
# In a quantised cache that tips elements over to the type's next step.
TOLERANCES = {"f32": 5e-3, "f16": 5e-3, "bf16": 5e-3, "q8_0": 2e-2, "q4_0": 6.5e-2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_attention_equals_the_reference(case: Case, folder: Path) -> None:
    tokens = case.tokens()
    with on_gpu(case.path(folder), NAMES[0]) as model:
        session = model.session(n_ubatch=48, plan=case.plan(folder), type_k=case.type_k, type_v=case.type_v)
        pieces = [session.eval(piece, logits="all") for piece in (tokens[:-2], tokens[-2:-1], tokens[-1:])]
        assert (session.attention, session.kernel) == ("composed", "ggml")
        assert session.memory()["device"] > 0
    tolerance = max(TOLERANCES[case.type_k], TOLERANCES[case.type_v])
    assert relative_error(np.concatenate(pieces), case.reference(folder)) <= tolerance


@pytest.mark.parametrize("n_gpu_layers", [1, 2, GQA2.n_layer, GQA2.n_layer + 1])
@pytest.mark.parametrize("options", [{}, {"kv_offload": False}, {"attention": "composed"}], ids=str)
def test_any_number_of_layers_gives_what_the_cpu_does(n_gpu_layers: int, options: dict[str, Any], folder: Path) -> None:
    path, tokens = GQA2.write(folder), TOKENS[:150]
    with pysa.Model(path, n_threads=1, device="cpu") as model:
        expected = model.session(plan=PLAN, v_skip=0.0, n_ubatch=64).eval(tokens, logits="all")
    with on_gpu(path, NAMES[0], n_gpu_layers=n_gpu_layers) as model:
        session = model.session(plan=PLAN, v_skip=0.0, n_ubatch=64, **options)
        found = session.eval(tokens, logits="all")
    assert relative_error(found, expected) <= TOLERANCES["f32"]


@pytest.mark.parametrize("type_kv", ["f32", "q8_0"])
def test_going_back_is_exact(type_kv: str, folder: Path) -> None:
    """The rows that a checkpoint keeps of overwritten rings are fetched from the device, and put back."""
    with on_gpu(GQA2.write(folder), NAMES[0]) as model:
        check_going_back(model.session(plan=PLAN, type_k=type_kv, type_v=type_kv), TOKENS)


@pytest.mark.parametrize("type_kv", ["f32", "q8_0"])
def test_a_saved_session_goes_on_on_either_side(type_kv: str, folder: Path, tmp_path: Path) -> None:
    file, path = tmp_path / "session.pysa", GQA2.write(folder)
    with on_gpu(path, NAMES[0]) as model:
        session = model.session(plan=PLAN, type_k=type_kv, type_v=type_kv)
        session.eval(TOKENS[:70])
        session.save(file)
        expected = session.eval(TOKENS[70:75], logits="all")
        np.testing.assert_array_equal(model.load_session(file).eval(TOKENS[70:75], logits="all"), expected)
    with pysa.Model(path, n_threads=1, device="cpu") as model:
        found = model.load_session(file).eval(TOKENS[70:75], logits="all")
    assert relative_error(found, expected) <= TOLERANCES[type_kv]


def test_sessions_of_a_batch_give_what_each_alone_does(folder: Path) -> None:
    options: list[dict[str, Any]] = [{"plan": PLAN}, {"plan": "dense", "type_k": "q8_0", "type_v": "q8_0"}]
    with on_gpu(GQA2.write(folder), NAMES[0]) as model:
        alone, together = ([model.session(**given) for given in options] for _ in range(2))
        batch = pysa.Batch(model)
        for at, n in ((0, 70), (70, 1), (71, 1), (72, 2)):
            tokens = TOKENS[at : at + n]
            counts, found = batch.step([(session, tokens, True) for session in together])
            assert counts == [n, n]
            for session, row, type_kv in zip(alone, found, ("f32", "q8_0"), strict=True):
                assert relative_error(row, session.eval(tokens)[0]) <= TOLERANCES[type_kv]
