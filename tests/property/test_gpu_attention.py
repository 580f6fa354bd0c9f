"""The GPU's kernels against float64 and against the CPU: emulated here, on a real GPU with `pytest -m gpu`.

Cases are those of tests/helpers/plans.py, limits those of tests/helpers/gpus.py. A head size without kernels falls back
to composed attention, which is asserted too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.gpus import EMULATED, TOLERANCES, emulated_gpu, on_gpu, real_gpu
from helpers.plans import CASES, MQA, Case, build_plan, by_name, relative_error
from helpers.plans import TOLERANCES as CPU_TOLERANCES
from numpy.typing import NDArray

HEAD_SIZES = (32, 64, 96, 128, 256)
N_SINGLE = (
    20  # tokens of an emulated case that come one by one, at its end: a fiber for each thread of a GPU takes its time
)


@pytest.fixture(params=["emulated", pytest.param("real", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "emulated":
        return emulated_gpu()
    found = real_gpu()
    if found is None:
        pytest.skip("no GPU here")
    return found


def run(case: Case, folder: Path, device: str, sizes: list[int], **options: Any) -> tuple[Any, NDArray[np.float32]]:
    """The session, and logits (n_tok, n_vocab) of the case's tokens, given in pieces of these sizes."""
    types = {"type_k": case.type_k, "type_v": case.type_v}
    tokens = case.tokens()
    with on_gpu(case.path(folder), device) as model:
        session = model.session(plan=case.plan(folder), **{"v_skip": 0.0, **types, **options})
        pieces = np.split(tokens, np.cumsum(sizes)[:-1])
        return session, np.concatenate([session.eval(piece, logits="all") for piece in pieces])


def has_kernels(case: Case) -> bool:
    return case.dims.head_dim in HEAD_SIZES and case.dims.head_dim_v in (None, case.dims.head_dim)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_kernels_equal_the_reference(case: Case, folder: Path, device: str) -> None:
    n = len(case.tokens())
    n_single = N_SINGLE if device == EMULATED else n // 2
    sizes = [(n - n_single) // 2, n - n_single - (n - n_single) // 2, *[1] * n_single]
    session, logits = run(case, folder, device, sizes)
    expected = case.reference(folder)
    assert session.n_splits == 1
    if not has_kernels(case):
        assert session.attention == "composed"
        # ggml multiplies f32 by TF32 on a real card, 10 bits of mantissa as f16 has.
        limits = CPU_TOLERANCES["composed", case.type_k], TOLERANCES["several", case.type_k]
        assert relative_error(logits, expected) <= limits[device != EMULATED]
        return
    assert session.attention == "fused"
    error = np.abs(logits - expected).max(axis=1) / np.ptp(expected)
    assert error[:-n_single].max() <= TOLERANCES["several", case.type_k]
    # Single tokens see keys and values that layers below made from a prompt's, so its limit holds for them too.
    assert error[-n_single:].max() <= TOLERANCES["several", case.type_k]


@pytest.mark.parametrize("name", ["sa", "pod-keys", "mixed-gate", "mixed-f16", "mixed-q8_0", "mixed-q4_0"])
def test_single_tokens_equal_the_reference(name: str, folder: Path, device: str) -> None:
    """From the first token on, so that f16 products of a prompt are not in it."""
    case = by_name(name)
    n = 60 if device == EMULATED else len(case.tokens())
    with on_gpu(case.path(folder), device) as model:
        session = model.session(plan=case.plan(folder), v_skip=0.0, n_ubatch=1, type_k=case.type_k, type_v=case.type_v)
        logits = session.eval(case.tokens()[:n], logits="all")
    assert relative_error(logits, case.reference(folder)[:n]) <= TOLERANCES["one", case.type_k]


def test_values_left_out_stay_within_the_bound(folder: Path, device: str) -> None:
    case = Case("v-skip", MQA, "mixed", 4, 20, 613, seed=51)
    plan = build_plan("mixed", MQA, case.n_sink, case.n_recent, seed=51)
    tokens = case.tokens()
    n_single = 4 if device == EMULATED else 100
    results = []
    for v_skip in (0.0, 0.01, 0.1):
        with on_gpu(case.path(folder), device) as model:
            session = model.session(type_k="f32", type_v="f32", plan=plan, v_skip=v_skip)
            session.eval(tokens[:-n_single])
            logits = [session.eval(tokens[i : i + 1]) for i in range(len(tokens) - n_single, len(tokens))]
            results.append((np.concatenate(logits), session.skip_report()))
    exact, none = results[0]
    assert none["n_values"] == none["n_values_read"] > 0
    read = [none["n_values_read"]]
    for (logits, report), v_skip in zip(results[1:], (0.01, 0.1), strict=True):
        assert report["n_values"] == none["n_values"]
        assert 0.0 < report["dropped_mass_mean"] <= report["dropped_mass_max"] <= v_skip * 1.001
        assert relative_error(logits, exact) <= 3 * v_skip
        read.append(report["n_values_read"])
    assert read == sorted(read, reverse=True)
    assert read[-1] < 0.9 * read[0]
