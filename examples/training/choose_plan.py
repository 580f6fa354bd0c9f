"""Chooses the example's sharing plan by measuring: what does it cost if one KV group follows, or sees its window only?

The cost is the KL divergence to the dense model on text plus that on recall answers, since perplexity alone would
sacrifice the heads that retrieve. Groups are then taken greedily, cheapest per byte first, measuring the whole plan at
each one and leaving out what costs too much.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .model import TinyLlama
from .plan import Plan
from .shared_attention import Trace, proximal, run, scores
from .tasks import Document


@dataclass(frozen=True)
class Sample:
    """One sequence, the positions whose predictions are compared, and the dense model's answer there."""

    ids: Tensor  # (n_tokens,)
    positions: Tensor  # (n_positions,)
    is_recall: bool
    log_probs: Tensor  # (n_positions, n_vocab)
    trace: Trace


@dataclass(frozen=True)
class Change:
    """What to do with one KV group, and its cost when it is done alone."""

    layer: int
    group: int
    kind: str  # "follower" or "local"
    cost: float

    @property
    def cost_per_row(self) -> float:
        """A local group saves K and V, a follower K only."""
        return self.cost / (2 if self.kind == "local" else 1)


@dataclass
class Search:
    """Samples, head similarities and the plan under construction."""

    model: TinyLlama
    samples: list[Sample]
    similarity: np.ndarray  # (n_layer * n_head, n_layer * n_head)
    plan: Plan
    log: list[str] = field(default_factory=list)

    @property
    def n_gqa(self) -> int:
        return self.model.config.n_head // self.model.config.n_head_kv

    def heads(self, group: int) -> range:
        return range(group * self.n_gqa, (group + 1) * self.n_gqa)

    def say(self, line: str) -> None:
        self.log.append(line)
        print(line, flush=True)


def text_sample(model: TinyLlama, ids: Tensor, n_near: int) -> Sample:
    """Compares at every position that has distant tokens."""
    trace = run(model, ids, Plan.dense(model.config))
    positions = torch.arange(n_near, len(ids) - 1)
    return Sample(ids, positions, False, model.logits(trace.hidden[0, positions]).log_softmax(-1), trace)


def recall_sample(model: TinyLlama, doc: Document) -> Sample:
    """Compares where a value is to be given."""
    ids = torch.tensor(doc.ids)
    trace = run(model, ids, Plan.dense(model.config))
    positions = torch.tensor([v.start - 1 + i for v in doc.values for i in range(v.n_tokens)])
    return Sample(ids, positions, True, model.logits(trace.hidden[0, positions]).log_softmax(-1), trace)


@torch.inference_mode()
def head_similarity(samples: list[Sample], plan: Plan, n_queries: int = 24) -> np.ndarray:
    """1 - Jensen-Shannon divergence (base 2) of every two heads' distant distributions, averaged over queries."""
    n_layer, n_head = plan.score_layer.shape
    total, n_total = torch.zeros(n_layer * n_head, n_layer * n_head), 0
    for sample in samples:
        n_tokens = len(sample.ids)
        last = sample.positions[torch.linspace(0, len(sample.positions) - 1, n_queries).long()]
        far = torch.ones(n_tokens, n_tokens, dtype=torch.bool).tril() & ~proximal(n_tokens, plan.n_sink, plan.n_recent)
        last = last[far[last].any(-1)]
        weights = []
        for layer in range(n_layer):
            for head in range(n_head):
                s = scores(sample.trace, layer, head)[last]
                weights.append(s.masked_fill(~far[last], -torch.inf).softmax(-1))
        p = torch.stack(weights)  # (heads, queries, n_tokens)
        entropy = torch.special.entr(p).sum(-1)
        for i in range(len(p)):
            mixed = torch.special.entr((p[i] + p[i:]) / 2).sum(-1)
            divergence = (mixed - (entropy[i] + entropy[i:]) / 2).sum(-1) / np.log(2)
            total[i, i:] += divergence
            total[i:, i] = total[i, i:].clone()
        n_total += len(last)
    return 1 - (total / n_total).numpy()


def best_source(search: Search, plan: Plan, layer: int, head: int) -> tuple[int, int] | None:
    """The most similar owner head of an earlier layer."""
    n_head = search.model.config.n_head
    owners = [(a, h) for a in range(layer) for h in range(n_head) if plan.kind(a, h) == "owner"]
    row = search.similarity[layer * n_head + head]
    return max(owners, key=lambda owner: row[owner[0] * n_head + owner[1]], default=None)


def apply(search: Search, plan: Plan, layer: int, group: int, kind: str) -> Plan | None:
    """The plan with one more group changed; followers of the group look for another owner. None if one finds none."""
    changed = plan.copy()
    for head in search.heads(group):
        changed.score_layer[layer, head] = changed.score_head[layer, head] = -1
    to_match = [(layer, h) for h in search.heads(group)] if kind == "follower" else []
    for follower in np.argwhere(plan.score_layer == layer):
        il, head = (int(i) for i in follower)
        if il != layer and int(plan.score_head[il, head]) in search.heads(group):
            to_match.append((il, head))
    for il, head in to_match:
        source = best_source(search, changed, il, head)
        if source is None:
            return None
        changed.score_layer[il, head], changed.score_head[il, head] = source
    return changed


def cost(search: Search, plan: Plan, n_samples: int | None = None) -> tuple[float, float]:
    """Mean KL divergence to the dense model (nats) on text and on recall answers."""
    dense = Plan.dense(search.model.config)
    differs = (plan.score_layer != dense.score_layer) | (plan.score_head != dense.score_head)
    start = int(np.argwhere(differs.any(1))[0, 0]) if differs.any() else 0
    sums = {False: [0.0, 0], True: [0.0, 0]}
    for sample in search.samples[:n_samples]:
        hidden = run(search.model, sample.ids, plan, start, sample.trace).hidden
        shared = search.model.logits(hidden[0, sample.positions]).log_softmax(-1)
        entry = sums[sample.is_recall]
        entry[0] += F.kl_div(shared, sample.log_probs, reduction="sum", log_target=True).item()
        entry[1] += len(sample.positions)
    text, recall = (total / max(n, 1) for total, n in (sums[False], sums[True]))
    return text, recall


def single_costs(search: Search) -> Iterator[Change]:
    """Every group alone, as a follower and as a local."""
    config = search.model.config
    for layer in range(config.n_layer):
        for group in range(config.n_head_kv):
            for kind in ("follower", "local"):
                plan = apply(search, search.plan, layer, group, kind)
                if plan is None:
                    continue
                text, recall = cost(search, plan)
                search.say(f"layer {layer:2} group {group} {kind:8} KL text {text:.5f} recall {recall:.5f}")
                yield Change(layer, group, kind, text + recall)


def grow(search: Search, changes: list[Change], target: float, budget: float) -> None:
    """Takes changes, cheapest per byte first, while the whole plan's cost stays within its share of the budget."""
    n_ctx = search.model.config.n_ctx
    for change in sorted(changes, key=lambda c: c.cost_per_row):
        saved = search.plan.saving(search.model.config, n_ctx)
        if saved >= target:
            return
        if search.plan.kind(change.layer, change.group * search.n_gqa) != "owner":
            continue
        plan = apply(search, search.plan, change.layer, change.group, change.kind)
        if plan is None:
            continue
        text, recall = cost(search, plan)
        allowed = budget * (0.25 + 0.75 * plan.saving(search.model.config, n_ctx) / target)
        taken = text + recall <= allowed
        search.say(
            f"{'take' if taken else 'skip'} layer {change.layer:2} group {change.group} {change.kind:8} "
            f"saving {plan.saving(search.model.config, n_ctx):.3f} KL text {text:.5f} recall {recall:.5f}"
        )
        if taken:
            search.plan = plan
