"""Lines of text for what the commands found out: facts, tables of bytes, the footer of a generation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pysa.cli.picture import plan_lines

if TYPE_CHECKING:
    from pysa.cli.console import Console
    from pysa.cli.generate import Outcome
    from pysa.cli.inspect import Inspection
    from pysa.plan import Plan

CACHE_PARTS = ("keys", "values", "window_keys", "window_values", "total", "dense")


def size_text(n_bytes: float) -> str:
    """Bytes for people: `9.4 MiB`."""
    if n_bytes < 1024:
        return f"{n_bytes:.0f} B"
    for unit in ("KiB", "MiB"):
        n_bytes /= 1024
        if n_bytes < 1024:
            return f"{n_bytes:.1f} {unit}"
    return f"{n_bytes / 1024:.2f} GiB"


def inspection_lines(inspection: Inspection, console: Console) -> list[str]:
    """Everything `pysa inspect` prints."""
    plan = inspection.plan
    lines = [*_facts("model", inspection.model), "", *_facts("tokenizer", inspection.tokenizer), ""]
    lines += ["plan        none: every head is an owner"] if plan is None else plan_lines(plan, console)
    lines += ["", *_cache_table(inspection)]
    if plan is not None and plan.calibration:
        lines += ["", *_facts("measured", plan.calibration)]
    return lines


def _facts(title: str, facts: Mapping[str, Any]) -> list[str]:
    width = max(len(name) for name in facts)
    lines = [f"{name:<{width}}  {_fact(name, value)}" for name, value in facts.items()]
    return [f"{title if i == 0 else '':<12}{line}" for i, line in enumerate(lines)]


def _fact(name: str, value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,} ({size_text(value)})" if name.endswith("_bytes") else f"{value:,}"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _cache_table(inspection: Inspection) -> list[str]:
    types = f"{inspection.type_k} keys, {inspection.type_v} values"
    lines = [f"cache       {types}", f"{'':<12}{'tokens':>9}{'dense':>12}{'shared':>12}{'saved':>9}"]
    for row in inspection.cache:
        dense, shared = size_text(row.bytes["dense"]), size_text(row.bytes["total"])
        beyond = "  beyond n_ctx_train" if row.n > inspection.n_ctx_train else ""
        lines.append(f"{'':<12}{row.n:>9,}{dense:>12}{shared:>12}{100 * row.saving:>7.1f} %{beyond}")
    return lines


def plan_note(plan: Plan) -> str | None:
    """What was measured about a plan, in one line; None if nothing was."""
    measured = plan.calibration
    saving, at, increase = (measured.get(name) for name in ("saving", "saving_at", "perplexity_increase"))
    if not plan.enabled or not isinstance(saving, float):
        return None
    parts = [f"saves {100 * saving:.1f} % of the cache" + (f" at {at:,}" if isinstance(at, int) else "")]
    if isinstance(increase, float):
        parts.append(f"measured {100 * increase:+.2f} % perplexity")
    dense, shared = measured.get("recall_dense"), measured.get("recall_shared")
    if isinstance(dense, float) and isinstance(shared, float):
        parts.append(f"recall {100 * shared:.0f} % (dense {100 * dense:.0f} %)")
    return f"plan        {plan.method}: {', '.join(parts)}"


def footer_lines(outcome: Outcome) -> list[str]:
    """Speed and the cache's bytes by part, after a generation."""
    cache = outcome.cache
    where = outcome.placement.text() if outcome.placement else None
    parts = {
        "own keys": cache["keys"],
        "values": cache["values"],
        "window keys": cache["window_keys"],
        "window values": cache["window_values"],
    }
    return [
        "",
        f"prompt      {outcome.n_prompt:,} tokens in {outcome.prompt_s:.2f} s: {outcome.prompt_per_s:.1f} tokens/s",
        f"decode      {outcome.n_generated:,} tokens in {outcome.decode_s:.2f} s: {outcome.decode_per_s:.1f} tokens/s"
        + ("; stopped: the context is full" if outcome.stopped == "context_full" else ""),
        f"cache       {', '.join(f'{name} {size_text(n)}' for name, n in parts.items() if n)}",
        f"            {size_text(cache['total'])} allocated, with room for {outcome.n_rows:,} tokens"
        f"; dense {size_text(cache['dense'])}: {100 * outcome.saving:.1f} % saved",
        *([f"device      {where}"] if where else []),
    ]
