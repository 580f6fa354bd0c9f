"""Plans from hand-made measurements with known answers: PoD's blocks, SA's spans, limits, sources, output changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pysa import Plan
from pysa.errors import ArgumentError
from pysa.planning.strategies.bias import BIASES, best_biases
from pysa.planning.strategies.cost import Baseline, Cost, Sample
from pysa.planning.strategies.groups import FOLLOWER, LOCAL, OWNER, Shape, group_kinds
from pysa.planning.strategies.limits import Limits
from pysa.planning.strategies.matching import Matcher
from pysa.planning.strategies.pod import pod_for_saving, pod_plan
from pysa.planning.strategies.proxy import OutputTable, output_table
from pysa.planning.strategies.sa import sa_plan, spans_by_count, spans_by_threshold
from pysa.planning.strategies.streaming import streaming_plan

SHAPE = Shape(n_layer=5, n_head=6, n_head_kv=3)


def similarity_of(of_heads: list[np.ndarray]) -> np.ndarray:
    """One matrix of all heads from a (n_layer, n_layer) matrix per head; other pairs of heads are unlike."""
    n_head, n_layer = len(of_heads), len(of_heads[0])
    whole = np.zeros((n_layer * n_head, n_layer * n_head))
    for head, matrix in enumerate(of_heads):
        whole[head::n_head, head::n_head] = matrix
    return whole


def by_distance(n_layer: int, near: float, step: float) -> np.ndarray:
    """Layers that are `near` at distance 1 and `step` less at each further one."""
    distance = abs(np.subtract.outer(np.arange(n_layer), np.arange(n_layer)))
    return np.where(distance == 0, 1.0, near - step * (distance - 1))


def saves(plan: Plan, n: int = 4096) -> float:
    """By the formula of docs/format.md for rows of one size."""
    dense = Plan.dense(plan.n_layer, plan.n_head).cache_bytes(n, 3, 64, 64)["total"]
    return 1.0 - plan.cache_bytes(n, 3, 64, 64)["total"] / dense


# ---- PoD


def test_pod_blocks_end_where_similarity_within_them_falls_below_the_threshold() -> None:
    # Pairs at distance 1, 2, 3: 0.8, 0.6, 0.4. Blocks of 2, 3, 4 layers: means 0.8, 0.733, 0.667; minima 0.8, 0.6, 0.4.
    matrix = by_distance(5, 0.8, 0.2)
    limits = Limits.none(Shape(5, 1, 1))
    for threshold, within, first_layers in (
        (0.9, "mean", [0, 1, 2, 3, 4]),
        (0.75, "mean", [0, 0, 2, 2, 4]),
        (0.7, "mean", [0, 0, 0, 3, 3]),
        (0.66, "mean", [0, 0, 0, 0, 4]),
        (0.5, "min", [0, 0, 0, 3, 3]),
        (0.4, "min", [0, 0, 0, 0, 4]),
    ):
        plan = pod_plan(matrix, limits, 4, 16, threshold, within)  # type: ignore[arg-type]
        assert plan.score_layer[:, 0].tolist() == first_layers, (threshold, within)
        assert (plan.score_head == 0).all()


def test_pod_decides_head_by_head_and_stops_at_heads_that_may_not_change() -> None:
    like, unlike = by_distance(5, 0.9, 0.0), by_distance(5, 0.1, 0.0)
    similarity = similarity_of([like, unlike, like, like, unlike, like])
    plan = pod_plan(similarity, Limits.of(SHAPE, keep_heads="2:3"), 4, 16)
    assert plan.score_layer[:, 0].tolist() == [0, 0, 0, 0, 0]
    assert plan.score_layer[:, 1].tolist() == [0, 1, 2, 3, 4]
    assert plan.score_layer[:, 3].tolist() == [0, 0, 2, 2, 2]
    assert plan.score_head.tolist() == [[0, 1, 2, 3, 4, 5]] * 5
    plan.validate(3, 5, 6)
    # Groups 0 and 2 have an owner in every layer; of group 1 layers 1, 3 and 4 follow: keys of 3 of 15 KV heads go.
    assert saves(plan) == pytest.approx(0.5 * 3 / 15 * (4096 - 20) / 4096)


def test_pod_takes_the_highest_threshold_that_saves_enough() -> None:
    # Head h's layers are all alike at 0.9 - h / 10, so a threshold lets the first heads follow; two make a group.
    similarity = similarity_of([by_distance(5, 0.9 - h / 10, 0.0) for h in range(6)])
    for target, n_groups, least in ((0.1, 1, 0.8), (0.14, 2, 0.6), (0.3, 3, 0.4)):
        plan, threshold = pod_for_saving(similarity, Limits.none(SHAPE), 4, 16, saves, target)
        assert saves(plan) == pytest.approx(0.5 * 4 * n_groups / 15 * (4096 - 20) / 4096)
        assert saves(plan) >= target
        assert threshold == pytest.approx(least, abs=1e-6)
    with pytest.raises(ArgumentError, match=r"--save: not to be had: expected at most 0\.398, .* got 0\.5"):
        pod_for_saving(similarity, Limits.none(SHAPE), 4, 16, saves, 0.5)


# ---- SA and StreamingLLM


def test_sa_spans_follow_the_layer_they_resemble() -> None:
    cosine = np.full((6, 6), 0.2)
    for a, b, value in ((1, 2, 0.95), (1, 3, 0.9), (2, 3, 0.99), (4, 5, 0.7)):
        cosine[a, b] = cosine[b, a] = value
    limits = Limits.none(Shape(6, 2, 1))
    assert spans_by_threshold(cosine, limits, 0.92) == [(2, 2)]
    assert spans_by_threshold(cosine, limits, 0.9) == [(2, 3)]
    assert spans_by_threshold(cosine, limits, 0.6) == [(2, 3), (5, 5)]
    assert spans_by_threshold(cosine, Limits.of(Shape(6, 2, 1), keep_heads="2:1"), 0.6) == [(3, 3), (5, 5)]
    assert spans_by_count(cosine, limits, 2) == ([(2, 3)], 0.9)
    assert spans_by_count(cosine, limits, 3) == ([(2, 3), (5, 5)], 0.7)
    with pytest.raises(ArgumentError, match=r"--n-layers: expected 1\.\.5 layers that may follow, got 6"):
        spans_by_count(cosine, limits, 6)
    plan = sa_plan(Shape(6, 2, 1), [(2, 3), (5, 5)])
    assert plan.score_layer[:, 0].tolist() == [0, 1, 1, 1, 4, 4]
    assert (plan.n_sink, plan.n_recent, plan.method) == (0, 0, "sa")
    windowed = sa_plan(Shape(6, 2, 1), [(2, 3)], 4, 16)
    assert (windowed.n_sink, windowed.n_recent, windowed.method) == (4, 16, "sa")


def test_streaming_leaves_kept_heads_alone() -> None:
    plan = streaming_plan(Limits.of(SHAPE, keep_layers="0", keep_heads="4:2-3"), 4, 16)
    plan.validate(3, 5, 6)
    kinds = group_kinds(plan, 3)
    assert kinds.tolist() == [[OWNER] * 3, *[[LOCAL] * 3] * 3, [LOCAL, OWNER, LOCAL]]


# ---- limits


def test_limits_by_layers_and_heads() -> None:
    free = Limits.of(SHAPE, only_layers="1-3", keep_heads="1:0,3,2-3:5").free
    expected = np.zeros((5, 6), dtype=bool)
    expected[1:4] = True
    expected[1, [0, 3]] = expected[2:4, 5] = False
    assert (free == expected).all()
    assert Limits.of(SHAPE, only_heads="0-1:2-3").groups().tolist() == [[False, True, False]] * 2 + [[False] * 3] * 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"only_layers": "x"}, "--only-layers: expected numbers and ranges as 0,4-6, got 'x'"),
        ({"keep_layers": "3-9"}, "--keep-layers: expected a range within 0-4, got '3-9'"),
        ({"only_layers": "3-2"}, "--only-layers: expected a range within 0-4, got '3-2'"),
        ({"keep_heads": "2"}, "--keep-heads: expected layers and their heads as 11:2-3, got '2'"),
        ({"only_heads": "1:6"}, "--only-heads: expected a range within 0-5, got '6'"),
        ({"keep_layers": "0-4"}, "they leave no head that may change"),
    ],
)
def test_limits_that_cannot_be(options: dict[str, str], message: str) -> None:
    with pytest.raises(ArgumentError) as error:
        Limits.of(SHAPE, **options)
    assert message in str(error.value)


# ---- every plan is valid

matrices = st.integers(0, 2**32 - 1).map(lambda seed: np.random.default_rng(seed).uniform(0, 1, (30, 30)))
masks = st.integers(0, 2**30 - 1).map(lambda bits: np.array([bits >> i & 1 for i in range(30)], bool).reshape(5, 6))


@settings(max_examples=60, deadline=None)
@given(matrices, masks, st.floats(0.0, 1.0))
def test_every_plan_is_valid_and_keeps_to_its_limits(matrix: np.ndarray, free: np.ndarray, threshold: float) -> None:
    similarity = (matrix + matrix.T) / 2
    limits = Limits(SHAPE, free)
    kinds = np.random.default_rng(int(threshold * 1e6)).integers(0, 3, (5, 3)).astype(np.int8)
    kinds[~limits.groups()] = OWNER
    errors = [similarity[il * 6 : il * 6 + 6, : il * 6].astype(np.float32) for il in range(5)]
    matcher = Matcher(SHAPE, 4, 16, errors, np.ones((5, 6), np.float32), errors)
    plans = [
        pod_plan(similarity, limits, 4, 16, threshold),
        sa_plan(SHAPE, spans_by_threshold(similarity[:5, :5], limits, threshold)),
        streaming_plan(limits, 4, 16),
        matcher.plan(kinds, np.ones((5, 3), bool)),
    ]
    for plan in plans:
        if plan is not None:
            plan.validate(3, 5, 6)
            assert (plan.kinds()[~free] == "owner").all()


# ---- whom a head follows


def test_followers_take_the_owner_that_changes_them_least() -> None:
    errors = [np.zeros((6, 0), np.float32)] + [np.full((6, il * 6), 9.0, np.float32) for il in range(1, 5)]
    errors[3][4, [2, 7, 12]] = [0.1, 0.2, 0.3]  # layer 0 head 2, layer 1 head 1, layer 2 head 0
    errors[3][5, 13] = 0.5
    biases = [np.full_like(e, 0.25) for e in errors]
    biases[3][4, 7] = -1.0
    local = np.full((5, 6), 2.0, np.float32)
    matcher = Matcher(SHAPE, 4, 16, errors, local, biases)
    kinds = SHAPE.owners()
    kinds[3, 2] = FOLLOWER
    kinds[0, 1] = LOCAL  # heads 2 and 3 of layer 0
    plan = matcher.plan(kinds)
    assert plan is not None
    assert (plan.score_layer[3].tolist(), plan.score_head[3].tolist()) == ([3, 3, 3, 3, 1, 2], [0, 1, 2, 3, 1, 1])
    assert plan.mass_bias is not None
    assert plan.mass_bias[3].tolist() == [0, 0, 0, 0, -1.0, 0.25]
    assert matcher.group_errors(kinds)[3].tolist() == pytest.approx([0, 0, 0.7])
    assert matcher.group_errors(kinds)[0].tolist() == [0, 4.0, 0]
    without = matcher.plan(kinds, kinds == OWNER)
    assert without is not None
    assert without.mass_bias is None
    kinds[:3] = LOCAL
    assert matcher.plan(kinds) is None


class StillTrial:
    """Queries, keys and values of a text without a model."""

    def __init__(self, shape: Shape, n_tokens: int, n_queries: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.n_tokens, self.n_queries, self.kq_scale = n_tokens, n_queries, 0.3
        self.q = rng.normal(size=(shape.n_layer, n_queries, shape.n_head, 7)).astype(np.float32)
        self.k = rng.normal(size=(shape.n_layer, shape.n_head_kv, n_tokens, 7)).astype(np.float32)
        self.v = rng.normal(size=(shape.n_layer, shape.n_head_kv, n_tokens, 5)).astype(np.float32)

    def queries(self, layer: int) -> Any:
        return self.q[layer]

    def keys(self, layer: int) -> Any:
        return self.k[layer]

    def values(self, layer: int) -> Any:
        return self.v[layer]

    def output(self, shape: Shape, il: int, head: int, row: int, source: tuple[int, int] | None, bias: float) -> Any:
        """One softmax over the window's own scores and the distance's, docs/format.md; float64. Window 3 + 9."""
        t = self.n_tokens - self.n_queries + row
        j = np.arange(t + 1)
        near = (j < 3) | (j > t - 9)

        def scores(layer: int, h: int) -> Any:
            key = self.k[layer, h // shape.n_gqa, : t + 1].astype(np.float64)
            return self.kq_scale * key @ self.q[layer, row, h].astype(np.float64)

        own = scores(il, head)
        far = np.full(len(j), -np.inf) if source is None else scores(*source) + bias
        s = np.where(near, own, far)
        w = np.exp(s - s.max())
        return (w / w.sum()) @ self.v[il, head // shape.n_gqa, : t + 1].astype(np.float64)


@pytest.fixture(scope="module")
def still() -> tuple[Shape, StillTrial, OutputTable]:
    shape = Shape(3, 4, 2)
    trial = StillTrial(shape, 41, 6, seed=5)
    is_recall = np.array([False, False, True, True])
    table = output_table(trial, shape, 3, 9, np.array([0, 2, 3, 5]), is_recall)  # type: ignore[arg-type]
    return shape, trial, table


def relative_change(shape: Shape, trial: StillTrial, il: int, head: int, source: Any, bias: float = 0.0) -> float:
    """Mean squared change of a head's output by that of the layer's outputs; text rows 0, 2 and recall rows 3, 5."""
    total = 0.0
    for rows in ((0, 2), (3, 5)):
        dense = {(h, r): trial.output(shape, il, h, r, (il, h), 0.0) for h in range(shape.n_head) for r in rows}
        size = sum((out**2).sum() for out in dense.values())
        change = sum(((trial.output(shape, il, head, r, source, bias) - dense[head, r]) ** 2).sum() for r in rows)
        total += change / size
    return float(total)


def test_output_changes_equal_attention_written_out(still: tuple[Shape, StillTrial, OutputTable]) -> None:
    shape, trial, table = still
    for il, head in ((0, 1), (1, 3), (2, 0)):
        expected = relative_change(shape, trial, il, head, None)
        assert table.local_error()[il, head] == pytest.approx(expected, rel=1e-4)
    for il, head, a, g, bias in ((1, 0, 0, 3, 0.0), (2, 3, 1, 0, 0.0), (2, 1, 0, 2, -0.75)):
        expected = relative_change(shape, trial, il, head, (a, g), bias)
        assert table.follower_error(il, bias)[head, a * 4 + g] == pytest.approx(expected, rel=1e-4)


def test_the_mass_bias_is_the_best_of_its_grid(still: tuple[Shape, StillTrial, OutputTable]) -> None:
    shape, trial, table = still
    for il, head, a, g in ((1, 2, 0, 0), (2, 0, 1, 3)):
        changes = [relative_change(shape, trial, il, head, (a, g), float(b)) for b in BIASES]
        bias, left = best_biases(table, il)
        assert bias[head, a * 4 + g] == BIASES[int(np.argmin(changes))]
        assert left[head, a * 4 + g] == pytest.approx(min(changes), rel=1e-3)


# ---- cost


def test_cost_equals_kl_in_float64() -> None:
    rng = np.random.default_rng(2)
    tokens = rng.integers(0, 50, 40).astype(np.int32)
    sample = Sample(tokens, np.arange(10, 30), np.array([33, 34, 36]), (slice(0, 2), slice(2, 3)))
    dense = rng.normal(size=(23, 50)).astype(np.float32) * 2
    dense[[20, 21, 22], tokens[[34, 35, 37]]] += 20.0
    shared = dense + 0.05 * rng.normal(size=dense.shape).astype(np.float32)
    shared[22] = dense[22][::-1]  # the second answer is lost
    baseline = Baseline(sample, dense)
    assert baseline.right.tolist() == [True, True]
    cost = baseline.compare(shared)

    def log_probs(logits: np.ndarray) -> np.ndarray:
        x = logits.astype(np.float64)
        return x - np.log(np.exp(x).sum(1, keepdims=True))

    p, q = log_probs(dense), log_probs(shared)
    kl = (np.exp(p) * (p - q)).sum(1)
    assert cost.kl_text == pytest.approx(kl[:20].sum(), rel=1e-4)
    assert cost.kl_recall == pytest.approx(kl[20:].sum(), rel=1e-4)
    target = tokens[sample.text + 1]
    assert cost.nll == pytest.approx((p - q)[np.arange(20), target].sum(), rel=1e-3)
    assert cost.n_right == 1
    mean = Cost.of([cost])
    assert mean.total == pytest.approx(kl[:20].mean() + kl[20:].mean(), rel=1e-4)
    assert float(mean.features @ mean.features) / 2 == pytest.approx(mean.total, rel=1e-2)


def test_features_of_two_changes_add_up() -> None:
    """What lets interactions be predicted: |a + b|^2 / 2 is the KL divergence of both changes together."""
    rng = np.random.default_rng(3)
    tokens = rng.integers(0, 300, 260).astype(np.int32)
    sample = Sample(tokens, np.arange(20, 250), np.array([255]), (slice(0, 1),))
    dense = rng.normal(size=(231, 300)).astype(np.float32) * 2
    a, b = (0.1 * rng.normal(size=dense.shape).astype(np.float32) for _ in range(2))
    baseline = Baseline(sample, dense)
    for first, second, ratio in ((a, b, 2.0), (a, a, 4.0), (a, -a, 0.0)):
        features = [Cost.of([baseline.compare(dense + x)]).features for x in (first, second)]
        both = Cost.of([baseline.compare(dense + first + second)])
        predicted = float(((features[0] + features[1]) ** 2).sum()) / 2
        alone = Cost.of([baseline.compare(dense + a)]).total
        assert predicted == pytest.approx(ratio * alone, abs=0.2 * alone)
        assert both.total == pytest.approx(ratio * alone, abs=0.2 * alone)
