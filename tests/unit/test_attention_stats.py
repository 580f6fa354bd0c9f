"""_native.AttentionStats equals the definitions in float64; neither threads nor breaks change its sums."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from helpers.attention import Sums

from pysa import _native
from pysa.errors import ArgumentError, DeviceError

Layers = list[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]
N_LAYER, N_HEAD, N_HEAD_KV = 3, 10, 2
KQ_SCALE = 0.3
# Scores in float32 are off by 1e-6, entropies by 2e-6 (cpu_kernels.h).
LIMIT = 1e-5


def layers(rng: np.random.Generator, n_tokens: int, n_queries: int, n_embd_head: int, spread: float = 2.0) -> Layers:
    return [
        (
            (spread * rng.normal(size=(n_queries, N_HEAD, n_embd_head))).astype(np.float32),
            rng.normal(size=(N_HEAD_KV, n_tokens, n_embd_head)).astype(np.float32),
        )
        for _ in range(N_LAYER)
    ]


def make(n_sink: int = 3, n_recent: int = 7, n_threads: int = 2) -> _native.AttentionStats:
    return _native.AttentionStats(N_LAYER, N_HEAD, N_HEAD_KV, n_sink, n_recent, n_threads)


def add(stats: _native.AttentionStats, sample: Layers, kq_scale: float = KQ_SCALE) -> None:
    stats.begin_sample(sample[0][1].shape[1], sample[0][0].shape[0])
    for queries, keys in sample:
        stats.add_layer(queries, keys, kq_scale)
    stats.end_sample()


def assert_same(got: dict[str, Any], expected: Sums) -> None:
    assert (got["n_queries"], got["n_distant"]) == (expected.n_queries, expected.n_distant)
    np.testing.assert_allclose(got["similarity"] / got["n_distant"], np.triu(expected.similarity) / expected.n_distant,
                               rtol=0, atol=LIMIT)  # fmt: skip
    np.testing.assert_allclose(got["layer_dots"], np.triu(expected.layer_dots), rtol=LIMIT)
    np.testing.assert_allclose(got["mass"] / got["n_queries"], expected.mass / expected.n_queries, rtol=0, atol=LIMIT)


@pytest.mark.parametrize(
    ("n_tokens", "n_queries", "n_embd_head", "n_sink", "n_recent", "spread"),
    [
        (37, 5, 24, 3, 7, 2.0),
        (291, 4, 33, 16, 240, 2.0),
        (301, 2, 64, 5, 20, 8.0),  # peaked
        (13, 9, 8, 3, 6, 2.0),  # the first queries have no distance, the very first fewer tokens than sinks and window
        (41, 3, 16, 0, 0, 2.0),  # SA: all is distant
        (600, 1, 40, 0, 1, 0.1),  # nearly flat
    ],
)
def test_equals_the_definitions(
    n_tokens: int, n_queries: int, n_embd_head: int, n_sink: int, n_recent: int, spread: float
) -> None:
    rng = np.random.default_rng(7)
    stats, expected = make(n_sink, n_recent), Sums(n_sink, n_recent)
    for _ in range(2):
        sample = layers(rng, n_tokens, n_queries, n_embd_head, spread)
        add(stats, sample)
        expected.add(sample, KQ_SCALE)
    assert_same(stats.sums(), expected)


def test_threads_change_no_bit() -> None:
    sample = layers(np.random.default_rng(8), 150, 5, 17)
    one, three = make(n_threads=1), make(n_threads=3)
    add(one, sample)
    add(three, sample)
    a, b = one.sums(), three.sums()
    assert all(np.array_equal(a[name], b[name]) for name in a)


def test_queries_in_two_parts_change_no_bit() -> None:
    """The first queries are the last ones of a shorter text: so calibrate() bounds the memory."""
    sample = layers(np.random.default_rng(9), 60, 5, 20)
    whole, parts = make(), make()
    add(whole, sample)
    add(parts, [(queries[:2], keys[:, :57]) for queries, keys in sample])
    add(parts, [(queries[2:], keys) for queries, keys in sample])
    a, b = whole.sums(), parts.sums()
    assert a["n_queries"] == b["n_queries"] == 5
    np.testing.assert_array_equal(a["similarity"], b["similarity"])
    np.testing.assert_array_equal(a["mass"], b["mass"])
    np.testing.assert_array_equal(a["layer_dots"], b["layer_dots"])


def test_sums_are_taken_up_again() -> None:
    rng = np.random.default_rng(10)
    first, second = layers(rng, 50, 3, 20), layers(rng, 50, 3, 20)
    whole, before, after = make(), make(), make()
    add(whole, first)
    add(whole, second)
    add(before, first)
    after.set_sums(**before.sums())
    add(after, second)
    a, b = whole.sums(), after.sums()
    assert all(np.array_equal(a[name], b[name]) for name in a)


def test_extremes() -> None:
    """Keys are unit vectors, so that a query is its own row of scores."""
    n, n_sink, n_recent = 23, 2, 5
    stats = _native.AttentionStats(1, 5, 1, n_sink, n_recent, 2)
    queries = np.full((1, 5, n), -200.0, np.float32)
    queries[0, :3, 9] = 0.0  # heads 0 to 2 see position 9
    queries[0, 2, -1] = 300.0  # but head 2 hardly, beside its window: its distance alone is the same
    queries[0, 3, 10] = 0.0
    queries[0, 4, n_sink : n - n_recent] = 0.0  # evenly over the distance's 16 positions
    stats.begin_sample(n, 1)
    stats.add_layer(queries, np.eye(n, dtype=np.float32)[None], 1.0)
    stats.end_sample()
    similarity, mass = stats.sums()["similarity"], stats.sums()["mass"][0]
    np.testing.assert_array_equal(np.diag(similarity), 1.0)
    assert (similarity[0, 1], similarity[0, 2]) == (1.0, 1.0)
    assert similarity[0, 3] == pytest.approx(0.0, abs=LIMIT)
    # One-hot and even over 16, entropies 0 and 4; their mean is 17/32 and 15 times 1/32.
    mean_entropy = 17 / 32 * np.log2(32 / 17) + 15 / 32 * 5
    assert similarity[0, 4] == pytest.approx(1 - (mean_entropy - 2), abs=LIMIT)
    np.testing.assert_allclose(mass[[0, 2, 4]], [[0, 0, 1], [0, 1, 0], [0, 0, 1]], atol=1e-12)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("of_keys", [False, True])
def test_refuses_scores_that_are_no_numbers(value: float, of_keys: bool) -> None:
    stats, rng = make(), np.random.default_rng(11)
    sample = layers(rng, 30, 4, 20)
    add(stats, sample)
    before = stats.sums()
    bad = [(queries.copy(), keys.copy()) for queries, keys in sample]
    bad[1][of_keys].reshape(-1)[:6] = value
    with pytest.raises(ArgumentError, match="layer 1: a score is no number"):
        add(stats, bad, 10.0)
    with pytest.raises(ArgumentError, match="expected 3 layers before its end, got 0"):
        stats.end_sample()
    after = stats.sums()
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_refuses_shapes_and_orders_that_do_not_fit() -> None:
    stats = make()
    queries, keys = layers(np.random.default_rng(13), 30, 4, 20)[0]
    with pytest.raises(ArgumentError, match=r"queries: wrong shape: expected \(0, 10, any\)"):
        stats.add_layer(queries, keys, KQ_SCALE)
    stats.begin_sample(30, 4)
    for bad_queries, bad_keys in [
        (queries[:3], keys),
        (queries[:, :9], keys),
        (queries[..., 0], keys),
        (queries, keys[:, :29]),
        (queries, keys[:1]),
        (queries, keys[..., :19]),
        (queries, keys[0]),
    ]:
        with pytest.raises(ArgumentError, match="wrong shape: expected"):
            stats.add_layer(bad_queries, bad_keys, KQ_SCALE)
    with pytest.raises(ArgumentError, match="n_embd_head: out of range: expected 1"):
        stats.add_layer(queries[..., :0], keys[..., :0], KQ_SCALE)
    with pytest.raises(ArgumentError, match="expected 3 layers before its end, got 0"):
        stats.end_sample()
    for _ in range(N_LAYER):
        stats.add_layer(queries, keys, KQ_SCALE)
    with pytest.raises(ArgumentError, match="3 layers after it, got another"):
        stats.add_layer(queries, keys, KQ_SCALE)
    stats.end_sample()
    assert stats.sums()["n_queries"] == 4


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((0, 4, 2, 1, 1, 1), "n_layer"),
        ((2, 0, 2, 1, 1, 1), "n_head"),
        ((200, 200, 2, 1, 1, 1), "n_head"),
        ((2, 4, 3, 1, 1, 1), "n_head_kv"),
        ((2, 4, 0, 1, 1, 1), "n_head_kv"),
        ((2, 4, 2, -1, 1, 1), "n_sink"),
        ((2, 4, 2, 1, 2**31, 1), "n_recent"),
        ((2, 4, 2, 1, 1, 0), "n_threads"),
    ],
)
def test_refuses_sizes_out_of_range(arguments: tuple[int, ...], name: str) -> None:
    with pytest.raises(ArgumentError, match=f"^{name}: "):
        _native.AttentionStats(*arguments)


def test_refuses_samples_out_of_range() -> None:
    stats = make()
    for n_tokens, n_queries in [(0, 1), (5, 0), (5, 6), (2**31, 1)]:
        with pytest.raises(ArgumentError, match=r"^(n_tokens|n_queries): "):
            stats.begin_sample(n_tokens, n_queries)
    with pytest.raises(DeviceError, match="out of memory"):
        stats.begin_sample(2**31 - 1, 2**31 - 1)


def test_refuses_sums_that_do_not_fit() -> None:
    stats = make()
    sums = stats.sums()
    for name, value, message in [
        ("similarity", sums["similarity"][:-1], r"similarity: wrong shape: expected \(30, 30\)"),
        ("layer_dots", np.full((N_LAYER, N_LAYER), np.nan), "layer_dots: expected finite values"),
        ("mass", sums["mass"][..., 0], "mass: wrong shape"),
        ("n_queries", -1, "n_queries: out of range"),
        ("n_distant", 1, "n_distant: out of range"),
    ]:
        with pytest.raises(ArgumentError, match=message):
            stats.set_sums(**{**sums, name: value})
