"""Perplexity, comparison, recall, needle: against float64 numpy, llama.cpp, greedy generation and the example model."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import pysa
from pysa.errors import ArgumentError, DeviceError
from pysa.plan import Plan
from pysa.planning import scoring
from pysa.planning.compare import compare, compare_plans
from pysa.planning.needle import needle
from pysa.planning.perplexity import chunks, perplexity
from pysa.planning.recall import recall
from pysa.planning.retrieval import Share, right_answers
from pysa.planning.scoring import Engine, Estimate
from pysa.planning.tasks import Answer, Document, Tasks
from pysa.planning.texts import Corpus, read_corpus, samples

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "tiny-llama-stdlib"
F32 = Engine("f32", "f32")
N_CTX = 75


@pytest.fixture(scope="module")
def shared_model(shared_gguf: Path) -> Iterator[pysa.Model]:
    """On one thread, which tiny models are quickest with."""
    with pysa.Model(shared_gguf, n_threads=1) as model:
        yield model


def corpus_of(n_tokens: int, seed: int = 0) -> Corpus:
    return Corpus(np.random.default_rng(seed).integers(3, 250, n_tokens).astype(np.int32), "abc", ("a.txt",))


def log_probabilities(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    x = logits.astype(np.float64)
    return x - np.logaddexp.reduce(x, axis=1, keepdims=True)


def second_half(model: pysa.Model, tokens: NDArray[np.int32], plan: Any) -> NDArray[np.float64]:
    """Log-probabilities after positions n/2 .. n - 2, from one evaluation of the whole text."""
    with model.session(len(tokens), "f32", "f32", plan=plan) as session:
        return log_probabilities(session.eval(tokens, logits="all")[len(tokens) // 2 : -1])


def loss(rows: NDArray[np.float64], tokens: NDArray[np.int32]) -> NDArray[np.float64]:
    targets = tokens[len(tokens) // 2 + 1 :]
    return np.array([-row[target] for row, target in zip(rows, targets, strict=True)])


def error_of(x: NDArray[np.float64]) -> float:
    """One standard error of the mean, as llama-perplexity writes it."""
    return math.sqrt(((x**2).mean() - x.mean() ** 2) / (len(x) - 1))


# -- perplexity ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vocab", ["llama", "gpt2"])
def test_chunks_are_those_of_llama_perplexity(tiny_gguf: Callable[..., Path], tmp_path: Path, vocab: str) -> None:
    path = tmp_path / "text"
    path.write_text("the thing and an end\nin the end <|im_end|> and on\n" * 3, encoding="utf-8")
    with pysa.Model(tiny_gguf("llama", vocab=vocab), n_threads=1) as model:
        found = chunks(model, read_corpus(model, [path]), 9)
        # Tokenised as a whole with the BOS before it, the last newline left out; then cut, BOS first in every chunk.
        whole = model.tokenize(path.read_text("utf-8").removesuffix("\n"), add_special=True, parse_special=False)
        first = [1] if vocab == "llama" else []
        expected = [[*first, *whole[i + len(first) : i + 9]] for i in range(0, len(whole) - 8, 9)]
        assert [chunk.tolist() for chunk in found] == expected
        assert len(chunks(model, read_corpus(model, [path]), 9, 2)) == 2
        with pytest.raises(ArgumentError, match=rf"text: too short: expected at least 999 tokens.*got {len(whole)};"):
            chunks(model, read_corpus(model, [path]), 999)


@pytest.mark.parametrize("plan", ["dense", None])
def test_perplexity_is_the_exponential_of_the_mean_loss(shared_model: pysa.Model, plan: str | None) -> None:
    texts = chunks(shared_model, corpus_of(4 * N_CTX), N_CTX)
    losses = [loss(second_half(shared_model, tokens, plan), tokens) for tokens in texts]
    resolved = shared_model.resolve_plan(plan)
    assert resolved is not None
    found = perplexity(shared_model, texts, resolved, engine=F32)
    x = np.concatenate(losses)
    assert (found.n_ctx, found.n_chunks, found.n_tokens) == (75, 4, 4 * 37)
    assert found.value == pytest.approx(math.exp(x.mean()), rel=1e-6)
    assert found.error == pytest.approx(math.exp(x.mean()) * error_of(x), rel=1e-5)
    expected = [math.exp(np.concatenate(losses[: i + 1]).mean()) for i in range(4)]
    assert found.running == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("vocab", ["llama", "gpt2"])
def test_dense_perplexity_equals_llama_cpp(tiny_gguf: Callable[..., Path], vocab: str) -> None:
    """The same formula on llama_decode's logits, to six digits."""
    oracle = pytest.importorskip("pysa._oracle", reason="built with the CMake option PYSA_TESTS")
    path = tiny_gguf("llama", n_layer=4, vocab=vocab)
    context = oracle.Oracle(str(path), n_ctx=256, n_threads=1, type_k="f32", type_v="f32", flash_attn="off")
    with pysa.Model(path, n_threads=1) as model:
        texts = chunks(model, corpus_of(400, seed=1), 128)
        found = perplexity(model, texts, Plan.dense(4, 6), engine=F32)
    losses = []
    for tokens in texts:
        context.reset()
        rows = log_probabilities(np.asarray(context.eval(tokens.tolist(), "all"))[64:-1])
        losses.append(loss(rows, tokens))
    x = np.concatenate(losses)
    assert len(losses) == 3
    assert found.value == pytest.approx(math.exp(x.mean()), rel=1e-6)
    assert found.error == pytest.approx(math.exp(x.mean()) * error_of(x), rel=1e-5)


def test_logits_are_held_a_few_rows_at_a_time(shared_model: pysa.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = chunks(shared_model, corpus_of(2 * N_CTX), N_CTX)
    whole = perplexity(shared_model, texts, Plan.dense(4, 6), engine=F32)
    sizes: list[int] = []
    one_eval = pysa.Session.eval

    def watched(self: pysa.Session, tokens: Any, logits: Any = "last") -> Any:
        out = one_eval(self, tokens, logits)
        sizes.append(len(out))
        return out

    monkeypatch.setattr(scoring, "LOGITS_BYTES", 10 * 4 * shared_model.n_vocab)
    monkeypatch.setattr(scoring, "ROWS_BYTES", 3 * 8 * shared_model.n_vocab)
    monkeypatch.setattr(pysa.Session, "eval", watched)
    parts = perplexity(shared_model, texts, Plan.dense(4, 6), engine=F32)
    assert sizes == [0, 10, 10, 10, 7] * 2
    assert parts.value == pytest.approx(whole.value, rel=1e-6)
    assert parts.error == pytest.approx(whole.error, rel=1e-5)


def test_logits_that_are_no_numbers_are_refused(shared_model: pysa.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = np.zeros((37, shared_model.n_vocab), np.float32)
    bad[1, 7] = np.nan
    monkeypatch.setattr(pysa.Session, "eval", lambda self, tokens, logits: bad[: len(tokens)])
    with pytest.raises(DeviceError, match="its logits after token 37: expected finite ones"):
        perplexity(shared_model, [np.arange(75, dtype=np.int32)], Plan.dense(4, 6))


def test_estimate_has_the_standard_error_of_the_mean() -> None:
    assert Estimate.of([1.0, 2.0, 3.0, 6.0]) == Estimate(3.0, pytest.approx(math.sqrt(14 / 3 / 4)))
    assert Estimate.of([2.5]) == Estimate(2.5, 0.0)
    assert Estimate(2.0, 0.1).exp() == Estimate(math.exp(2), pytest.approx(0.1 * math.exp(2)))


# -- compare ---------------------------------------------------------------------------------------------------------


def test_compare_equals_float64_of_both_sessions(shared_model: pysa.Model, tiny_plan: dict[str, Any]) -> None:
    texts = samples(shared_model, corpus_of(500), 5, N_CTX)
    plans = {"a": Plan.from_json(tiny_plan), "b": Plan.streaming(4, 6, 3, 17)}
    found = compare_plans(shared_model, texts, plans, engine=F32)
    dense = [second_half(shared_model, tokens, "dense") for tokens in texts]
    dense_loss = np.concatenate([loss(rows, tokens) for rows, tokens in zip(dense, texts, strict=True)])
    for name, plan in plans.items():
        one = found[name]
        shared = [second_half(shared_model, tokens, plan) for tokens in texts]
        shared_loss = np.concatenate([loss(rows, tokens) for rows, tokens in zip(shared, texts, strict=True)])
        kl = np.concatenate([(np.exp(p) * (p - q)).sum(axis=1) for p, q in zip(dense, shared, strict=True)])
        same = np.concatenate([p.argmax(1) == q.argmax(1) for p, q in zip(dense, shared, strict=True)])
        ratio = math.exp((shared_loss - dense_loss).mean())
        assert (one.n_ctx, one.n_samples, one.n_tokens) == (75, 5, 5 * 37)
        assert one.ppl_dense == pytest.approx(math.exp(dense_loss.mean()), rel=1e-6)
        assert one.ppl_shared == pytest.approx(math.exp(shared_loss.mean()), rel=1e-5)
        assert one.ppl_ratio == pytest.approx(ratio, rel=1e-5)
        assert one.ppl_ratio == pytest.approx(one.ppl_shared / one.ppl_dense)
        assert one.ppl_ratio_error == pytest.approx(ratio * error_of(shared_loss - dense_loss), rel=1e-4)
        assert one.kl == pytest.approx(kl.mean(), rel=1e-4)
        assert one.kl_error == pytest.approx(error_of(kl), rel=1e-4)
        assert one.same_top1 == pytest.approx(same.mean())
        assert one.same_top1_error == pytest.approx(math.sqrt(same.mean() * (1 - same.mean()) / (len(same) - 1)))
        assert one.kl > 0.01  # the plan does change the model
        sizes = shared_model.cache_bytes(75, plan, "f32", "f32")
        assert one.saving == pytest.approx(1 - sizes["total"] / sizes["dense"])
        assert sum(value for _, value in one.kl_by_position) == pytest.approx(16 * kl.mean(), rel=0.2)


def test_only_predictions_with_a_distance_change(shared_model: pysa.Model) -> None:
    texts = samples(shared_model, corpus_of(500), 3, N_CTX)
    found = compare(shared_model, texts, Plan.streaming(4, 6, 4, 44), engine=F32)
    assert found.n_distant == 3 * (74 - 48)  # positions 48 to 73, of 37 to 73
    near = [kl for position, kl in found.kl_by_position if position < 47]
    far = [kl for position, kl in found.kl_by_position if position > 49]
    assert max(near) < 1e-6 < min(far)
    covered = compare(shared_model, texts, Plan.streaming(4, 6, 4, 96), engine=F32)
    assert covered.n_distant == 0
    assert covered.kl < 1e-6


def test_the_dense_plan_changes_nothing(shared_model: pysa.Model) -> None:
    found = compare(shared_model, samples(shared_model, corpus_of(300), 2, N_CTX), Plan.dense(4, 6))
    assert (found.kl, found.kl_error, found.ppl_ratio, found.ppl_ratio_error) == (0, 0, 1, 0)
    assert (found.same_top1, found.same_top1_error, found.saving, found.n_distant) == (1, 0, 0, 0)
    assert found.ppl_shared == found.ppl_dense


def test_a_comparison_can_be_kept_in_a_plan(
    shared_model: pysa.Model, tiny_plan: dict[str, Any], tmp_path: Path
) -> None:
    plan = Plan.from_json(tiny_plan)
    found = compare(shared_model, samples(shared_model, corpus_of(300), 2, N_CTX), plan)
    plan.calibration = found.calibration("abc")
    plan.save(tmp_path / "plan.json")
    kept = Plan.load(tmp_path / "plan.json").calibration
    assert kept["perplexity_increase"] == pytest.approx(found.ppl_shared / found.ppl_dense - 1)
    assert (kept["corpus_sha256"], kept["tokens"], kept["saving_at"]) == ("abc", 74, 75)
    assert (kept["kl_divergence"], kept["same_top1"], kept["saving"]) == (found.kl, found.same_top1, found.saving)


# -- answers ---------------------------------------------------------------------------------------------------------


def test_an_answer_is_right_where_greedy_generation_gives_it(shared_model: pysa.Model) -> None:
    prompt = np.random.default_rng(3).integers(3, 250, 60).astype(np.int32)
    with shared_model.session(256) as session:
        first = list(session.generate(prompt, max_tokens=4, stop_at_eog=False))
        middle = [*first, 70, 71]
        session.reset()
        second = list(session.generate([*prompt, *middle], max_tokens=3, stop_at_eog=False))
        answers = (Answer(60, 4, 9), Answer(66, 3, 9))
        right = np.array([*prompt, *middle, *second, 5, 6], np.int32)
        assert right_answers(session, Document(right, answers)) == [True, True]
        for position, expected in ((60, False), (63, False), (66, True), (68, True), (69, True)):
            wrong = right.copy()
            wrong[position] = 3 if right[position] != 3 else 4
            found = right_answers(session, Document(wrong, answers))
            assert found[0] == expected
            if expected:
                assert found[1] == (position == 69)


def test_shares_have_the_error_of_a_proportion() -> None:
    share = Share(30, 40) + Share(15, 20)
    assert (share.n_right, share.n_asked, share.value) == (45, 60, 0.75)
    assert share.error == pytest.approx(math.sqrt(0.75 * 0.25 / 60))


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[pysa.Model, Tasks]]:
    """The example checkpoint, which was trained to answer, with Python source as filler."""
    from pysa_convert.cli import main

    path = tmp_path_factory.mktemp("example") / "example.gguf"
    assert main([str(EXAMPLE), "-o", str(path), "--outtype", "f16"]) == 0
    with pysa.Model(path, n_threads=1) as model:
        yield model, Tasks(model, read_corpus(model, [statistics.__file__]).tokens)


def test_the_example_recalls_and_without_the_distance_it_cannot(example: tuple[pysa.Model, Tasks]) -> None:
    model, tasks = example
    plans = {"window": Plan.streaming(model.n_layer, model.n_head, 4, 124)}
    reported: list[int] = []
    found = recall(model, tasks, [400, 512], plans, n_questions=10, seed=1, advance=reported.append)
    assert sum(reported) == (400 + 512) * 2 * 2  # documents of six and four questions, two sides
    assert found.sides == ("dense", "window")
    assert found.share("dense").n_asked == 20
    assert found.share("dense", 512).n_asked == 10
    assert found.share("dense").value >= 0.9
    near = [q for q in found.questions if q.distance < 110]
    far = [q for q in found.questions if q.distance > 140]
    assert (len(near) > 2, len(far) > 8) == (True, True)
    assert np.mean([q.right["window"] for q in near]) >= 0.8
    assert np.mean([q.right["window"] for q in far]) <= 0.3
    for rows in (found.by_length(), found.by_distance()):
        for side in found.sides:
            assert sum((row.shares[side] for row in rows), Share(0, 0)) == found.share(side)
    assert [row.low for row in found.by_length()] == [400, 512]
    assert all(row.high == 2 * row.low for row in found.by_distance())
    sizes = model.cache_bytes(512, plans["window"])
    assert found.savings["window"][512] == pytest.approx(1 - sizes["total"] / sizes["dense"])


def test_the_example_finds_needles_and_without_the_distance_only_near_ones(example: tuple[pysa.Model, Tasks]) -> None:
    model, tasks = example
    plans = {"window": Plan.streaming(model.n_layer, model.n_head, 4, 124)}
    found = needle(model, tasks, [300, 500], [0.4, 1.0], plans, repeats=2, seed=2)
    assert found.share("dense").value >= 0.8
    shares = [[cell.n_right for cell in row] for row in found.cells["window"]]
    assert shares == [[0, 2], [0, 2]]
    assert found.share("window") == Share(4, 8)


def test_the_same_seed_asks_the_same_questions(example: tuple[pysa.Model, Tasks]) -> None:
    model, tasks = example
    first, again, other = (recall(model, tasks, [300], {}, n_questions=5, seed=seed) for seed in (4, 4, 5))
    assert first.sides == ("dense",)
    assert first.questions == again.questions
    assert [q.distance for q in first.questions] != [q.distance for q in other.questions]


def test_a_plan_cannot_be_called_dense(shared_model: pysa.Model) -> None:
    with pytest.raises(ArgumentError, match="'dense' is the dense model's own name"):
        recall(shared_model, Tasks(shared_model), [900], {"dense": Plan.streaming(4, 6)})
