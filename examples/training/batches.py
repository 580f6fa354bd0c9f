"""Training batches: rows of library source, or rows of generated tasks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .tasks import ANSWER, NOISE, TEXT, VALUE, Document, TaskMaker
from .vocabulary import BOS


@dataclass(frozen=True)
class Batch:
    """ids (n_rows, n_ctx); targets (n_rows, n_ctx), the next ids; kinds (n_rows, n_ctx), the kind of each target."""

    ids: Tensor
    targets: Tensor
    kinds: Tensor

    @property
    def is_text(self) -> Tensor:
        return self.kinds == TEXT

    @property
    def is_answer(self) -> Tensor:
        return (self.kinds == ANSWER) | (self.kinds == VALUE)

    @property
    def is_value(self) -> Tensor:
        return self.kinds == VALUE


def text_row(ids: np.ndarray, n_ctx: int, rng: np.random.Generator) -> Document:
    """BOS and n_ctx tokens of source from a random place."""
    start = int(rng.integers(len(ids) - n_ctx))
    doc = Document()
    doc.add([BOS], NOISE)
    doc.add(ids[start : start + n_ctx].tolist(), TEXT)
    return doc


def task_row(maker: TaskMaker, n_ctx: int, rng: np.random.Generator) -> Document:
    """Half recall, a third chat, the rest copying."""
    draw = rng.random()
    make = maker.recall if draw < 0.5 else maker.chat if draw < 0.83 else maker.copy
    return make(n_ctx + 1, rng)


def _stack(rows: list[Document], n_ctx: int) -> Batch:
    tokens = torch.tensor([doc.ids[: n_ctx + 1] for doc in rows])
    kinds = torch.tensor([doc.kinds[: n_ctx + 1] for doc in rows])
    return Batch(tokens[:, :-1], tokens[:, 1:], kinds[:, 1:])


def text_batch(ids: np.ndarray, n_tokens: int, n_ctx: int, rng: np.random.Generator) -> Batch:
    """Rows of source, n_tokens in all or one row."""
    return _stack([text_row(ids, n_ctx, rng) for _ in range(max(1, n_tokens // n_ctx))], n_ctx)


def task_batch(maker: TaskMaker, n_tokens: int, n_ctx: int, rng: np.random.Generator) -> Batch:
    """Rows of tasks, n_tokens in all or one row."""
    return _stack([task_row(maker, n_ctx, rng) for _ in range(max(1, n_tokens // n_ctx))], n_ctx)
