"""Steps of training: schedule, gradients, update, evaluation, and the state from which a run goes on bit for bit."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pysa_convert.adapt.data import Rows
from pysa_convert.adapt.models import Learner, Place, Teacher
from pysa_convert.adapt.objective import Losses, Objective
from pysa_convert.adapt.settings import AdaptError, Settings

BETAS = (0.9, 0.95)


def lr_scale(progress: float, warmup: float) -> float:
    """Linear warm-up, then a cosine down to 0; `progress` is the share of the run that is done, above 0."""
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, (progress - warmup) / (1.0 - warmup))))


class Trainer:
    """One run's model, optimiser and place in the data.

    Attributes:
        n_steps: of the whole run; None where minutes decide.
        step, n_tokens, time_s: what is done.
    """

    def __init__(self, settings: Settings, learner: Learner, teacher: Teacher | None, rows: Rows, place: Place) -> None:
        self.settings, self.learner, self.teacher, self.rows, self.place = settings, learner, teacher, rows, place
        self.objective = Objective(settings.kl_weight, settings.ce_weight)
        self.n_steps = n_steps(settings, rows)
        self.step, self.n_tokens, self.time_s = 0, 0, 0.0
        parameters = learner.trained.values()
        decays = [{"params": [p for p in parameters if p.ndim >= 2], "weight_decay": settings.weight_decay}]
        others = [p for p in parameters if p.ndim < 2]
        groups = [*decays, {"params": others, "weight_decay": 0.0}] if others else decays
        self.optimiser = torch.optim.AdamW(groups, settings.peak_lr, BETAS)

    @property
    def progress(self) -> float:
        """The share of the run that will be done after the next step; the schedule's argument."""
        if self.n_steps is not None:
            return (self.step + 1) / (self.n_steps + 1)
        return max(1e-3, self.time_s / (60.0 * (self.settings.minutes or 1.0)))

    @property
    def is_done(self) -> bool:
        """Whether the run has come to its end."""
        if self.n_steps is not None:
            return self.step >= self.n_steps
        return self.time_s >= 60.0 * (self.settings.minutes or 1.0)

    def advance(self, log: Callable[[dict[str, float]], None] | None = None) -> dict[str, float]:
        """One step; an interrupt leaves everything as it was before, or after.

        Args:
            log: takes the step's record, before an interrupt that came meanwhile is let through.

        Raises:
            AdaptError: the loss or its gradient is no longer finite.
        """
        started = time.monotonic()
        lr = self.settings.peak_lr * lr_scale(self.progress, self.settings.warmup)
        numbers = self.rows.batch(self.step * self.settings.n_batch, self.settings.n_batch, self.settings.seed)
        self.optimiser.zero_grad(set_to_none=True)
        losses = self._gradients(numbers)
        norm = float(torch.nn.utils.clip_grad_norm_(self.learner.trained.values(), self.settings.clip))
        if not math.isfinite(norm + losses.ce + losses.kl):
            advice = "lower --lr, or pass --dtype f32"
            raise AdaptError(f"step {self.step + 1}: the loss is not finite: expected a number, got {losses}; {advice}")
        with _interrupts_held():
            for group in self.optimiser.param_groups:
                group["lr"] = lr
            self.optimiser.step()
            self.optimiser.zero_grad(set_to_none=True)
            self.step += 1
            self.n_tokens += int(self.rows.n_used[numbers].sum())
            self.time_s += time.monotonic() - started
            record = {
                "step": self.step,
                "loss": self.objective.value(losses),
                "kl": losses.kl / losses.n,
                "ce": losses.ce / losses.n,
                "lr": lr,
                "gradient_norm": norm,
                "tokens": self.n_tokens,
                "seconds": self.time_s,
            }
            if log is not None:
                log(record)
        return record

    def _gradients(self, numbers: npt.NDArray[np.intp]) -> Losses:
        """Adds up the gradients of a step's rows, a few rows at a time."""
        n_step = int((self.rows.n_used[numbers] - 1).sum())
        losses = Losses()
        for first in range(0, len(numbers), self.settings.n_micro):
            losses.add(self._pass(self.rows, numbers[first : first + self.settings.n_micro], n_step))
        return losses

    def _pass(self, rows: Rows, numbers: npt.NDArray[np.intp], n_step: int) -> Losses:
        ids, is_scored = self._inputs(rows, numbers)
        dense = None
        with self.place.products():
            if self.teacher is not None:
                dense = (self.teacher.hidden(ids)[:, :-1][is_scored], self.teacher.head)
            hidden = self.learner.hidden(ids)[:, :-1][is_scored]
        # the head's part of the gradient is made chunk by chunk, the rest of it then goes back at once
        leaf = hidden.detach().requires_grad_(torch.is_grad_enabled())
        losses = self.objective(leaf, ids[:, 1:][is_scored], self.learner.head, dense, n_step)
        if torch.is_grad_enabled():
            hidden.backward(leaf.grad)
        return losses

    def _inputs(self, rows: Rows, numbers: npt.NDArray[np.intp]) -> tuple[Tensor, Tensor]:
        """The ids (n_rows, n_tokens) and which of them but the last have a next token."""
        n_used = torch.from_numpy(rows.n_used[numbers]).to(self.place.device)
        n = int(rows.n_used[numbers].max())
        ids = torch.from_numpy(rows.tokens[numbers, :n].astype(np.int64)).to(self.place.device)
        return ids, torch.arange(1, n, device=self.place.device) < n_used[:, None]

    @torch.no_grad()
    def evaluate(self, rows: Rows) -> dict[str, float]:
        """Losses of held-out rows, with the attention that is trained."""
        losses = Losses()
        for i in range(len(rows)):
            losses.add(self._pass(rows, np.array([i]), 1))
        ce = losses.ce / losses.n
        values = {"eval_ce": ce, "eval_perplexity": math.exp(min(ce, 700.0))}
        if self.teacher is not None:
            values["eval_kl"] = losses.kl / losses.n
        return {"step": self.step, **values, "tokens": self.n_tokens, "seconds": self.time_s}

    def state(self) -> dict[str, Any]:
        """All that a later process needs to go on, for torch.save."""
        numbers = {name: getattr(self, name) for name in ("step", "n_tokens", "time_s")}
        weights = {name: p.detach() for name, p in self.learner.trained.items()}
        return {**numbers, "weights": weights, "optimiser": self.optimiser.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Takes over what `state` gave."""
        for name in ("step", "n_tokens", "time_s"):
            setattr(self, name, state[name])
        with torch.no_grad():
            for name, p in self.learner.trained.items():
                p.copy_(state["weights"][name])
        self.optimiser.load_state_dict(state["optimiser"])


def n_steps(settings: Settings, rows: Rows) -> int | None:
    """Steps of the whole run; None where minutes decide."""
    if settings.minutes is not None:
        return None
    if settings.n_steps is not None:
        return settings.n_steps
    if settings.n_tokens is not None:
        return math.ceil(settings.n_tokens / (settings.n_batch * rows.n_tokens / len(rows)))
    return math.ceil(len(rows) / settings.n_batch)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C waits until the block is through: half an update would be neither before nor after."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[Any] = []
    before = signal.signal(signal.SIGINT, lambda *arguments: caught.append(arguments))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if caught and callable(before):
        before(*caught[0])
