"""From the command's options to a Plan."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from pysa.errors import ConvertError, PlanError
from pysa.plan import Plan
from pysa_convert.architectures.base import Dims

METHODS = ("none", "sa", "pod", "streaming")
N_SINK, N_RECENT = 16, 4080


class UsageError(ConvertError):
    """Options that do not go together: exit status 2."""


@dataclass(frozen=True)
class PlanOptions:
    """The sharing options as given; None where the command line says nothing."""

    share: str | None = None
    plan: Path | None = None
    layers: tuple[tuple[int, int], ...] | None = None
    block: int | None = None
    sinks: int | None = None
    recent: int | None = None
    distant: str | None = None
    skip_gate: float | None = None

    @property
    def method(self) -> str:
        """The method, `plan` where a file decides, `none` where nothing is asked for."""
        return self.share or ("plan" if self.plan else "none")


def parse_layers(text: str) -> tuple[tuple[int, int], ...]:
    """`23-26,27-30` or `5` as inclusive spans.

    Raises:
        UsageError: naming what does not parse.
    """
    spans = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,6})(?:-(\d{1,6}))?\s*", part)
        if not match:
            raise UsageError(f"--layers: expected spans like 23-26,27-30, got {text!r}")
        first = int(match[1])
        spans.append((first, int(match[2]) if match[2] else first))
    return tuple(spans)


def check_options(options: PlanOptions) -> None:
    """Raises UsageError for options that contradict or do nothing."""
    method = options.method
    if options.plan and options.share not in (None, "none"):
        raise UsageError(f"--plan and --share {options.share}: expected one of the two")
    if options.plan and options.share == "none":
        raise UsageError("--plan and --share none contradict each other")
    allowed = {
        "sa": {"layers"},
        "pod": {"layers", "block", "sinks", "recent", "distant", "skip_gate"},
        "streaming": {"sinks", "recent"},
        "plan": {"skip_gate"},
        "none": set[str](),
    }[method]
    for name in ("layers", "block", "sinks", "recent", "distant", "skip_gate"):
        if getattr(options, name) is not None and name not in allowed:
            option = "--" + name.replace("_", "-")
            given = {"none": "without --share", "plan": "with --plan"}.get(method, f"with --share {method}")
            hint = {"sa": "; SA shares all tokens, it has no window"}.get(method, "")
            raise UsageError(f"{option} has no meaning {given}{hint}")
    if method == "sa" and not options.layers:
        raise UsageError("--share sa needs --layers, for example --layers 23-26,27-30")
    if method == "pod" and (options.layers is None) == (options.block is None):
        raise UsageError("--share pod needs --block N or --layers, or a measured plan with --plan plan.json")
    if options.block is not None and options.block < 2:
        raise UsageError(f"--block: expected at least 2 layers, got {options.block}")
    for name in ("sinks", "recent"):
        value = getattr(options, name)
        least = 1 if name == "recent" else 0
        if value is not None and not least <= value < 2**31:
            raise UsageError(f"--{name}: expected a number of tokens from {least}, got {value}")
    if options.skip_gate is not None and not 0.0 < options.skip_gate <= 1.0:
        raise UsageError(f"--skip-gate: expected a number above 0, at most 1, got {options.skip_gate}")


def build_plan(options: PlanOptions, dims: Dims) -> Plan | None:
    """The plan that the options ask for, checked against the model; None for `none`.

    Raises:
        PlanError: it does not fit the model, all faults at once.
    """
    size = (dims.n_layer, dims.n_head)
    window = (
        N_SINK if options.sinks is None else options.sinks,
        N_RECENT if options.recent is None else options.recent,
    )
    distant = options.distant or "scores"
    if options.method == "none":
        return None
    if options.method == "plan" and options.plan:
        plan = Plan.load(options.plan)
    elif options.method == "sa":
        plan = Plan.sa(*size, options.layers or ())
    elif options.method == "streaming":
        plan = Plan.streaming(*size, *window)
    elif options.block is not None:
        if options.block > dims.n_layer:
            raise PlanError(f"--block: expected at most the model's {dims.n_layer} layers, got {options.block}")
        plan = Plan.pod_blocks(*size, options.block, *window, distant)
    else:
        plan = Plan.pod_spans(*size, options.layers or (), *window, distant)
    if options.skip_gate is not None:
        plan.skip_gate = options.skip_gate
    plan.validate(dims.n_head_kv, *size)
    return plan
