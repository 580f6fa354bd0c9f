"""pysa.planning.calibration: equals the definitions on a model's own queries and keys; an interrupted run goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from helpers.attention import Sums

import pysa
from pysa.errors import ArgumentError, StateFileError
from pysa.planning import calibration
from pysa.planning.calibration import Calibration, calibrate
from pysa.planning.state import fingerprint
from pysa.planning.trial import Trial

N_SINK, N_RECENT, N_QUERIES, N_TOKENS = 3, 21, 5, 77
FIELDS = ("similarity", "layer_cosine", "mass")


@pytest.fixture(scope="module")
def model(dense_gguf: Path) -> Iterator[pysa.Model]:
    with pysa.Model(dense_gguf, n_threads=2) as opened:
        yield opened


@pytest.fixture(scope="module")
def samples(model: pysa.Model) -> list[npt.NDArray[np.int32]]:
    rng = np.random.default_rng(5)
    return [rng.integers(3, model.n_vocab, N_TOKENS).astype(np.int32) for _ in range(3)]


@pytest.fixture(scope="module")
def whole(model: pysa.Model, samples: list[Any]) -> Calibration:
    return calibrate(model, samples, N_SINK, N_RECENT, N_QUERIES, corpus_sha256="ab12")


def assert_equal(a: Calibration, b: Calibration) -> None:
    for name in Calibration.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


def test_equals_the_definitions(model: pysa.Model, samples: list[Any], whole: Calibration) -> None:
    expected = Sums(N_SINK, N_RECENT)
    for sample in samples:
        with Trial(model, sample, n_queries=N_QUERIES) as trial:
            trial.run(pysa.Plan.dense(model.n_layer, model.n_head))
            layers = [(trial.queries(il), trial.keys(il)) for il in range(model.n_layer)]
            expected.add(layers, trial.kq_scale)
    n = N_QUERIES * len(samples)
    norms = np.sqrt(np.diag(expected.layer_dots))
    assert (expected.n_queries, expected.n_distant) == (n, n)
    np.testing.assert_allclose(whole.similarity, expected.similarity / n, rtol=0, atol=1e-5)
    np.testing.assert_allclose(whole.layer_cosine, expected.layer_dots / np.outer(norms, norms), rtol=0, atol=1e-5)
    np.testing.assert_allclose(whole.mass, expected.mass / n, rtol=0, atol=1e-5)
    assert whole.similarity.shape == (model.n_layer * model.n_head,) * 2
    assert (whole.n_layer, whole.n_head) == (model.n_layer, model.n_head)
    counts = (whole.n_sink, whole.n_recent, whole.n_samples, whole.n_queries, whole.n_tokens, whole.corpus_sha256)
    assert counts == (N_SINK, N_RECENT, 3, N_QUERIES, N_TOKENS, "ab12")


def test_memory_does_not_decide(
    model: pysa.Model, samples: list[Any], whole: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two queries at once, then two, then one, give what five give."""
    monkeypatch.setattr(calibration, "WEIGHTS_BYTES", 2 * 4 * N_TOKENS * model.n_layer * model.n_head)
    assert_equal(calibrate(model, samples, N_SINK, N_RECENT, N_QUERIES, corpus_sha256="ab12"), whole)


def test_an_interrupted_run_goes_on(model: pysa.Model, samples: list[Any], whole: Calibration, tmp_path: Path) -> None:
    state = tmp_path / "state"
    seen: list[tuple[int, int]] = []

    def interrupt(n_done: int, n_all: int) -> None:
        seen.append((n_done, n_all))
        if n_done == 2:
            raise KeyboardInterrupt

    def run(progress: Any) -> Calibration:
        return calibrate(
            model, samples, N_SINK, N_RECENT, N_QUERIES, state=state, corpus_sha256="ab12", progress=progress
        )

    with pytest.raises(KeyboardInterrupt):
        run(interrupt)
    assert seen == [(0, 3), (1, 3), (2, 3)]
    seen.clear()
    assert_equal(run(lambda *n: seen.append(n)), whole)
    assert seen == [(2, 3), (3, 3)]
    seen.clear()
    assert_equal(run(lambda *n: seen.append(n)), whole)
    assert seen == [(3, 3)]
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_state_of_another_calibration_is_refused(
    model: pysa.Model, samples: list[Any], shared_gguf: Path, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    short = [sample[:40] for sample in samples[:2]]
    calibrate(model, short, N_SINK, N_RECENT, 2, state=state)
    before = state.read_bytes()
    other = [short[0], short[1][::-1].copy()]
    for arguments, name in [
        ((other, N_SINK, N_RECENT, 2), "samples"),
        ((short[:1], N_SINK, N_RECENT, 2), "n_samples: expected 1, got 2"),
        ((short, N_SINK, N_RECENT, 3), "n_queries: expected 3, got 2"),
        ((short, N_SINK + 1, N_RECENT, 2), "n_sink: expected 4, got 3"),
        ((short, N_SINK, N_RECENT - 1, 2), "n_recent: expected 20, got 21"),
    ]:
        with pytest.raises(StateFileError, match=f"of another calibration: {name}"):
            calibrate(model, *arguments, state=state)
    with (
        pysa.Model(shared_gguf, n_threads=2) as another,
        pytest.raises(StateFileError, match="of another calibration: model"),
    ):
        calibrate(another, short, N_SINK, N_RECENT, 2, state=state)
    assert state.read_bytes() == before


def test_damaged_files_are_refused(model: pysa.Model, samples: list[Any], whole: Calibration, tmp_path: Path) -> None:
    state, result = tmp_path / "state", tmp_path / "result.npz"
    one = [samples[0][:30]]
    calibrate(model, one, N_SINK, N_RECENT, 2, state=state)
    whole.save(result)
    rng = np.random.default_rng(6)
    for path in (state, result):

        def read(path: Path = path) -> Calibration:
            if path == state:
                return calibrate(model, one, N_SINK, N_RECENT, 2, state=state)
            return Calibration.load(path)

        sound = read()
        good = path.read_bytes()
        for bad in [b"", good[:-1], good[: len(good) // 2], b"no file of ours", result.read_bytes()[::-1]]:
            path.write_bytes(bad)
            with pytest.raises(StateFileError, match=path.name):
                read()
        # A zip's headers hold times and the like, which nobody misses: what is read must be sound.
        n_refused = 0
        for at in rng.integers(0, len(good), 60):
            path.write_bytes(good[:at] + bytes([good[at] ^ 0x40]) + good[at + 1 :])
            try:
                assert_equal(read(), sound)
            except StateFileError:
                n_refused += 1
        assert n_refused > 40
        path.write_bytes(good)
    with pytest.raises(StateFileError, match="expected a pysa calibration, got pysa unfinished calibration"):
        Calibration.load(state)
    with pytest.raises(StateFileError, match="expected a pysa unfinished calibration, got pysa calibration"):
        calibrate(model, one, N_SINK, N_RECENT, 2, state=result)
    with pytest.raises(StateFileError, match="cannot be read"):
        Calibration.load(tmp_path / "missing")
    with pytest.raises(StateFileError, match="cannot be written"):
        whole.save(tmp_path / "no folder" / "result")


def test_a_calibration_comes_back_from_its_file(whole: Calibration, tmp_path: Path) -> None:
    path = tmp_path / "m.calibration"
    whole.save(path)
    again = Calibration.load(path)
    assert_equal(again, whole)
    assert all(getattr(again, name).dtype == np.float32 for name in FIELDS)
    with np.load(path) as file:
        arrays = dict(file)
    for name, value, message in [
        ("version", np.array(2), "unknown version: expected 1, got 2"),
        ("mass", whole.mass[..., :2], r"mass: wrong shape: expected .*, got \(4, 6, 2\)"),
        ("similarity", whole.similarity[:3], "similarity: wrong shape"),
        ("layer_cosine", np.full_like(whole.layer_cosine, np.nan), "layer_cosine: expected finite values"),
        ("n_sink", np.array("3"), "n_sink: expected"),
        ("more", np.array(1), "wrong contents"),
    ]:
        np.savez(tmp_path / "bad.npz", **{**arrays, name: value})
        with pytest.raises(StateFileError, match=message):
            Calibration.load(tmp_path / "bad.npz")


def test_arguments_are_checked(model: pysa.Model, samples: list[Any]) -> None:
    for arguments, message in [
        (([], 3, 21, 5), "samples: none"),
        (([samples[0], samples[1][:-1]], 3, 21, 5), r"samples\[1\]: wrong length: expected 77 tokens"),
        ((samples, 3, 74, 5), "samples: too short: expected more than the window's 77 tokens"),
        ((samples, -1, 21, 5), "n_sink: out of range"),
        ((samples, 3, -1, 5), "n_recent: out of range"),
        ((samples, 3, 21, 0), "n_queries: out of range: expected 1..77, got 0"),
        ((samples, 3, 21, 78), "n_queries: out of range: expected 1..77, got 78"),
        (([[model.n_vocab] * 40], 3, 21, 5), r"samples\[0\]\[0\]: out of range"),
    ]:
        with pytest.raises(ArgumentError, match=message):
            calibrate(model, *arguments)


def test_fingerprints_tell_files_apart(tmp_path: Path) -> None:
    path = tmp_path / "file"
    prints = set()
    for content in [b"", b"a", b"b", b"ab", bytes(3_000_000), bytes(3_000_001), bytes(2_999_999) + b"x"]:
        path.write_bytes(content)
        assert fingerprint(path) == fingerprint(path)
        prints.add(fingerprint(path))
    assert len(prints) == 7
    with pytest.raises(StateFileError, match="cannot be read"):
        fingerprint(tmp_path / "missing")
