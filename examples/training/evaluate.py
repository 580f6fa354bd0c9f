"""Measures a checkpoint, dense or with a plan: held-out perplexity, and recall by context length and distance."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from .model import Config, TinyLlama
from .plan import Plan
from .shared_attention import run
from .tasks import Document, TaskMaker
from .vocabulary import BOS

LENGTHS = (512, 1024, 2048)
DISTANCES = (0, 256, 512, 1024, 2048)


def load(folder: Path) -> TinyLlama:
    """Reads a checkpoint written by `export`, in f32 arithmetic."""
    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = Config(
        n_layer=raw["num_hidden_layers"],
        n_embd=raw["hidden_size"],
        n_head=raw["num_attention_heads"],
        n_head_kv=raw["num_key_value_heads"],
        head_dim=raw["head_dim"],
        n_ff=raw["intermediate_size"],
        n_vocab=raw["vocab_size"],
        n_ctx=raw["max_position_embeddings"],
    )
    model = TinyLlama(config)
    tensors = load_file(str(folder / "model.safetensors"))
    model.load_state_dict({name.removeprefix("model."): t.float() for name, t in tensors.items()})
    return model.eval().requires_grad_(False)


def windows(ids: np.ndarray, n_ctx: int, n_windows: int) -> list[torch.Tensor]:
    """Non-overlapping sequences of BOS and n_ctx - 1 tokens, spread evenly over ids."""
    n_all = len(ids) // (n_ctx - 1)
    chosen = np.linspace(0, n_all - 1, min(n_windows, n_all)).astype(int)
    return [torch.tensor([BOS, *ids[i * (n_ctx - 1) : (i + 1) * (n_ctx - 1)].tolist()]) for i in chosen]


def compare_on_text(model: TinyLlama, sequences: list[torch.Tensor], plan: Plan) -> dict[str, float]:
    """Perplexity dense and shared, KL divergence (nats) from dense to shared, and how often the top token agrees."""
    dense_plan = Plan.dense(model.config)
    sums: dict[str, float] = defaultdict(float)
    for ids in sequences:
        dense = model.logits(run(model, ids, dense_plan).hidden[0, :-1]).log_softmax(-1)
        shared = model.logits(run(model, ids, plan).hidden[0, :-1]).log_softmax(-1)
        sums["n"] += len(ids) - 1
        sums["dense"] += F.nll_loss(dense, ids[1:], reduction="sum").item()
        sums["shared"] += F.nll_loss(shared, ids[1:], reduction="sum").item()
        sums["kl"] += F.kl_div(shared, dense, reduction="sum", log_target=True).item()
        sums["top1"] += (dense.argmax(-1) == shared.argmax(-1)).sum().item()
    n = sums["n"]
    return {
        "tokens": int(n),
        "perplexity_dense": math.exp(sums["dense"] / n),
        "perplexity_shared": math.exp(sums["shared"] / n),
        "kl_divergence": sums["kl"] / n,
        "same_top1": sums["top1"] / n,
    }


def exams(maker: TaskMaker, n_ctx: int, n_docs: int, seed: int) -> list[Document]:
    """Documents of at most n_ctx tokens: two in three plain, one a chat; six questions in each."""
    rng = np.random.default_rng((seed, n_ctx))
    makers = (maker.exam, maker.exam, maker.chat_exam)
    return [makers[i % 3](n_ctx, 12, 6, rng) for i in range(n_docs)]


def answer(model: TinyLlama, doc: Document, plan: Plan) -> list[tuple[int, bool]]:
    """(distance, answered exactly) for every value. An exact teacher-forced answer is the greedy one."""
    ids = torch.tensor(doc.ids)
    best = model.logits(run(model, ids, plan).hidden[0]).argmax(-1)
    results = []
    for value in doc.values:
        given = best[value.start - 1 : value.start - 1 + value.n_tokens]
        results.append((value.distance, bool((given == ids[value.start : value.start + value.n_tokens]).all())))
    return results


def recall(model: TinyLlama, maker: TaskMaker, plan: Plan, n_docs: int = 48, seed: int = 7) -> dict[str, object]:
    """Exact-match share by context length, and at the greatest length by distance."""
    table: dict[str, object] = {}
    for n_ctx in LENGTHS:
        results = [r for doc in exams(maker, n_ctx, n_docs, seed) for r in answer(model, doc, plan)]
        table[f"context {n_ctx}"] = float(np.mean([right for _, right in results]))
        table[f"context {n_ctx}: questions"] = len(results)
    for low, high in pairwise(DISTANCES):
        inside = [right for distance, right in results if low <= distance < high]
        table[f"distance {low}-{high}"] = float(np.mean(inside)) if inside else None
        table[f"distance {low}-{high}: questions"] = len(inside)
    return table
