"""What one adaptation is asked to do, and the checks that need neither torch nor a file."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pysa.errors import PysaError
from pysa_convert.plans import UsageError

DTYPES = ("auto", "bf16", "f32")
LR, LR_LORA = 1e-4, 5e-4
NOT_RECORDED = ("resume", "force", "quiet", "output")
# A run may go on with other values of these; the contents of plan and data are compared, not their paths.
FREE = ("plan", "data", "eval_data", "eval_every", "save_minutes", "n_threads")


class AdaptError(PysaError):
    """An adaptation cannot be done, or not gone on with."""


@dataclass(frozen=True)
class Settings:
    """One adaptation as asked for.

    Attributes:
        checkpoint: a folder or a hub id.
        data: files to learn from.
        output: the folder to be made; the unfinished run is kept beside it.
        plan: a plan.json; may be None for a control.
        control: train the dense model on the same tokens, with the same objective.
        n_ctx: tokens of a row; None chooses twice the plan's window, at least 2048, at most the model's own.
        n_batch: rows of a step.
        n_micro: rows of one pass; gradients of n_batch / n_micro passes add up.
        n_steps: how long, in steps; at most one of n_steps, n_tokens and minutes; none: once through the data.
        n_tokens: how long, in tokens, rounded up to whole steps.
        minutes: how long, in minutes of training; the result then depends on the machine's speed.
        lr: peak learning rate; None chooses by what is trained.
        warmup: share of the run in which the learning rate rises; it then falls to 0 as a cosine.
        kl_weight: of the KL divergence from the untouched dense model, in nats a token.
        ce_weight: of the plain next-token loss, in nats a token.
        lora: rank of the low-rank adapters; 0 trains all weights.
        dtype: of the matrix products: bf16 (autocast), f32 or auto.
        checkpointing: compute layers again in the backward pass instead of keeping what they need.
        eval_data: held-out files; eval_every: steps between evaluations.
        save_minutes: minutes between saves of the unfinished run.
    """

    checkpoint: str
    data: tuple[Path, ...]
    output: Path
    plan: Path | None = None
    control: bool = False
    n_ctx: int | None = None
    n_batch: int = 8
    n_micro: int = 1
    n_steps: int | None = None
    n_tokens: int | None = None
    minutes: float | None = None
    lr: float | None = None
    warmup: float = 0.1
    weight_decay: float = 0.0
    clip: float = 1.0
    kl_weight: float = 1.0
    ce_weight: float = 0.2
    lora: int = 0
    dtype: str = "auto"
    device: str = "auto"
    checkpointing: bool = False
    seed: int = 0
    eval_data: tuple[Path, ...] = ()
    eval_every: int = 50
    save_minutes: float = 5.0
    n_threads: int = 0
    resume: bool = False
    force: bool = False
    quiet: bool = True

    @property
    def peak_lr(self) -> float:
        """The learning rate after the warm-up."""
        return self.lr if self.lr is not None else LR_LORA if self.lora else LR

    @property
    def unfinished(self) -> Path:
        """The folder of the run as long as it is not finished."""
        return self.output.with_name(self.output.name + ".unfinished")

    def to_json(self) -> dict[str, Any]:
        """For adapt.json."""
        return {k: _plain(v) for k, v in dataclasses.asdict(self).items() if k not in NOT_RECORDED}

    def deciding(self) -> dict[str, Any]:
        """What must be the same for an unfinished run to go on."""
        return {name: value for name, value in self.to_json().items() if name not in FREE}

    def check(self) -> None:
        """Raises UsageError for values that are out of range or do not go together."""
        if self.plan is None and not self.control:
            raise UsageError("--plan: expected a plan.json; --control trains the dense model")
        bounds = [name for name in ("n_steps", "n_tokens", "minutes") if getattr(self, name) is not None]
        if len(bounds) > 1:
            raise UsageError("--steps, --tokens and --minutes: expected one of the three")
        numbers = ("n_batch", "n_micro", "eval_every", *(name for name in bounds if name != "minutes"))
        for name in numbers:
            _expect(name, getattr(self, name), 1)
        if self.n_ctx is not None:
            _expect("n_ctx", self.n_ctx, 8)
        if self.n_batch % self.n_micro:
            raise UsageError(f"--micro-batch: expected a divisor of --batch {self.n_batch}, got {self.n_micro}")
        for name in ("lora", "seed", "n_threads"):
            _expect(name, getattr(self, name), 0)
        for name in ("peak_lr", "clip", "save_minutes", *(name for name in bounds if name == "minutes")):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise UsageError(f"--{_option(name)}: expected a number above 0, got {getattr(self, name)}")
        for name in ("kl_weight", "ce_weight", "weight_decay"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise UsageError(f"--{_option(name)}: expected a number of at least 0, got {getattr(self, name)}")
        if self.kl_weight == self.ce_weight == 0:
            raise UsageError("--kl-weight and --ce-weight: expected one of them above 0: nothing would be learned")
        if not 0 <= self.warmup < 1:
            raise UsageError(f"--warmup: expected a share of the run from 0 to below 1, got {self.warmup}")


def _expect(name: str, value: int, least: int) -> None:
    if value < least:
        raise UsageError(f"--{_option(name)}: expected a number from {least}, got {value}")


def _option(name: str) -> str:
    names = {"n_ctx": "context", "n_micro": "micro-batch", "peak_lr": "lr"}
    return names.get(name, name.removeprefix("n_").replace("_", "-"))


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
