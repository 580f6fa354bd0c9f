"""pysa.Plan: makers, rules, JSON, keys and the formula of the cache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysa.errors import PlanError
from pysa.plan import Plan

N_LAYER, N_HEAD, N_HEAD_KV = 7, 6, 2


def mixed_plan(seed: int = 0, n_layer: int = N_LAYER, n_head: int = N_HEAD) -> Plan:
    """A valid plan with owners, followers and local heads."""
    rng = np.random.default_rng(seed)
    plan = Plan.pod_blocks(n_layer, n_head, 1, n_sink=3, n_recent=20)
    for il in range(n_layer):
        for h in range(n_head):
            owners = np.argwhere((plan.kinds() == "owner")[:il])
            choice = rng.integers(3)
            if choice == 1 and len(owners):
                plan.score_layer[il, h], plan.score_head[il, h] = owners[rng.integers(len(owners))]
            elif choice == 2:
                plan.score_layer[il, h] = plan.score_head[il, h] = -1
    plan.mass_bias = rng.normal(size=(n_layer, n_head)).astype(np.float32)
    plan.calibration = {"tokens": 4096, "kl": 0.0125, "corpus": "ab" * 32}
    plan.skip_gate = 0.75
    return plan


def test_makers_place_sources() -> None:
    assert Plan.sa(8, 2, [(3, 4), (7, 7)]).score_layer[:, 1].tolist() == [0, 1, 2, 2, 2, 5, 6, 6]
    # a span that starts where another ends follows the same owner: a follower is no source
    assert Plan.sa(8, 2, [(3, 4), (5, 6)]).score_layer[:, 0].tolist() == [0, 1, 2, 2, 2, 2, 2, 7]
    assert Plan.pod_blocks(7, 2, 3).score_layer[:, 0].tolist() == [0, 0, 0, 3, 3, 3, 6]
    assert Plan.pod_blocks(7, 2, 3).score_head[4].tolist() == [0, 1]
    assert set(Plan.streaming(3, 2).kinds().ravel()) == {"local"}
    assert set(Plan.dense(3, 2).kinds().ravel()) == {"owner"}
    assert (Plan.sa(8, 2, [(3, 4)]).n_sink, Plan.sa(8, 2, [(3, 4)]).n_recent) == (0, 0)


@pytest.mark.parametrize("spans", [[(0, 2)], [(3, 2)], [(3, 8)], [(2, 4), (4, 5)]])
def test_spans_out_of_place_are_refused(spans: list[tuple[int, int]]) -> None:
    with pytest.raises(PlanError, match="expected first layer"):
        Plan.sa(8, 2, spans)


@given(st.integers(0, 10_000))
def test_json_and_keys_round_trip(seed: int) -> None:
    plan = mixed_plan(seed)
    plan.validate(N_HEAD_KV, N_LAYER, N_HEAD)
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    keys = {key: value for key, (_, value) in plan.to_keys().items()}
    assert Plan.from_keys({**keys, "pysa.pruned": True, "llama.block_count": 7}, N_LAYER, N_HEAD) == plan


def test_file_round_trip_and_force(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    mixed_plan().save(path)
    assert Plan.load(path) == mixed_plan()
    with pytest.raises(PlanError, match="exists"):
        Plan.dense(2, 2).save(path)
    Plan.dense(2, 2).save(path, force=True)
    assert Plan.load(path) == Plan.dense(2, 2)
    assert list(tmp_path.iterdir()) == [path]


def changed(change: dict[str, Any]) -> Plan:
    plan = mixed_plan(1)
    for name, value in change.items():
        if isinstance(value, tuple):
            il, h, source = value
            getattr(plan, name)[il, h] = source
        else:
            setattr(plan, name, value)
    return plan


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"version": 2}, "version: expected 1, got 2"),
        ({"distant": "values"}, "distant: expected one of scores, keys, got 'values'"),
        ({"n_sink": -1}, "n_sink: expected 0..2147483647 tokens, got -1"),
        ({"skip_gate": 0.0}, "skip_gate: expected a number above 0, at most 1, got 0.0"),
        ({"n_recent": 0}, "a local head needs a window"),
        ({"n_recent": 0, "n_sink": 2}, "n_recent: expected at least 1 where n_sink is 2"),
        ({"score_layer": (2, 1, 7)}, "layer 2 head 1: expected a source in 0..2, 0..5"),
        (
            {"score_layer": (2, 1, 5), "score_head": (2, 1, 0)},
            "expected a source in an earlier layer, got layer 5 head 0",
        ),
        (
            {"score_layer": (2, 1, 2), "score_head": (2, 1, 0)},
            "expected a source in an earlier layer, got layer 2 head 0",
        ),
        ({"score_layer": (2, 1, -1), "score_head": (2, 1, 0)}, "layer 2 head 1: expected a source"),
        ({"mass_bias": np.full((N_LAYER, N_HEAD), np.nan)}, "mass_bias: expected finite values"),
        ({"mass_bias": np.zeros((N_LAYER, 2))}, "mass_bias: expected shape"),
    ],
)
def test_each_fault_is_named(change: dict[str, Any], fault: str) -> None:
    with pytest.raises(PlanError) as caught:
        changed(change).validate(N_HEAD_KV)
    assert fault in str(caught.value)


def test_a_source_must_be_an_owner() -> None:
    plan = Plan.pod_blocks(6, 4, 3)
    plan.score_layer[5, 2] = 4
    with pytest.raises(
        PlanError, match="layer 5 head 2: expected an owner as the source, got layer 4 head 2, a follower"
    ):
        plan.validate(2)


def test_keys_need_one_source_layer_and_the_same_group() -> None:
    plan = Plan.pod_blocks(6, 4, 3, distant="keys")
    plan.validate(2)
    plan.score_layer[5, 0] = 0
    plan.score_head[4, 3] = 0
    with pytest.raises(PlanError) as caught:
        plan.validate(2)
    assert "layer 5 KV head 0: `keys` expects one source layer for the group, got [0, 3]" in str(caught.value)
    assert "layer 4 head 3: `keys` expects a source in KV group 1, got head 0" in str(caught.value)


def test_all_faults_at_once_and_against_the_model() -> None:
    plan = Plan.dense(3, 4)
    plan.version = 9
    with pytest.raises(PlanError, match="4 faults") as caught:
        plan.validate(3, n_layer=5, n_head=8)
    for fault in ("version", "expected 5 layers", "expected 8 heads", "n_head_kv"):
        assert fault in str(caught.value)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"colour": 1}, "'colour': unknown key"),
        ({"n_sink": None}, "'n_sink': expected int"),
        ({"n_sink": True}, "'n_sink': expected int, got bool"),
        ({"enabled": 1}, "'enabled': expected bool"),
        ({"score_layer": [[0]]}, "'score_layer': expected 2 rows, got 1"),
        ({"score_layer": [[0, 0], [1]]}, "'score_layer' row 1: expected 2 values, got 1"),
        ({"score_head": [[0, 1], [0, "1"]]}, "'score_head' row 1: expected int values, got '1'"),
        ({"score_head": [[0, 1], [0, 2**40]]}, "'score_head' row 1: expected int values"),
        ({"calibration": {"a": [1]}}, "calibration.a: expected a number or a string"),
    ],
)
def test_bad_json_is_named(change: dict[str, Any], fault: str) -> None:
    with pytest.raises(PlanError) as caught:
        Plan.from_json({**Plan.dense(2, 2).to_json(), **change})
    assert fault in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[1]", "null", "[" * 100_000])
def test_bad_files_are_plan_errors(tmp_path: Path, text: str) -> None:
    (tmp_path / "plan.json").write_text(text, encoding="utf-8")
    with pytest.raises(PlanError, match=r"plan\.json"):
        Plan.load(tmp_path / "plan.json")
    with pytest.raises(PlanError, match="cannot be read"):
        Plan.load(tmp_path / "none.json")


def test_keys_of_wrong_length_and_unknown_ones_are_refused() -> None:
    keys: dict[str, Any] = {key: value for key, (_, value) in mixed_plan().to_keys().items()}
    assert Plan.from_keys({"llama.block_count": 2}, 2, 2) is None
    with pytest.raises(PlanError, match=r"pysa.score_head: expected 12 values, got 42"):
        Plan.from_keys(keys, 2, N_HEAD)
    with pytest.raises(PlanError, match=r"pysa.colour: unknown key"):
        Plan.from_keys({**keys, "pysa.colour": 1}, N_LAYER, N_HEAD)
    del keys["pysa.distant"]
    with pytest.raises(PlanError, match=r"pysa.distant: missing"):
        Plan.from_keys(keys, N_LAYER, N_HEAD)


@given(st.integers(0, 10_000), st.integers(0, 60), st.integers(0, 9))
def test_cache_bytes_equal_a_count_by_hand(seed: int, n: int, n_slack: int) -> None:
    plan = mixed_plan(seed)
    row_k, row_v = 34, 64
    kinds = plan.kinds()
    total = 0
    for il in range(N_LAYER):
        for g in range(N_HEAD_KV):
            group = kinds[il, g * 3 : g * 3 + 3]
            ring = min(n, plan.n_sink + plan.n_recent + n_slack)
            total += row_k * (n if "owner" in group else ring) + row_v * (ring if set(group) == {"local"} else n)
    assert plan.cache_bytes(n, N_HEAD_KV, row_k, row_v, n_slack)["total"] == total
    plan.enabled = False
    assert plan.cache_bytes(n, N_HEAD_KV, row_k, row_v)["total"] == N_LAYER * N_HEAD_KV * n * (row_k + row_v)


def test_sa_keeps_no_key_of_a_follower() -> None:
    parts = Plan.sa(10, 4, [(1, 8)]).cache_bytes(1000, 2, 8, 8)
    assert parts == {"k_full": 2 * 2 * 8000, "v_full": 20 * 8000, "k_window": 0, "v_window": 0, "total": 24 * 8000}


def test_a_plan_of_four_fifths_followers_saves_35_percent_at_32k() -> None:
    plan = Plan.pod_blocks(10, 8, 5, 16, 4080)
    dense = Plan.dense(10, 8).cache_bytes(32768, 4, 128, 128)["total"]
    assert (plan.kinds() == "follower").mean() == 0.8
    assert plan.cache_bytes(32768, 4, 128, 128)["total"] / dense == pytest.approx(1 - 0.8 * 0.4375, abs=1e-9)
