"""What only a real card can show; `make test-gpu`. The kernels are in tests/property/test_gpu_attention.py."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.gpus import in_child, on_gpu, real_gpu
from helpers.plans import GQA2, Dims, build_plan

import pysa

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(real_gpu() is None, reason="no GPU here, or not -m gpu")]

# Long enough that its cache is seen beside what the driver keeps for itself.
LARGE = Dims("llama", n_layer=6, n_head=16, n_head_kv=8, head_dim=128, n_embd=256, n_ff=512)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture
def gpu() -> pysa.Device:
    name = real_gpu()
    return next(device for device in pysa.devices() if device.name == name)


def free_bytes(name: str) -> int:
    return next(device.free_bytes for device in pysa.devices() if device.name == name)


GENERATE = """
import json, sys
import numpy as np
import pysa
path, plan, device = sys.argv[1:4]
model = pysa.Model(path, device=device, n_gpu_layers=999)
session = model.session(n_ctx=2048, plan=plan)
logits = session.eval(np.arange(300) % 250)
tokens = []
for _ in range(200):
    tokens.append(int(logits[0].argmax()))
    logits = session.eval([tokens[-1]])
print(json.dumps([session.attention, session.n_splits, tokens]))
"""


@pytest.mark.parametrize("variable", ["GGML_CUDA_DISABLE_GRAPHS", "GGML_CUDA_DISABLE_FUSION"])
def test_graphs_and_fusion_change_no_token(variable: str, folder: Path, gpu: pysa.Device) -> None:
    path = GQA2.write(folder)
    plan = folder / "plan.json"
    build_plan("mixed", GQA2, 4, 40, seed=7, bias=True).write(plan, force=True)
    with_it, without = (json.loads(in_child(GENERATE, path, plan, gpu.name, **v)) for v in ({}, {variable: "1"}))
    assert with_it[:2] == ["fused", 1]
    assert with_it == without


@pytest.mark.parametrize("n_tokens", [1, 2, 63, 255, 256, 257, 600])
def test_prompts_equal_composed_attention(n_tokens: int, folder: Path, gpu: pysa.Device) -> None:
    tokens = np.arange(n_tokens) % 250
    plan = build_plan("mixed", GQA2, 4, 40, seed=7, bias=True)
    with on_gpu(GQA2.write(folder), gpu.name) as model:
        fused, composed = (
            model.session(plan=plan, attention=attention, v_skip=0.0).eval(tokens, logits="all")
            for attention in ("fused", "composed")
        )
    assert np.abs(fused - composed).max() / np.ptp(composed) <= 4e-3


def test_the_driver_sees_what_a_plan_saves(folder: Path, gpu: pysa.Device) -> None:
    path = LARGE.write(folder, n_ctx=65536)
    used, counted = [], []
    with on_gpu(path, gpu.name) as model:
        plans = ("dense", build_plan("streaming", LARGE, 16, 240))
        for plan in plans:
            model.session(plan=plan).eval([1, 2, 3])  # what is loaded once is loaded now
        for plan in plans:
            session = model.session(plan=plan)
            session.eval([1, 2, 3])
            before = free_bytes(gpu.name)
            session.fill(32768)
            session.eval([4])
            used.append(before - free_bytes(gpu.name))
            counted.append(session.memory()["device"])
            del session
    assert used[0] - used[1] >= 0.9 * (counted[0] - counted[1]) > 0


def test_a_full_card_is_an_error_and_the_model_stays_usable(folder: Path, gpu: pysa.Device) -> None:
    path = LARGE.write(folder, n_ctx=2**31 - 1)
    with on_gpu(path, gpu.name) as model:
        session = model.session(type_k="f32", type_v="f32")
        session.eval([1, 2, 3])
        row = session.memory()["total"] / session.memory()["n_rows"]
        with pytest.raises(pysa.DeviceError, match="n_ctx of at most"):
            session.fill(int(2 * gpu.total_bytes / row))
        assert session.eval([4]).shape[0] == 1
        assert model.session().eval(np.arange(300) % 250).shape[0] == 1
