"""Lines of text for what `pysa plan` found: the plan, its curve, the judgement, a refusal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pysa.cli.console import Console
from pysa.cli.picture import plan_lines
from pysa.planning.planner import Outcome
from pysa.planning.strategies.steps import Step

MAX_ROWS = 16  # of the curve


def outcome_lines(outcome: Outcome, written: Path | None, console: Console) -> list[str]:
    """Everything `pysa plan` prints to stdout."""
    lines = [*plan_lines(outcome.plan, console), ""]
    if len(outcome.path) > 1:
        lines += [*curve_lines(outcome.path), ""]
    lines += judgement_lines(outcome)
    if written is not None:
        lines += ["", f"written     {written}; pysa-convert MODEL.gguf -o OUT.gguf --plan {written}"]
    return lines


def curve_lines(path: Sequence[Step]) -> list[str]:
    """A search's plans: what they save and cost on the text that they were chosen by."""
    chosen = sorted({round(i * (len(path) - 1) / (MAX_ROWS - 1)) for i in range(MAX_ROWS)})
    lines = [f"{'curve':<12}{'saved':>8}{'KL text':>10}{'recall':>10}{'perplexity':>12}{'recalled':>10}"]
    for step in (path[i] for i in chosen):
        cost = step.cost
        lines.append(
            f"{'':<12}{100 * step.saving:>6.1f} %{cost.kl_text:>10.5f}{cost.kl_recall:>10.5f}"
            f"{100 * cost.ppl_increase:>+10.2f} %{100 * cost.recalled:>8.1f} %"
        )
    return lines


def judgement_lines(outcome: Outcome) -> list[str]:
    """What the gate measured."""
    v = outcome.verdict
    return [
        f"judged      on {v.n_tokens:,} predictions of held-out text, {v.n_recall} questions, {v.n_needle} needles",
        f"            perplexity {v.ppl_dense:.3f} dense, {v.ppl_shared:.3f} shared: "
        f"{100 * v.ppl_increase:+.2f} % (± {100 * v.ppl_error:.2f})",
        f"            KL divergence {v.kl:.5f} nats, same first choice {100 * v.same_top1:.1f} %",
        f"            recall {100 * v.recall_dense:.1f} % dense, {100 * v.recall_shared:.1f} % shared; needles "
        f"{v.n_needle_dense} and {v.n_needle_shared} of {v.n_needle}",
        f"            saves {100 * outcome.saving:.1f} % of the cache at {outcome.at:,} tokens: {outcome.reason}",
    ]


def refusal(outcome: Outcome, output: Path, state: Path) -> str:
    """Why a plan was not written, and what to try."""
    advice = "ask for less with --save" if outcome.plan.method == "search" else "try --strategy search"
    return (
        f"{output}: not written: over the budget on held-out text: {'; '.join(outcome.faults)}; {advice}, allow more "
        f"with --max-ppl-increase, or --force; {state} has what was measured"
    )


def curve_json(path: Sequence[Step]) -> list[dict[str, Any]]:
    """The search's plans, by what they save."""
    return [
        {
            "saving": step.saving,
            "kl_text": step.cost.kl_text,
            "kl_recall": step.cost.kl_recall,
            "perplexity_increase": step.cost.ppl_increase,
            "recalled": step.cost.recalled,
        }
        for step in path
    ]
