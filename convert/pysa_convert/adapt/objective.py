"""What is minimised: kl_weight * KL(dense || learner) + ce_weight * next-token loss, in nats per scored token.

Logits are made for a chunk of tokens at a time, so that neither a long context nor a large vocabulary fills the memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Linear

N_LOGITS = 2**24  # of one chunk: 64 MiB in float32


@dataclass
class Losses:
    """Sums over `n` scored tokens, in nats."""

    kl: float = 0.0
    ce: float = 0.0
    n: int = 0

    def add(self, other: Losses) -> None:
        """Takes another part of the same step in."""
        self.kl, self.ce, self.n = self.kl + other.kl, self.ce + other.ce, self.n + other.n


@dataclass(frozen=True)
class Objective:
    """The weights of the two losses."""

    kl_weight: float
    ce_weight: float

    def value(self, losses: Losses) -> float:
        """The loss per token."""
        return (self.kl_weight * losses.kl + self.ce_weight * losses.ce) / losses.n

    def __call__(
        self, hidden: Tensor, targets: Tensor, head: Linear, dense: tuple[Tensor, Linear] | None, n_step: int
    ) -> Losses:
        """Losses of some tokens; where gradients are on, adds those of their share of the step.

        Args:
            hidden: (n, n_embd) of the learner; its gradient and the head's are added to.
            targets: (n,) the next tokens.
            head: from hidden to logits.
            dense: hidden states and head of the dense model; None leaves the KL divergence out (0).
            n_step: scored tokens of the whole step, by which the gradient is divided.
        """
        losses = Losses(n=len(targets))
        for first in range(0, len(targets), self._n_chunk(head)):
            chunk = slice(first, first + self._n_chunk(head))
            logits = _logits(head, hidden[chunk])
            log_q = F.log_softmax(logits.detach().float(), -1)
            wanted = targets[chunk, None]
            losses.ce -= float(log_q.gather(1, wanted).sum())
            log_p = None
            if dense is not None:
                with torch.no_grad():
                    log_p = F.log_softmax(_logits(dense[1], dense[0][chunk]).float(), -1)
                losses.kl += float(F.kl_div(log_q, log_p, log_target=True, reduction="sum"))
            if torch.is_grad_enabled():
                logits.backward(self._gradient(log_q, log_p, wanted).div_(n_step).to(logits.dtype))
        return losses

    def _gradient(self, log_q: Tensor, log_p: Tensor | None, wanted: Tensor) -> Tensor:
        """Of the loss by the learner's logits: softmax less the mixture of the two targets, in closed form."""
        kl_weight = 0.0 if log_p is None else self.kl_weight
        gradient = log_q.exp().mul_(kl_weight + self.ce_weight)
        if log_p is not None:
            gradient.sub_(log_p.exp_(), alpha=kl_weight)
        return gradient.scatter_add_(1, wanted, gradient.new_full(wanted.shape, -self.ce_weight))

    def _n_chunk(self, head: Linear) -> int:
        return max(1, N_LOGITS // int(head.weight.shape[0]))


def _logits(head: Linear, hidden: Tensor) -> Tensor:
    """In the head's own type: bf16 logits would blur small divergences."""
    with torch.autocast(hidden.device.type, enabled=False):
        out: Tensor = head(hidden.to(head.weight.dtype))
        return out
