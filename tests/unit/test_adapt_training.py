"""The loss and its gradient, the schedule, adapters: the parts of pysa-adapt that one can hold against a formula."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.checkpoints import make_checkpoint
from pysa_convert.adapt.settings import Settings
from pysa_convert.plans import UsageError

from pysa import Plan

torch = pytest.importorskip("torch", reason="pysa-adapt trains with it")
transformers = pytest.importorskip("transformers", reason="pysa-adapt trains its models")

from pysa_convert.adapt import objective as objective_module  # noqa: E402
from pysa_convert.adapt.data import Rows  # noqa: E402
from pysa_convert.adapt.models import Learner, Teacher, find_place  # noqa: E402
from pysa_convert.adapt.objective import Objective  # noqa: E402
from pysa_convert.adapt.trainer import Trainer, lr_scale, n_steps  # noqa: E402
from pysa_convert.sources.checkpoint import Checkpoint  # noqa: E402

N_LAYER, N_HEAD = 3, 4
PLAN = Plan.pod_spans(N_LAYER, N_HEAD, [(1, 2)], 2, 6)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """The settings below ask for one thread; other tests get theirs back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    sizes = {"n_layer": N_LAYER, "n_head": N_HEAD, "n_embd": 48, "n_ff": 80, "n_ctx": 64}
    return Checkpoint(make_checkpoint(tmp_path_factory.mktemp("adapt") / "m", "llama", seed=3, **sizes))


def settings(**change: Any) -> Settings:
    usual: dict[str, Any] = {"plan": Path("plan.json"), "n_ctx": 32, "n_batch": 4, "device": "cpu", "dtype": "f32"}
    usual["n_threads"] = 1
    return Settings("m", (Path("data.txt"),), Path("out"), **{**usual, **change})


def some_rows(n: int = 8) -> Rows:
    rng = np.random.default_rng(0)
    return Rows(
        rng.integers(3, 400, (n, 32)).astype(np.int32), np.full(n, 32, np.int32) - np.arange(n, dtype=np.int32), n
    )


def trainer_of(checkpoint: Checkpoint, plan: Plan | None = PLAN, **change: Any) -> Trainer:
    given = settings(**change)
    place = find_place(given)
    learner = Learner(checkpoint, plan, given, place)
    return Trainer(given, learner, Teacher(checkpoint, learner, place), some_rows(), place)


# ---- the loss


@pytest.mark.parametrize("weights", [(1.0, 0.2), (0.0, 1.0), (0.7, 0.0)])
def test_loss_and_gradient_equal_torchs_own_whatever_the_chunk(
    weights: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    head, dense_head = torch.nn.Linear(5, 11, bias=False), torch.nn.Linear(6, 11, bias=False)
    hidden, dense = torch.randn(13, 5, requires_grad=True), torch.randn(13, 6)
    targets = torch.randint(0, 11, (13,))
    q, p = head(hidden).log_softmax(-1), dense_head(dense).log_softmax(-1).detach()
    kl = (p.exp() * (p - q)).sum()
    ce = torch.nn.functional.cross_entropy(head(hidden), targets, reduction="sum")
    expected = torch.autograd.grad((weights[0] * kl + weights[1] * ce) / 20, [hidden, head.weight])
    monkeypatch.setattr(objective_module, "N_LOGITS", 4 * 11)
    leaf = hidden.detach().requires_grad_()
    losses = Objective(*weights)(leaf, targets, head, (dense, dense_head), 20)
    assert losses.n == 13
    assert losses.kl == pytest.approx(kl.item(), rel=1e-5)
    assert losses.ce == pytest.approx(ce.item(), rel=1e-5)
    assert torch.allclose(leaf.grad, expected[0], atol=1e-6)
    assert torch.allclose(head.weight.grad, expected[1], atol=1e-6)


def test_a_step_of_small_passes_is_the_step_of_one_pass(checkpoint: Checkpoint) -> None:
    found = []
    for n_micro in (1, 4):
        trainer = trainer_of(checkpoint, n_micro=n_micro)
        losses = trainer._gradients(np.array([3, 0, 7, 5]))
        assert losses.n == 31 * 4 - (3 + 0 + 7 + 5)  # what fills a row up is not scored
        found.append((losses, [p.grad for p in trainer.learner.trained.values()]))
    assert found[0][0].kl == pytest.approx(found[1][0].kl, rel=1e-4)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        assert (one - other).abs().max() <= 1e-4 * other.abs().max()


def test_the_fill_of_a_row_changes_nothing(checkpoint: Checkpoint) -> None:
    trainer = trainer_of(checkpoint)
    before = trainer._gradients(np.array([7]))
    rows = some_rows()
    rows.tokens[7, 25:] = 123
    trainer.rows = rows
    assert trainer._gradients(np.array([7])) == before


def test_a_control_begins_without_divergence_and_a_plan_with_some(checkpoint: Checkpoint) -> None:
    dense = trainer_of(checkpoint, None).evaluate(some_rows())
    shared = trainer_of(checkpoint).evaluate(some_rows())
    assert dense["eval_kl"] == pytest.approx(0.0, abs=1e-6)
    assert shared["eval_kl"] > 0.05
    assert dense["eval_perplexity"] == pytest.approx(math.exp(dense["eval_ce"]))


def test_bf16_products_give_about_the_same_loss(checkpoint: Checkpoint) -> None:
    exact, rounded = (trainer_of(checkpoint, dtype=dtype).evaluate(some_rows()) for dtype in ("f32", "bf16"))
    assert rounded["eval_ce"] != exact["eval_ce"]
    assert rounded["eval_ce"] == pytest.approx(exact["eval_ce"], rel=0.01)
    assert rounded["eval_kl"] == pytest.approx(exact["eval_kl"], rel=0.1)


# ---- schedule and length


def test_a_step_that_is_done_is_logged_before_an_interrupt_is_let_through(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    trainer, logged = trainer_of(checkpoint), []
    step = trainer.optimiser.step
    monkeypatch.setattr(trainer.optimiser, "step", lambda: (step(), signal.raise_signal(signal.SIGINT)))
    try:
        with pytest.raises(KeyboardInterrupt):
            trainer.advance(logged.append)
    finally:
        signal.signal(signal.SIGINT, before)
    assert [record["step"] for record in logged] == [trainer.step] == [1]


def test_the_learning_rate_rises_and_falls_to_nothing() -> None:
    assert [round(lr_scale(x, 0.1), 4) for x in (0.05, 0.1, 0.55, 1.0)] == [0.5, 1.0, 0.5, 0.0]
    assert lr_scale(0.3, 0.0) == pytest.approx(0.5 + 0.5 * math.cos(0.3 * math.pi))


def test_how_long_a_run_is() -> None:
    rows = some_rows()  # 228 tokens in 8 rows
    assert n_steps(settings(), rows) == 2
    assert n_steps(settings(n_steps=7), rows) == 7
    assert n_steps(settings(n_tokens=1000), rows) == math.ceil(1000 / (4 * 228 / 8))
    assert n_steps(settings(minutes=3.0), rows) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"plan": None}, "--plan: expected a plan.json"),
        ({"n_steps": 3, "minutes": 1.0}, "expected one of the three"),
        ({"n_steps": 0}, "--steps: expected a number from 1, got 0"),
        ({"n_ctx": 3}, "--context: expected a number from 8, got 3"),
        ({"n_micro": 3}, "--micro-batch: expected a divisor of --batch 4, got 3"),
        ({"lr": math.nan}, "--lr: expected a number above 0, got nan"),
        ({"minutes": -1.0}, "--minutes: expected a number above 0, got -1.0"),
        ({"kl_weight": -1.0}, "--kl-weight: expected a number of at least 0, got -1.0"),
        ({"kl_weight": 0.0, "ce_weight": 0.0}, "nothing would be learned"),
        ({"warmup": 1.0}, "--warmup: expected a share"),
        ({"lora": -2}, "--lora: expected a number from 0, got -2"),
    ],
)
def test_settings_out_of_range_are_usage_errors(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        settings(**change).check()


# ---- adapters


@pytest.fixture
def with_adapters(checkpoint: Checkpoint) -> Trainer:
    pytest.importorskip("peft", reason="--lora needs it")
    trainer = trainer_of(checkpoint, lora=3)
    torch.manual_seed(5)
    with torch.no_grad():
        for p in trainer.learner.trained.values():
            p.add_(0.1 * torch.randn_like(p))
    return trainer


def test_only_adapters_are_trained_and_without_them_it_is_the_dense_model(
    with_adapters: Trainer, checkpoint: Checkpoint
) -> None:
    learner = with_adapters.learner
    assert len(learner.trained) == N_LAYER * 7 * 2
    assert all("lora" in name for name in learner.trained)
    ids = torch.from_numpy(some_rows().tokens[:2].astype(np.int64))
    original = transformers.AutoModelForCausalLM.from_pretrained(checkpoint.folder, dtype=torch.float32).eval()
    expected = original.model(input_ids=ids).last_hidden_state
    assert with_adapters.teacher is not None
    assert (with_adapters.teacher.hidden(ids) - expected).abs().max() < 1e-4
    assert (learner.hidden(ids) - expected).abs().max() > 0.1
    with_adapters._gradients(np.array([0, 1]))
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in learner.trained.values())


def test_merged_adapters_give_the_same_hidden_states(with_adapters: Trainer, checkpoint: Checkpoint) -> None:
    from pysa_convert.adapt.shared_attention import share_attention

    ids = torch.from_numpy(some_rows().tokens[:2].astype(np.int64))
    expected = with_adapters.learner.hidden(ids).detach()
    merged = with_adapters.learner.merged()
    fresh = transformers.AutoModelForCausalLM.from_pretrained(checkpoint.folder, dtype=torch.float32).eval()
    assert set(merged) == set(fresh.state_dict())
    fresh.load_state_dict(merged)
    share_attention(fresh, PLAN)
    assert (fresh.model(input_ids=ids).last_hidden_state - expected).abs().max() < 1e-4
