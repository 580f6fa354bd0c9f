"""What plans change on a text: predictions of the second half of each sample, dense beside each plan, in one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pysa.errors import ArgumentError
from pysa.model import Model
from pysa.plan import CalibrationValue, Plan
from pysa.planning.scoring import (
    Advance,
    Engine,
    Estimate,
    Floats,
    first_scored,
    losses,
    nothing,
    scored_rows,
)
from pysa.planning.texts import Ids

N_BINS = 16  # of positions


@dataclass(frozen=True)
class Comparison:
    """A plan against the dense model; `_error` is one standard error, predictions taken as independent.

    Attributes:
        n_ctx: tokens of a sample.
        n_samples: samples evaluated.
        n_tokens: predictions scored.
        n_distant: of these, how many have distant tokens; the others are equal by construction.
        ppl_dense: perplexity of the dense model.
        ppl_shared: perplexity with the plan.
        ppl_ratio: the second by the first; its error is that of the paired differences.
        kl: mean KL divergence of the plan's predictions from the dense ones, in nats.
        same_top1: share of predictions with the same most likely token.
        saving: share of the dense cache's bytes saved at n_ctx.
        kl_by_position: mean KL divergence by the middle of equal stretches of positions.
    """

    n_ctx: int
    n_samples: int
    n_tokens: int
    n_distant: int
    ppl_dense: float
    ppl_dense_error: float
    ppl_shared: float
    ppl_shared_error: float
    ppl_ratio: float
    ppl_ratio_error: float
    kl: float
    kl_error: float
    same_top1: float
    same_top1_error: float
    saving: float
    kl_by_position: tuple[tuple[float, float], ...]

    @property
    def ppl_increase(self) -> float:
        """How much more perplexity: 0.01 is one percent."""
        return self.ppl_ratio - 1.0

    def calibration(self, corpus_sha256: str = "") -> dict[str, CalibrationValue]:
        """As a plan keeps it (`pysa.calibration.*`)."""
        values: dict[str, CalibrationValue] = {"corpus_sha256": corpus_sha256} if corpus_sha256 else {}
        return {
            **values,
            "tokens": self.n_tokens,
            "perplexity_dense": self.ppl_dense,
            "perplexity_shared": self.ppl_shared,
            "perplexity_increase": self.ppl_increase,
            "kl_divergence": self.kl,
            "same_top1": self.same_top1,
            "saving": self.saving,
            "saving_at": self.n_ctx,
        }


def compare(
    model: Model, samples: Sequence[Ids], plan: Plan, *, engine: Engine | None = None, advance: Advance = nothing
) -> Comparison:
    """One plan against the dense model; see compare_plans()."""
    return compare_plans(model, samples, {"plan": plan}, engine=engine, advance=advance)["plan"]


def compare_plans(
    model: Model,
    samples: Sequence[Ids],
    plans: Mapping[str, Plan],
    *,
    engine: Engine | None = None,
    advance: Advance = nothing,
) -> dict[str, Comparison]:
    """Several plans against the dense model, which is evaluated once.

    Args:
        samples: texts of equal length, each evaluated from an empty cache and scored in its second half.
        plans: by name.
        engine: how the sessions are made.
        advance: is told the tokens evaluated, all sessions together.

    Returns:
        By the names of `plans`.

    Raises:
        ArgumentError: no samples, or no plans.
        PlanError: a plan does not fit the model, or the file is pruned and has no dense mode.
    """
    if not samples or not plans:
        raise ArgumentError(f"compare: expected samples and plans, got {len(samples)} and {len(plans)}")
    engine = engine or Engine()
    n_ctx = max(len(tokens) for tokens in samples)
    gathered = {name: _Gathered() for name in plans}
    dense_losses: list[Floats] = []
    with (
        engine.session(model, n_ctx, Plan.dense(model.n_layer, model.n_head)) as dense,
        engine.sessions(model, n_ctx, plans) as sessions,
    ):
        for tokens in samples:
            for part, (expected, *others) in scored_rows([dense, *sessions.values()], tokens, advance):
                weights, top = np.exp(expected), expected.argmax(axis=1)
                dense_losses.append(losses(expected, tokens, part))
                for one, rows in zip(gathered.values(), others, strict=True):
                    one.losses.append(losses(rows, tokens, part))
                    one.kl.append((weights * (expected - rows)).sum(axis=1))
                    one.same.append(rows.argmax(axis=1) == top)
    positions = np.concatenate([np.arange(first_scored(tokens), len(tokens) - 1) for tokens in samples])
    reference = np.concatenate(dense_losses)
    return {
        name: _comparison(
            gathered[name], reference, positions, n_ctx, len(samples), plan, engine.saving(model, n_ctx, plan)
        )
        for name, plan in plans.items()
    }


class _Gathered:
    """Of one plan, a value per prediction, in pieces."""

    def __init__(self) -> None:
        self.losses: list[Floats] = []
        self.kl: list[Floats] = []
        self.same: list[np.ndarray[tuple[int], np.dtype[np.bool_]]] = []


def _comparison(
    gathered: _Gathered,
    reference: Floats,
    positions: Ids,
    n_ctx: int,
    n_samples: int,
    plan: Plan,
    saving: float,
) -> Comparison:
    nll, kl = np.concatenate(gathered.losses), np.concatenate(gathered.kl)
    dense, shared, ratio = (Estimate.of(x).exp() for x in (reference, nll, nll - reference))
    mean_kl, same = Estimate.of(kl), Estimate.of(np.concatenate(gathered.same))
    has_distance = plan.enabled and bool((plan.kinds() != "owner").any())
    n_distant = int((positions >= plan.n_sink + plan.n_recent).sum()) if has_distance else 0
    return Comparison(
        n_ctx,
        n_samples,
        len(nll),
        n_distant,
        *(dense.value, dense.error, shared.value, shared.error, ratio.value, ratio.error),
        *(mean_kl.value, mean_kl.error, same.value, same.error),
        saving,
        _by_position(positions, kl),
    )


def _by_position(positions: Ids, kl: Floats) -> tuple[tuple[float, float], ...]:
    edges = np.linspace(positions.min(), positions.max() + 1, N_BINS + 1)
    bins = np.searchsorted(edges, positions, side="right") - 1
    found = [i for i in range(N_BINS) if (bins == i).any()]
    return tuple((float(edges[i] + edges[i + 1]) / 2, float(kl[bins == i].mean())) for i in found)
