"""The training loop. Everything is scheduled by the wall clock, since the time is given and the speed is not.

Recall of random pairs is learned on short sequences first and carries over to long ones, so the tasks' length starts
at 128 and grows once the answers are right, or once its share of the time is used up.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from .batches import Batch, task_batch, text_batch
from .circuits import CONSTANT_DIM, LOOK_BACK_LAYER, MATCH_LAYER, plant_recall
from .model import Config, TinyLlama
from .muon import Muon
from .tasks import TaskMaker


@dataclass(frozen=True)
class Phase:
    """Lengths of source and tasks until `latest` (a share of the whole time), or until recall exceeds `enough`."""

    n_ctx_text: int
    n_ctx_task: int
    latest: float
    enough: float


PLANTED_LAYERS = (LOOK_BACK_LAYER, MATCH_LAYER)
PHASES = (
    Phase(512, 128, 0.20, 0.95),
    Phase(512, 256, 0.30, 0.95),
    Phase(1024, 512, 0.45, 0.95),
    Phase(1024, 1024, 0.75, 2.0),
    Phase(2048, 2048, 1.0, 2.0),
)
BATCH_TOKENS = 1024  # of source, and as many of tasks; at least one row of each
WARM_UP, DECAY_FROM = 0.01, 0.45
LR_MUON, LR_ADAM = 0.015, 2e-3
FILLER_WEIGHT, ANSWER_WEIGHT = 0.3, 2.0
PLANTED_LR_SHARE = 0.1  # lest the noise of small batches wash the planted circuit out


def lr_scale(elapsed: float) -> float:
    """Warm-up, constant, then linear decay; `elapsed` is a share of the whole time."""
    if elapsed < WARM_UP:
        return elapsed / WARM_UP + 1e-2
    return min(1.0, max(0.0, 1 - elapsed) / (1 - DECAY_FROM)) + 1e-3


def step_loss(model: TinyLlama, batch: Batch) -> tuple[Tensor, Tensor, float]:
    """Mean cross-entropy of the text, that of the answers, and the share of values given exactly."""
    wanted = batch.is_text | batch.is_answer
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model.logits(model.hidden(batch.ids)[wanted])
    losses = F.cross_entropy(logits.float(), batch.targets[wanted], reduction="none")
    zero = losses.new_zeros(1)
    is_text, is_value = batch.is_text[wanted], batch.is_value[wanted]
    text = torch.cat((losses[is_text], zero)).sum() / is_text.sum().clamp(min=1)
    answers = torch.cat((losses[~is_text], zero)).sum() / (~is_text).sum().clamp(min=1)
    right = logits[is_value].argmax(-1) == batch.targets[wanted][is_value]
    return text, answers, right.float().mean().item() if len(right) else math.nan


class Trainer:
    """Model, optimisers and progress, which together make up a checkpoint."""

    def __init__(self, maker: TaskMaker, ids: np.ndarray, folder: Path, time_s: float, seed: int) -> None:
        torch.manual_seed(seed)
        self.seed = seed
        self.maker, self.ids, self.folder, self.time_s = maker, ids, folder, time_s
        self.n_processes = dist.get_world_size() if dist.is_initialized() else 1
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.rng = np.random.default_rng((seed, self.rank, 0))
        self.model = TinyLlama(Config())
        plant_recall(self.model, task_batch(maker, 2048, 128, np.random.default_rng(seed)).ids)
        planted = [p for i in PLANTED_LAYERS for p in self.model.layers[i].self_attn.parameters()]
        hidden = [p for p in self.model.layers.parameters() if p.ndim == 2 and not any(p is q for q in planted)]
        others = [p for p in self.model.layers.parameters() if p.ndim == 1]
        others += [self.model.norm.weight, self.model.embed_tokens.weight]
        self.base_lr = (LR_MUON, PLANTED_LR_SHARE * LR_MUON, LR_ADAM)
        self.optimisers = (
            Muon(hidden, LR_MUON, weight_decay=0.02),
            Muon(planted, PLANTED_LR_SHARE * LR_MUON),
            torch.optim.AdamW(others, LR_ADAM, (0.9, 0.95), weight_decay=0.0),
        )
        self.step, self.n_tokens, self.phase, self.elapsed_s, self.recall = 0, 0, 0, 0.0, 0.0

    def resume(self) -> None:
        """Continues from the folder's checkpoint, if there is one."""
        path = self.folder / "checkpoint.pt"
        if not path.exists():
            return
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        for name in ("step", "n_tokens", "phase", "elapsed_s", "recall"):
            setattr(self, name, state[name])
        self.rng = np.random.default_rng((self.seed, self.rank, self.step))

    def save(self) -> None:
        names = ("step", "n_tokens", "phase", "elapsed_s", "recall")
        state = {name: getattr(self, name) for name in names}
        state |= {"model": self.model.state_dict(), "optimisers": [o.state_dict() for o in self.optimisers]}
        aside = self.folder / "checkpoint.pt.new"
        torch.save(state, aside)
        aside.replace(self.folder / "checkpoint.pt")

    def _advance_phase(self) -> Phase:
        phase = PHASES[self.phase]
        last = self.phase == len(PHASES) - 1
        if not last and (self.elapsed_s > phase.latest * self.time_s or self.recall > phase.enough):
            self.phase += 1
            self.recall = 0.0
        return PHASES[self.phase]

    def _gradients(self, phase: Phase) -> Tensor:
        """Adds up the gradients of both sub-batches, each made by one process if there are two.

        Returns:
            Text loss, answer loss and share of right values (NaN where no value was asked).
        """
        measured = torch.zeros(3)
        if self.rank == 0:
            text, _, _ = step_loss(self.model, text_batch(self.ids, BATCH_TOKENS, phase.n_ctx_text, self.rng))
            text.backward()
            measured[0] = text.item()
        if self.rank == self.n_processes - 1:
            filler, answers, right = step_loss(
                self.model, task_batch(self.maker, BATCH_TOKENS, phase.n_ctx_task, self.rng)
            )
            (FILLER_WEIGHT * filler + ANSWER_WEIGHT * answers).backward()
            measured[1:] = torch.tensor((answers.item(), right))
        if self.n_processes > 1:
            grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.model.parameters()]
            flat = torch.cat([measured, *(g.flatten() for g in grads)])
            dist.all_reduce(flat)
            measured, *parts = flat.split([3, *(g.numel() for g in grads)])
            for p, part in zip(self.model.parameters(), parts, strict=True):
                p.grad = part.view_as(p)
        return measured

    def _time_now(self, started: float) -> float:
        """Seconds of training so far, the same in every process."""
        now = torch.tensor([time.monotonic() - started], dtype=torch.float64)
        if self.n_processes > 1:
            dist.broadcast(now, 0)
        return now.item()

    def run(self, save_every_s: float = 120.0, log_every: int = 20) -> None:
        """Trains until the time is up, saving now and then."""
        started = time.monotonic() - self.elapsed_s
        saved = time.monotonic()
        log = (self.folder / "log.jsonl").open("a", encoding="utf-8")
        mean_text = mean_answer = math.nan
        while self.elapsed_s < self.time_s:
            phase = self._advance_phase()
            scale = lr_scale(self.elapsed_s / self.time_s)
            for optimiser, lr in zip(self.optimisers, self.base_lr, strict=True):
                optimiser.param_groups[0]["lr"] = lr * scale
            measured = self._gradients(phase)
            text, answers, right = measured.tolist()
            self.model.embed_tokens.weight.grad[:, CONSTANT_DIM] = 0
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            for optimiser in self.optimisers:
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
            self.step += 1
            self.n_tokens += sum(max(BATCH_TOKENS, n_ctx) for n_ctx in (phase.n_ctx_text, phase.n_ctx_task))
            if not math.isnan(right):
                self.recall += 0.05 * (right - self.recall)
            mean_text = text if math.isnan(mean_text) else mean_text + 0.05 * (text - mean_text)
            mean_answer = answers if math.isnan(mean_answer) else mean_answer + 0.05 * (answers - mean_answer)
            self.elapsed_s = self._time_now(started)
            if self.rank == 0 and self.step % log_every == 0:
                row = {
                    "step": self.step,
                    "elapsed_s": round(self.elapsed_s, 1),
                    "n_ctx": phase.n_ctx_task,
                    "n_tokens": self.n_tokens,
                    "text_loss": round(mean_text, 4),
                    "answer_loss": round(mean_answer, 4),
                    "recall": round(self.recall, 4),
                    "lr_scale": round(scale, 4),
                }
                print(json.dumps(row), file=log, flush=True)
            if self.rank == 0 and time.monotonic() - saved > save_every_s:
                self.save()
                saved = time.monotonic()
        if self.rank == 0:
            self.save()
