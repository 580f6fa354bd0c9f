"""The shared attention in both implementations, held against the float64 reference.

The cases and the limits are those of tests/helpers/plans.py.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.plans import (
    ALL_DIMS,
    CASES,
    GQA2,
    GQA3,
    MQA,
    TOLERANCES,
    Case,
    Dims,
    build_plan,
    by_name,
    cases,
    choose_gate,
    random_plans,
    relative_error,
)
from helpers.reference import ReferenceModel, Trace, proximal_and_distant, reference_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import pysa

ATTENTIONS = ("composed", "fused")
CHUNKS = (1, 7, 64, 512)


# One thread: where the cores are busy, two wait for each other at every node of these tiny graphs.
@lru_cache(maxsize=16)
def open_model(path: Path) -> pysa.Model:
    return pysa.Model(path, n_threads=1)


def run(
    path: Path,
    tokens: NDArray[np.int32],
    plan: Any,
    attention: str,
    *,
    type_k: str = "f32",
    type_v: str = "f32",
    n_ubatch: int = 512,
    chunk: int | None = None,
    distant_budget_bytes: int = 0,
) -> NDArray[np.float32]:
    """Logits (n_tok, n_vocab) of the whole prompt, evaluated `chunk` tokens a call."""
    options = {"type_k": type_k, "type_v": type_v, "n_ubatch": n_ubatch, "attention": attention, "plan": plan}
    with open_model(path).session(n_ctx=len(tokens), distant_budget_bytes=distant_budget_bytes, **options) as session:
        step = chunk or len(tokens)
        parts = [session.eval(tokens[at : at + step], logits="all") for at in range(0, len(tokens), step)]
        assert session.n_past == len(tokens)
    return np.concatenate(parts)


def run_case(case: Case, folder: Path, attention: str, **options: Any) -> NDArray[np.float32]:
    types = {"type_k": case.type_k, "type_v": case.type_v}
    return run(case.path(folder), case.tokens(), case.plan(folder), attention, **types, **options)


# -- the reference itself --------------------------------------------------------------------------------------------


def weights_by_hand(
    model: ReferenceModel, plan: pysa.Plan, q: list[Any], k: list[Any], il: int, h: int, t: int
) -> tuple[list[float], float]:
    """The formula for one query of one head, in scalars: (w over all positions, g)."""
    n_gqa = model.n_head // model.n_head_kv

    def dot(query: Any, key: Any) -> float:
        return float(model.kq_scale) * sum(float(a) * float(b) for a, b in zip(query, key, strict=True))

    a, g = int(plan.score_layer[il, h]), int(plan.score_head[il, h])
    bias = 0.0 if plan.mass_bias is None else float(plan.mass_bias[il, h])
    own: dict[int, float] = {}
    distant: dict[int, float] = {}
    for j in range(t + 1):
        if j < plan.n_sink or j > t - plan.n_recent:
            own[j] = dot(q[il][t, h], k[il][j, h // n_gqa])
        elif a >= 0 and plan.distant == "scores":
            distant[j] = dot(q[a][t, g], k[a][j, g // n_gqa]) + bias
        elif a >= 0:
            distant[j] = dot(q[il][t, h], k[a][j, h // n_gqa]) + bias
    z_own = sum(math.exp(s) for s in own.values())
    z_distant = sum(math.exp(d) for d in distant.values())
    gate = z_own / (z_own + z_distant)
    if plan.skip_gate < 1.0 and gate >= plan.skip_gate:
        distant, z_distant = {}, 0.0
    total = z_own + z_distant
    return [math.exp({**own, **distant}.get(j, -math.inf)) / total for j in range(len(q[il]))], gate


@pytest.mark.parametrize("distant", ["scores", "keys"])
@pytest.mark.parametrize(("n_sink", "n_recent"), [(0, 0), (2, 3), (0, 1), (5, 20)])
def test_reference_follows_the_formula_position_by_position(
    folder: Path, distant: str, n_sink: int, n_recent: int
) -> None:
    dims, n_tok = GQA3, 13
    model = reference_model(dims.write(folder))
    plan = build_plan("mixed", dims, n_sink, n_recent, distant=distant, bias=True, gate=0.6, seed=21)
    rng = np.random.default_rng(5)
    q = [rng.normal(0, 0.7, (n_tok, model.n_head, model.head_dim_k)) for _ in range(dims.n_layer)]
    k = [rng.normal(0, 0.7, (n_tok, model.n_head_kv, model.head_dim_k)) for _ in range(dims.n_layer)]
    scores = [np.stack([model.own_score(q[il], k[il], h) for h in range(model.n_head)]) for il in range(dims.n_layer)]
    for il in range(dims.n_layer):
        weight, gate = model.attention_weights(il, q[il], scores[: il + 1], k[: il + 1], plan)
        for h in range(model.n_head):
            for t in range(n_tok):
                expected, g = weights_by_hand(model, plan, q, k, il, h, t)
                np.testing.assert_allclose(weight[h, t], expected, rtol=1e-12, atol=1e-300)
                if np.isfinite(gate[t, h]):
                    assert gate[t, h] == pytest.approx(g, rel=1e-12)


def test_proximal_and_distant_split_the_past() -> None:
    proximal, distant = proximal_and_distant(9, n_sink=2, n_recent=3)
    assert np.flatnonzero(proximal[8]).tolist() == [0, 1, 6, 7, 8]
    assert np.flatnonzero(distant[8]).tolist() == [2, 3, 4, 5]
    assert np.flatnonzero(distant[4]).tolist() == []


# -- both implementations against the reference ----------------------------------------------------------------------


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case_equals_the_reference(case: Case, attention: str, folder: Path) -> None:
    actual = run_case(case, folder, attention)
    assert relative_error(actual, case.reference(folder)) <= TOLERANCES[attention, case.type_k]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_fused_equals_composed(case: Case, folder: Path) -> None:
    fused, composed = (run_case(case, folder, attention) for attention in ("fused", "composed"))
    assert relative_error(fused, composed) <= TOLERANCES["fused", case.type_k]


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("name", ["mixed-long", "mixed-keys", "sa", "pod"])
def test_prompt_chunks_equal_the_reference(name: str, chunk: int, attention: str, folder: Path) -> None:
    case = by_name(name)
    actual = run_case(case, folder, attention, n_ubatch=chunk)
    assert relative_error(actual, case.reference(folder)) <= TOLERANCES[attention, case.type_k]


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("chunk", CHUNKS)
def test_calls_of_any_length_equal_the_reference(chunk: int, attention: str, folder: Path) -> None:
    case = by_name("mixed")
    actual = run_case(case, folder, attention, chunk=chunk)
    assert relative_error(actual, case.reference(folder)) <= TOLERANCES[attention, case.type_k]


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_small_budget_for_distant_weights_changes_nothing(attention: str, folder: Path) -> None:
    case = by_name("mixed-long")
    actual = run_case(case, folder, attention, distant_budget_bytes=100_000)
    assert relative_error(actual, case.reference(folder)) <= TOLERANCES[attention, "f32"]


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("n_threads", [2, 3])
def test_threads_do_not_change_the_result(n_threads: int, attention: str, folder: Path) -> None:
    case = by_name("mixed-mha")
    single = run_case(case, folder, attention)
    options: dict[str, Any] = {"type_k": "f32", "type_v": "f32", "attention": attention, "plan": case.plan(folder)}
    with pysa.Model(case.path(folder), n_threads=n_threads) as model:
        assert model.n_threads == n_threads
        with model.session(n_ctx=case.n_tok, **options) as session:
            actual = session.eval(case.tokens(), logits="all")
    assert relative_error(actual, single) <= 1e-6


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("dims", [GQA3, GQA2, MQA], ids=lambda dims: f"{dims.arch}-{dims.n_head}-{dims.n_head_kv}")
def test_owners_only_and_wide_windows_equal_dense(dims: Dims, attention: str, folder: Path) -> None:
    path = dims.write(folder, seed=31)
    tokens = np.random.default_rng(31).integers(0, 256, 143).astype(np.int32)
    dense = run(path, tokens, "dense", attention)
    limit = TOLERANCES[attention, "f32"]
    owners_only = run(path, tokens, build_plan("owners", dims, 3, 20), attention)
    assert relative_error(owners_only, dense) <= limit
    for kind in ("pod", "mixed", "streaming"):
        wide = run(path, tokens, build_plan(kind, dims, 3, 143, bias=True, seed=32), attention)
        assert relative_error(wide, dense) <= limit, kind


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_gate_skips_what_the_reference_skips(attention: str, folder: Path) -> None:
    case = by_name("mixed-gate")
    gated = case.plan(folder)
    trace = Trace()
    reference = reference_model(case.path(folder)).logits(case.tokens(), gated, trace=trace)
    g = np.concatenate([gate[np.isfinite(gate)] for gate in trace.gate])
    assert 0.1 < np.mean(g >= gated.skip_gate) < 0.9
    open_gate = build_plan(case.kind, case.dims, case.n_sink, case.n_recent, bias=case.bias, seed=case.seed)
    never = run(case.path(folder), case.tokens(), open_gate, attention)
    assert relative_error(never, reference) > 0.05
    assert relative_error(run_case(case, folder, attention), reference) <= TOLERANCES[attention, "f32"]


@pytest.mark.parametrize("attention", ATTENTIONS)
@given(data=st.data())
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_random_plans_equal_the_reference(attention: str, folder: Path, data: st.DataObject) -> None:
    dims = data.draw(st.sampled_from(ALL_DIMS))
    plan = data.draw(random_plans(dims))
    n_tok = data.draw(st.integers(1, 150))
    n_ubatch = data.draw(st.sampled_from(CHUNKS))
    chunk = data.draw(st.sampled_from([7, 64, n_tok]))
    path = dims.write(folder, seed=41)
    tokens = np.random.default_rng(n_tok).integers(0, 256, n_tok).astype(np.int32)
    model = reference_model(path)
    if data.draw(st.booleans()) and n_tok < 60:
        gated, margin = choose_gate(model, tokens, plan)
        plan = gated if margin >= 1e-3 else plan
    actual = run(path, tokens, plan, attention, n_ubatch=n_ubatch, chunk=chunk)
    assert relative_error(actual, model.logits(tokens, plan)) <= TOLERANCES[attention, "f32"]


# -- types -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("type_v", ["f32", "f16", "bf16", "q8_0", "q4_0"])
@pytest.mark.parametrize("type_k", ["f32", "f16", "bf16", "q8_0", "q4_0"])
def test_every_pair_of_cache_types_runs(type_k: str, type_v: str, attention: str, folder: Path) -> None:
    case = by_name("mixed-mha")
    actual = run(
        case.path(folder), case.tokens(), case.plan(folder), attention, type_k=type_k, type_v=type_v, n_ubatch=64
    )
    model = reference_model(case.path(folder))
    expected = model.logits(case.tokens(), case.plan(folder), kv_round=type_k, v_round=type_v)
    limit = max(TOLERANCES[attention, type_k], TOLERANCES[attention, type_v])
    assert relative_error(actual, expected) <= limit


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_smaller_types_round_more(attention: str, folder: Path) -> None:
    """Each type stores what it says: against the unrounded reference the error grows with the type's step."""
    case = by_name("mixed")
    exact = reference_model(case.path(folder)).logits(case.tokens(), case.plan(folder))
    errors = []
    for kind in ("f32", "f16", "q8_0", "q4_0"):
        actual = run(case.path(folder), case.tokens(), case.plan(folder), attention, type_k=kind, type_v=kind)
        errors.append(relative_error(actual, exact))
    assert errors == sorted(errors)
    assert errors[-1] > 4 * errors[-2]


def test_table_covers_every_kind() -> None:
    assert {case.kind for case in CASES} == {"owners", "sa", "pod", "streaming", "mixed"}
    assert {case.type_k for case in CASES} == {"f32", "f16", "bf16", "q8_0", "q4_0"}
    assert all(case.n_tok % 32 for case in CASES)
    assert len(cases(kinds=["mixed"])) >= 8


KERNEL_CASES = (
    "mixed",
    "mixed-keys-f16",
    "mixed-bf16",
    "mixed-q8_0",
    "mixed-q4_0",
    "mixed-gate",
    "mixed-odd-sizes-f16",
    "mixed-wide-q8_0",
)
KERNEL_SCRIPT = """
import sys
from pathlib import Path
from helpers.plans import CASES, TOLERANCES, relative_error
import pysa

wanted, folder, *names = sys.argv[1:]
for case in CASES:
    if case.name in names:
        with pysa.Model(case.path(Path(folder)), n_threads=1) as model:
            plan, types = case.plan(Path(folder)), {"type_k": case.type_k, "type_v": case.type_v}
            for n_ubatch in (1, 512):
                session = model.session(plan=plan, attention="fused", n_ubatch=n_ubatch, **types)
                assert session.kernel == wanted, session.kernel
                error = relative_error(session.eval(case.tokens(), logits="all"), case.reference(Path(folder)))
                assert error <= TOLERANCES["fused", case.type_k], (case.name, n_ubatch, error)
"""


@pytest.mark.parametrize("kernel", ["avx512", "avx2", "neon", "scalar"])
def test_every_kernel_equals_the_reference(kernel: str, folder: Path) -> None:
    """Each set of CPU kernels that this machine runs, forced by PYSA_CPU in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", KERNEL_SCRIPT, kernel, str(folder), *KERNEL_CASES],
        env={**os.environ, "PYSA_CPU": kernel, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    if "PYSA_CPU: expected one of" in done.stderr:
        pytest.skip(f"this machine or build has no {kernel}")
    assert done.returncode == 0, done.stderr


def test_unknown_kernel_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYSA_CPU", "sse9")
    with pytest.raises(pysa.ArgumentError, match=r"PYSA_CPU: expected one of .*scalar.*sse9"):
        open_model(CASES[0].path(folder)).session()
