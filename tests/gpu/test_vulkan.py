"""Composed attention on a Vulkan device, such as Mesa's lavapipe: `make test-vulkan`. Elsewhere skipped.

Layers, caches and what crosses over between CPU and device, with a driver that none of us wrote.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.gpus import on_gpu
from helpers.plans import CASES, GQA2, Case, build_plan, relative_error

import pysa

NAMES = [device.name for device in pysa.devices() if device.name.startswith("Vulkan")]
pytestmark = pytest.mark.skipif(not NAMES, reason="no Vulkan device, or a build without PYSA_VULKAN")

# About three times what lavapipe was measured at; its products and exponentials are less exact than the CPU's.
TOLERANCE = 5e-3
QUANTISED = ("q8_0", "q4_0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_attention_equals_the_reference(case: Case, folder: Path) -> None:
    tokens = case.tokens()
    if case.type_k in QUANTISED or case.type_v in QUANTISED:
        with on_gpu(case.path(folder), NAMES[0]) as model:
            with pytest.raises(pysa.DeviceError, match="expected f32, f16 or bf16"):
                model.session(plan=case.plan(folder), type_k=case.type_k, type_v=case.type_v)
            model.session(plan=case.plan(folder), type_k=case.type_k, type_v=case.type_v, kv_offload=False)
        return
    with on_gpu(case.path(folder), NAMES[0]) as model:
        session = model.session(n_ubatch=48, plan=case.plan(folder), type_k=case.type_k, type_v=case.type_v)
        pieces = [session.eval(piece, logits="all") for piece in (tokens[:-2], tokens[-2:-1], tokens[-1:])]
        assert (session.attention, session.kernel) == ("composed", "ggml")
        assert session.memory()["device"] > 0
    assert relative_error(np.concatenate(pieces), case.reference(folder)) <= TOLERANCE


@pytest.mark.parametrize("n_gpu_layers", [1, 2, GQA2.n_layer, GQA2.n_layer + 1])
@pytest.mark.parametrize("options", [{}, {"kv_offload": False}, {"attention": "composed"}], ids=str)
def test_any_number_of_layers_gives_what_the_cpu_does(n_gpu_layers: int, options: dict[str, Any], folder: Path) -> None:
    tokens = np.arange(3, 153) % 250
    plan = build_plan("mixed", GQA2, 4, 20, seed=5, bias=True)
    path = GQA2.write(folder)
    with pysa.Model(path, n_threads=1, device="cpu") as model:
        expected = model.session(plan=plan, v_skip=0.0, n_ubatch=64).eval(tokens, logits="all")
    with on_gpu(path, NAMES[0], n_gpu_layers=n_gpu_layers) as model:
        session = model.session(plan=plan, v_skip=0.0, n_ubatch=64, **options)
        found = session.eval(tokens, logits="all")
    assert relative_error(found, expected) <= TOLERANCE
