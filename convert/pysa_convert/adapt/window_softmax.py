"""One softmax over a window's own scores and another head's distant ones: forward and backward by blocks of queries.

Plain matrix products, so it runs wherever torch does, in float32 or float64. Only one block's scores are held at once;
the backward pass computes them again. Which head follows which is decided in shared_attention.py, the only caller.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

N_BLOCK_CPU = 64  # a block's scores of one head stay in the L2 cache up to a context of 4096
N_SCORES_GPU = 2**26  # scores of all heads of a block: 256 MiB of float32


@dataclass(frozen=True)
class Window:
    """The positions that every head scores itself: `n_sink` first ones and the last `n_recent` (at least 1)."""

    n_sink: int
    n_recent: int


@dataclass(frozen=True)
class Block:
    """Queries [first, end) and the key columns that they see: [0, sink), [sink, band) distant, [band, end).

    The columns [band, mixed) are distant for the later queries of the block and near for the earlier ones.
    """

    first: int
    end: int
    sink: int
    band: int
    mixed: int

    @classmethod
    def of(cls, first: int, end: int, window: Window) -> Block:
        """The columns of the queries [first, end)."""
        sink = min(window.n_sink, end)
        band = max(sink, first - window.n_recent + 1)
        return cls(first, end, sink, band, max(band, end - window.n_recent))

    @property
    def queries(self) -> slice:
        """The rows of q."""
        return slice(self.first, self.end)


class WindowSoftmax(torch.autograd.Function):
    """Attention of heads that follow (`q_far`, `k_far` and `bias` given) or are local (None).

    Shapes: q, k, v, q_far, k_far (n_heads, n_tokens, head_dim), q and q_far scaled; bias (n_heads, 1, 1), a constant;
    the result is as v. Source: docs/format.md, "What a plan means".
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        q_far: Tensor | None,
        k_far: Tensor | None,
        bias: Tensor | None,
        window: Window,
    ) -> Tensor:
        """The heads' outputs."""
        heads = _Heads(q, k, v, _Far.of(q_far, k_far, bias), window)
        out = torch.empty_like(v)
        for block in heads.blocks():
            weights = torch.softmax(heads.scores(block), -1)
            torch.bmm(weights, heads.seen(v, block), out=out[:, block.queries])
        ctx.save_for_backward(q, k, v, q_far, k_far, bias, out)
        ctx.window = window
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of q, k, v, q_far and k_far."""
        q, k, v, q_far, k_far, bias, out = ctx.saved_tensors
        d_out = grad_outputs[0].contiguous()
        with torch.autocast(d_out.device.type, enabled=False):
            gradients = _Heads(q, k, v, _Far.of(q_far, k_far, bias), ctx.window).gradients(d_out, out)
        return (*gradients, None, None)


@dataclass(frozen=True)
class _Far:
    """Who scores the distant tokens: q and k (n_heads, n_tokens, head_dim), and the bias on their scores."""

    q: Tensor
    k: Tensor
    bias: Tensor

    @classmethod
    def of(cls, q: Tensor | None, k: Tensor | None, bias: Tensor | None) -> _Far | None:
        """None for local heads."""
        return None if q is None or k is None or bias is None else cls(q, k, bias)


@dataclass(frozen=True)
class _Heads:
    """The tensors of one call and their geometry.

    The columns of a block's scores are [0, sink), the distant [sink, band), which local heads do not have, [band, end).
    """

    q: Tensor
    k: Tensor
    v: Tensor
    far: _Far | None
    window: Window

    def blocks(self) -> Iterator[Block]:
        """All queries, block by block."""
        n_heads, n_tokens, _ = self.q.shape
        n_block = N_BLOCK_CPU if self.q.device.type == "cpu" else max(64, N_SCORES_GPU // (n_heads * n_tokens))
        for first in range(0, n_tokens, n_block):
            yield Block.of(first, min(first + n_block, n_tokens), self.window)

    def parts(self, block: Block, scores: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Views of the scores' columns: sinks, distant, [band, end) and its beginning [band, mixed)."""
        n_far = 0 if self.far is None else block.band - block.sink
        sinks, distant, band = scores.split([block.sink, n_far, block.end - block.band], 2)
        return sinks, distant, band, band[:, :, : block.mixed - block.band]

    def seen(self, x: Tensor, block: Block) -> Tensor:
        """The rows of k or v in the order of the scores' columns."""
        if self.far is not None or block.sink == block.band:
            return x[:, : block.end]
        return torch.cat((x[:, : block.sink], x[:, block.band : block.end]), 1)

    def is_far(self, block: Block) -> Tensor:
        """(n_queries, mixed - band) bool: distant for this query."""
        t = torch.arange(block.first, block.end, device=self.q.device)[:, None]
        j = torch.arange(block.band, block.mixed, device=self.q.device)
        return j <= t - self.window.n_recent

    def scores(self, block: Block) -> Tensor:
        """(n_heads, n_queries, n_columns) scores, -inf where a query does not see the column."""
        q, n_queries = self.q[:, block.queries], block.end - block.first
        n_columns = block.end if self.far is not None else block.sink + block.end - block.band
        scores = q.new_empty(len(q), n_queries, n_columns)
        sinks, distant, band, mixed = self.parts(block, scores)
        torch.bmm(q, self.k[:, : block.sink].mT, out=sinks)
        torch.bmm(q, self.k[:, block.band : block.end].mT, out=band)
        if self.far is not None:
            q_far = self.far.q[:, block.queries]
            torch.bmm(q_far, self.far.k[:, block.sink : block.band].mT, out=distant)
            distant += self.far.bias
            sourced = torch.bmm(q_far, self.far.k[:, block.band : block.mixed].mT) + self.far.bias
            mixed.copy_(torch.where(self.is_far(block), sourced, mixed))
        else:
            mixed.masked_fill_(self.is_far(block), -math.inf)
        future = torch.ones(n_queries, n_queries, dtype=torch.bool, device=q.device).triu(1)
        scores[:, :, -n_queries:].masked_fill_(future, -math.inf)
        return scores

    def gradients(self, d_out: Tensor, out: Tensor) -> tuple[Tensor | None, ...]:
        """Of q, k, v, and the distant q and k, given that of the output and the output itself."""
        d_q, d_k, d_v = torch.empty_like(self.q), torch.zeros_like(self.k), torch.zeros_like(self.v)
        d_q_far = None if self.far is None else torch.empty_like(self.far.q)
        d_k_far = None if self.far is None else torch.zeros_like(self.far.k)
        mean = (d_out * out).sum(-1, keepdim=True)
        for block in self.blocks():
            q, d = self.q[:, block.queries], d_out[:, block.queries]
            weights = torch.softmax(self.scores(block), -1)
            self._add_seen(d_v, torch.bmm(weights.mT, d), block)
            d_scores = torch.bmm(d, self.seen(self.v, block).mT).sub_(mean[:, block.queries]).mul_(weights)
            sinks, distant, band, mixed = self.parts(block, d_scores)
            if self.far is not None and d_q_far is not None and d_k_far is not None:
                is_far = self.is_far(block)
                sourced, columns = mixed.masked_fill(~is_far, 0.0), slice(block.band, block.mixed)
                mixed.masked_fill_(is_far, 0.0)
                q_far, k_far = self.far.q[:, block.queries], self.far.k
                d_q_far[:, block.queries] = torch.bmm(distant, k_far[:, block.sink : block.band])
                d_q_far[:, block.queries] += torch.bmm(sourced, k_far[:, columns])
                d_k_far[:, block.sink : block.band] += torch.bmm(distant.mT, q_far)
                d_k_far[:, columns] += torch.bmm(sourced.mT, q_far)
            d_q[:, block.queries] = torch.bmm(sinks, self.k[:, : block.sink])
            d_q[:, block.queries] += torch.bmm(band, self.k[:, block.band : block.end])
            d_k[:, : block.sink] += torch.bmm(sinks.mT, q)
            d_k[:, block.band : block.end] += torch.bmm(band.mT, q)
        return d_q, d_k, d_v, d_q_far, d_k_far

    def _add_seen(self, total: Tensor, part: Tensor, block: Block) -> None:
        """Adds rows in the order of the scores' columns to the rows that they came from."""
        if self.far is not None or block.sink == block.band:
            total[:, : block.end] += part
        else:
            total[:, : block.sink] += part[:, : block.sink]
            total[:, block.band : block.end] += part[:, block.sink :]
