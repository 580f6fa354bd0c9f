"""The search on made-up models whose best plans are known: what it finds, when it stops, that it can be resumed."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pysa import Plan
from pysa.errors import PysaError
from pysa.planning.budget import Budget
from pysa.planning.strategies import meter as meter_module
from pysa.planning.strategies.cost import Sample
from pysa.planning.strategies.ground import Ground
from pysa.planning.strategies.groups import FOLLOWER, LOCAL, OWNER, Saving, Shape, group_kinds
from pysa.planning.strategies.limits import Limits
from pysa.planning.strategies.matching import Matcher
from pysa.planning.strategies.meter import Meter
from pysa.planning.strategies.search import Found, search
from pysa.planning.strategies.state import CostStore, plan_digest
from pysa.planning.strategies.steps import Goal

N_VOCAB, N_TOKENS = 40, 96
POSITIONS = np.arange(20, 80)


class MadeUpModel:
    """Every group's change adds its own pattern to the logits; a follower's is smaller than that of a local group."""

    def __init__(self, shape: Shape, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.shape = shape
        self.sizes = rng.uniform(0.005, 0.12, (shape.n_layer, shape.n_head_kv))
        self.patterns = rng.normal(size=(shape.n_layer, shape.n_head_kv, N_TOKENS, N_VOCAB)).astype(np.float32)
        self.follows = 0.6
        self.base = 2 * rng.normal(size=(N_TOKENS, N_VOCAB)).astype(np.float32)
        self.tokens = rng.integers(0, N_VOCAB, N_TOKENS).astype(np.int32)
        self.tokens[91], self.tokens[93] = self.base[90].argmax(), self.base[92].argmax()
        errors = [np.full((shape.n_head, il * shape.n_head), 1.0, np.float32) for il in range(shape.n_layer)]
        self.matcher = Matcher(shape, 2, 6, errors, np.ones((shape.n_layer, shape.n_head), np.float32), errors)

    def logits(self, plan: Plan) -> Any:
        kinds = group_kinds(plan, self.shape.n_head_kv)
        share = np.where(kinds == LOCAL, 1.0, np.where(kinds == FOLLOWER, self.follows, 0.0)) * self.sizes
        return self.base + np.tensordot(share.astype(np.float32), self.patterns, 2)

    def saving(self, plan: Plan) -> float:
        shape = self.shape
        dense = 2 * 1000 * shape.n_layer * shape.n_head_kv
        return 1.0 - plan.cache_bytes(1000, shape.n_head_kv, 1, 1)["total"] / dense


class MadeUpTrial:
    """Counts layers evaluated as Trial does."""

    size_bytes = 1
    n_runs = 0

    def __init__(self, model: MadeUpModel) -> None:
        self.model, self.kept = model, None

    def run(self, plan: Plan, *, keep: bool = False) -> int:
        MadeUpTrial.n_runs += 1
        self.last = self.model.logits(plan)
        return self.model.shape.n_layer

    def logits(self, positions: Any) -> Any:
        return self.last[positions]

    def close(self) -> None:
        pass


class Clock:
    """Every look takes a second."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        self.now += 0.5
        return self.now


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A measurement takes half a second: decisions that depend on time are the same on any machine."""
    monkeypatch.setattr(meter_module, "time", Clock())


def make_meter(model: MadeUpModel, folder: Path | None = None) -> Meter:
    sample = Sample(model.tokens, POSITIONS, np.array([90, 92]), (slice(0, 1), slice(1, 2)))
    dense = Plan.dense(model.shape.n_layer, model.shape.n_head)
    dense.n_sink, dense.n_recent = 2, 6
    return Meter([sample], lambda tokens: MadeUpTrial(model), dense, CostStore(folder, {"model": "made up"}))  # type: ignore[arg-type,return-value]


def find(model: MadeUpModel, goal: Goal, time_s: float = 1e4, folder: Path | None = None, keep: str = "") -> Found:
    limits = Limits.of(model.shape, keep_layers=keep)
    saving: Saving = model.saving
    with make_meter(model, folder) as meter:
        return search(Ground(meter, model.matcher, saving, limits, goal, time_s, lambda line: None))


def best_cost(model: MadeUpModel, save: float, kinds_of_group: tuple[int, ...]) -> float:
    """The least cost of all assignments that save enough, each of them measured."""
    shape = model.shape
    best = np.inf
    with make_meter(model) as meter:
        for flat in itertools.product(kinds_of_group, repeat=shape.n_layer * shape.n_head_kv):
            kinds = np.array(flat, np.int8).reshape(shape.n_layer, shape.n_head_kv)
            plan = model.matcher.plan(kinds)
            if plan is not None and model.saving(plan) >= save:
                best = min(best, meter.measure(plan).total)
    return best


WIDE = Budget(max_kl=10.0, max_ppl_increase=10.0, max_recall_drop=1.0)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_comes_near_the_best_of_all_plans(seed: int) -> None:
    model = MadeUpModel(Shape(3, 4, 2), seed)
    for save, share_only, kinds in ((0.25, True, (OWNER, FOLLOWER)), (0.55, False, (OWNER, FOLLOWER, LOCAL))):
        found = find(model, Goal(save, WIDE, share_only))
        assert found.step.saving >= save
        assert found.reason == "the saving asked for is reached"
        assert found.step.cost.total <= 1.1 * best_cost(model, save, kinds)
        if share_only:
            assert (found.step.kinds != LOCAL).all()


def test_it_sees_changes_that_are_cheap_alone_and_dear_together() -> None:
    model = MadeUpModel(Shape(4, 2, 2), 3)
    model.sizes[:] = 0.06
    # Two groups do the same: together they cost four times what one does. All others are independent.
    model.patterns[1, 0] = model.patterns[2, 1]
    model.sizes[1, 0] = model.sizes[2, 1] = 0.055
    found = find(model, Goal(0.5, WIDE))
    assert found.step.cost.total <= 1.05 * best_cost(model, 0.5, (OWNER, LOCAL))
    # Opposite ones cancel: the plan has both or neither.
    model.patterns[1, 0] = -model.patterns[2, 1]
    found = find(model, Goal(0.5, WIDE))
    assert found.step.kinds[1, 0] == found.step.kinds[2, 1] == LOCAL


def test_it_stops_at_the_budget_and_spares_what_recall_needs() -> None:
    model = MadeUpModel(Shape(4, 4, 2), 4)
    model.sizes[:] = 0.045
    model.sizes[2, 1] = 0.0
    # Nothing on text, everything on the answers: what text alone would give up first.
    model.patterns[2, 1] = 0.0
    model.patterns[2, 1, 90:] = 50.0 * np.random.default_rng(1).normal(size=(6, N_VOCAB))
    model.sizes[2, 1] = 1.0
    found = find(model, Goal(None, Budget(max_kl=0.004)))
    assert found.reason == "every further group costs more than allowed"
    assert 0.0 < found.step.cost.kl_text <= 0.004
    assert found.step.kinds[2, 1] == OWNER
    assert found.step.cost.recalled == 1.0
    wider = find(model, Goal(None, Budget(max_kl=0.008)))
    assert wider.step.saving > found.step.saving
    savings = [step.saving for step in found.path]
    assert savings == sorted(savings)


def test_limits_are_kept() -> None:
    model = MadeUpModel(Shape(4, 4, 2), 5)
    found = find(model, Goal(0.4, WIDE), keep="1")
    assert (found.step.kinds[1] == OWNER).all()
    assert found.step.saving >= 0.4


def test_mass_biases_are_kept_only_where_the_cost_falls() -> None:
    for helps in (True, False):
        model = MadeUpModel(Shape(3, 2, 2), 6)
        logits = model.logits

        def with_bias(plan: Plan, logits: Any = logits, model: Any = model, helps: bool = helps) -> Any:
            if plan.mass_bias is None or not plan.mass_bias.any():
                return logits(plan)
            factor = 0.8 if helps else 1.2
            return model.base + factor * (logits(plan) - model.base)

        model.logits = with_bias  # type: ignore[method-assign]
        found = find(model, Goal(0.2, WIDE, share_only=True))
        assert (found.step.plan.mass_bias is not None) == helps


# ---- time and resuming


def test_a_short_time_gives_the_best_plan_so_far() -> None:
    model = MadeUpModel(Shape(6, 8, 4), 7)
    long = find(model, Goal(0.7, WIDE))
    n_before = MadeUpTrial.n_runs
    # 48 changes of half a second each do not fit into 30 seconds: whole layers are measured, then halves.
    short = find(model, Goal(0.7, WIDE), time_s=30.0)
    assert MadeUpTrial.n_runs - n_before <= 70
    assert short.step.saving > 0.0
    assert short.step.cost.total <= 3.0 * long.step.cost.total
    hasty = find(model, Goal(0.7, WIDE), time_s=0.4)
    assert hasty.reason == "the time is up"
    assert hasty.step.saving == 0.0


def test_an_interrupted_search_goes_on_where_it_was(tmp_path: Path) -> None:
    model = MadeUpModel(Shape(4, 4, 2), 8)
    whole = find(model, Goal(0.5, WIDE))
    run, n_left = MadeUpTrial.run, [20]

    def interrupted(self: MadeUpTrial, plan: Plan, *, keep: bool = False) -> int:
        n_left[0] -= 1
        if n_left[0] == 0:
            raise KeyboardInterrupt
        return run(self, plan, keep=keep)

    MadeUpTrial.run = interrupted  # type: ignore[method-assign]
    try:
        with pytest.raises(KeyboardInterrupt):
            find(model, Goal(0.5, WIDE), folder=tmp_path)
        n_left[0] = -1
        n_stored = len(CostStore(tmp_path, {"model": "made up"}))
        assert n_stored > 5
        resumed = find(model, Goal(0.5, WIDE), folder=tmp_path)
        n_runs = -1 - n_left[0]
        n_left[0] = -1
        again = find(model, Goal(0.5, WIDE), folder=tmp_path)
        assert n_left[0] == -1, "everything was known: nothing is run"
    finally:
        MadeUpTrial.run = run  # type: ignore[method-assign]
    assert resumed.step.plan == whole.step.plan == again.step.plan
    assert n_runs > 0


def test_a_state_of_something_else_or_a_damaged_one(tmp_path: Path) -> None:
    model = MadeUpModel(Shape(3, 2, 2), 9)
    find(model, Goal(0.2, WIDE), folder=tmp_path)
    costs = tmp_path / "costs.bin"
    n = len(CostStore(tmp_path, {"model": "made up"}))
    costs.write_bytes(costs.read_bytes()[:-7])  # cut off while the last record was written
    assert len(CostStore(tmp_path, {"model": "made up"})) == n - 1
    with pytest.raises(PysaError, match=r"measured with other settings: model: expected 'other', got 'made up'"):
        CostStore(tmp_path, {"model": "other"})
    (tmp_path / "settings.json").write_text("[")
    with pytest.raises(PysaError, match=r"settings\.json: damaged"):
        CostStore(tmp_path, {"model": "made up"})


def test_a_plan_is_named_by_what_it_computes() -> None:
    plan = Plan.pod_blocks(4, 2, 2, 4, 16)
    same = Plan.from_json({**plan.to_json(), "method": "other", "calibration": {"saving": 0.1}})
    same.mass_bias = np.zeros((4, 2), np.float32)
    assert plan_digest(same) == plan_digest(plan)
    for name, value in (("n_recent", 17), ("n_sink", 5), ("skip_gate", 0.5), ("enabled", False)):
        assert plan_digest(Plan.from_json({**plan.to_json(), name: value})) != plan_digest(plan)
    same.mass_bias[3, 1] = 0.5
    assert plan_digest(same) != plan_digest(plan)
