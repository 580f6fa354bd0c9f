"""A trial is a session's prompt that can begin in the middle: the same results, whatever was run before.

Cases and limits are those of tests/helpers/plans.py.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.plans import CASES, GQA2, GQA3, MQA, TOLERANCES, Case, Dims, build_plan, by_name, relative_error
from helpers.reference import Trace, reference_model
from numpy.typing import NDArray

import pysa
from pysa.planning.trial import Trial


def all_logits(trial: Trial) -> NDArray[np.float32]:
    return trial.logits(range(trial.n_tokens))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_plan_tried_after_dense_equals_the_reference(case: Case, folder: Path) -> None:
    """The run begins at the plan's first change and makes again what earlier layers hand on."""
    with pysa.Model(case.path(folder), n_threads=1) as model:
        trial = Trial(model, case.tokens(), type_k=case.type_k, type_v=case.type_v, n_ubatch=case.n_tok // 2 + 1)
        assert trial.run(pysa.Plan.dense(model.n_layer, model.n_head), keep=True) == model.n_layer
        trial.run(case.plan(folder))
        assert relative_error(all_logits(trial), case.reference(folder)) <= TOLERANCES["fused", case.type_k]


def changed(plan: pysa.Plan, other: pysa.Plan, first: int) -> pysa.Plan:
    """The plan up to layer `first`, then the other one; followers of heads that own nothing there own themselves."""
    layer, head = plan.score_layer.copy(), plan.score_head.copy()
    layer[first:], head[first:] = other.score_layer[first:], other.score_head[first:]
    for il, h in np.argwhere((layer >= 0) & (layer < np.arange(len(layer))[:, None])):
        a, g = layer[il, h], head[il, h]
        if layer[a, g] != a or head[a, g] != g:
            layer[il, h], head[il, h] = il, h
    return pysa.Plan("custom", "scores", plan.n_sink, plan.n_recent, layer, head)


@pytest.mark.parametrize("dims", [GQA3, GQA2, MQA], ids=["gqa3", "gqa2", "mqa"])
@pytest.mark.parametrize("n_ubatch", [64, 150, 1])
def test_runs_in_any_order_equal_sessions(dims: Dims, n_ubatch: int, folder: Path) -> None:
    """What one run leaves behind must not show in the next.

    Not bit for bit: an owner adds its distance up otherwise when it has followers, which can tip a weight's f16 over.
    """
    rng = np.random.default_rng(3)
    tokens = rng.integers(0, 256, 151 if n_ubatch > 1 else 60).astype(np.int32)
    with pysa.Model(dims.write(folder), n_threads=1) as model:
        trial = Trial(model, tokens, n_ubatch=n_ubatch, type_k="f32", type_v="f32")
        kept = pysa.Plan.dense(dims.n_layer, dims.n_head)
        kept.n_sink, kept.n_recent = 3, 21
        trial.run(kept, keep=True)
        n_partial = 0
        for i in range(12):
            first = int(rng.integers(0, dims.n_layer))
            plan = changed(kept, build_plan("mixed", dims, 3, 21, seed=i), first)
            keep = i % 4 == 3
            n_evaluated = trial.run(plan, keep=keep)
            n_same = [bool((plan.score_layer[il] == kept.score_layer[il]).all()) for il in range(dims.n_layer)]
            n_same = [
                same and bool((plan.score_head[il] == kept.score_head[il]).all()) for il, same in enumerate(n_same)
            ]
            assert n_evaluated == dims.n_layer - (n_same.index(False) if False in n_same else dims.n_layer)
            n_partial += 0 < n_evaluated < dims.n_layer
            options = {"n_ubatch": n_ubatch, "attention": "fused", "type_k": "f32", "type_v": "f32", "v_skip": 0.0}
            with model.session(plan=plan, **options) as session:
                expected = session.eval(tokens, logits="all")
            assert relative_error(all_logits(trial), expected) <= TOLERANCES["fused", "f32"], (
                f"run {i}, from layer {first}"
            )
            kept = plan if keep else kept
        assert n_partial >= 3


def test_queries_keys_and_values_give_the_attention_back(folder: Path) -> None:
    """Their softmax is the float64 model's attention."""
    case = by_name("owners-window-beyond-prompt")
    tokens, n_queries = case.tokens(), 70
    n = len(tokens)
    trace = Trace()
    reference_model(case.path(folder)).logits(tokens, case.plan(folder), trace=trace)
    with pysa.Model(case.path(folder), n_threads=1) as model:
        trial = Trial(model, tokens, n_queries=n_queries, type_k="f32", type_v="f32", n_ubatch=50)
        trial.run(case.plan(folder), keep=True)
        n_gqa = model.n_head // model.n_head_kv
        for il in range(model.n_layer):
            q, k = trial.queries(il).astype(np.float64), trial.keys(il).astype(np.float64).repeat(n_gqa, axis=0)
            scores = trial.kq_scale * np.einsum("thd,hjd->thj", q, k)
            scores[(np.arange(n) > np.arange(n - n_queries, n)[:, None])[:, None].repeat(model.n_head, 1)] = -np.inf
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
            expected = np.moveaxis(np.asarray(trace.weight[il]), 0, 1)[n - n_queries :]
            np.testing.assert_allclose(weights, expected, atol=2e-5)
            assert trial.values(il).shape == (model.n_head_kv, n, trial.values(il).shape[2])


def test_misuse_is_refused(folder: Path) -> None:
    with pysa.Model(GQA3.write(folder), n_threads=1) as model:
        dense = pysa.Plan.dense(model.n_layer, model.n_head)
        for tokens, options in (
            ([1], {}),
            ([1, 2], {"n_queries": 3}),
            ([1, model.n_vocab], {}),
            ([1, 2], {"n_ubatch": 0}),
        ):
            with pytest.raises(pysa.ArgumentError):
                Trial(model, tokens, **options)
        trial = Trial(model, [1, 2, 3])
        for call in (lambda: trial.logits([0]), lambda: trial.queries(0), lambda: trial.keys(0)):
            with pytest.raises(pysa.ArgumentError, match="run"):
                call()
        with pytest.raises(pysa.PlanError):
            trial.run(pysa.Plan.dense(model.n_layer + 1, model.n_head))
        trial.run(dense)
        for bad in ([3], [-1]):
            with pytest.raises(pysa.ArgumentError, match="positions"):
                trial.logits(bad)
        with pytest.raises(pysa.ArgumentError, match="layer"):
            trial.values(model.n_layer)
        assert trial.size_bytes > 0
        trial.close()
        with pytest.raises(pysa.ArgumentError, match="closed"):
            trial.run(dense)
