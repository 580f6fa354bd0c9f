"""Muon for the hidden matrices: momentum whose update is replaced by its nearest orthogonal matrix.

Source: K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024).
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor


def orthogonalise(g: Tensor, n_steps: int = 5) -> Tensor:
    """Newton-Schulz iteration on a stack of matrices (n, rows, columns), rows <= columns."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.bfloat16()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(n_steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


class Muon(torch.optim.Optimizer):
    """Steps every parameter, all 2-D, with Nesterov momentum; matrices of one shape go through together."""

    def __init__(self, params: list[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                buffer = state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                by_shape[p.shape].append((p, p.grad.lerp(buffer, group["momentum"])))
            for (rows, columns), pairs in by_shape.items():
                g = torch.stack([update for _, update in pairs])
                tall = rows > columns
                update = orthogonalise(g.mT if tall else g)
                update = (update.mT if tall else update).float() * max(1.0, rows / columns) ** 0.5
                for (p, _), u in zip(pairs, update, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(u, alpha=group["lr"])
