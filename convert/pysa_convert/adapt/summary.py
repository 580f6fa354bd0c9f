"""What a run is about to do, in lines: parameters, plan, data, steps, and about how much memory it takes."""

from __future__ import annotations

from dataclasses import dataclass

from pysa.plan import Plan
from pysa_convert.adapt.data import Rows
from pysa_convert.adapt.objective import N_LOGITS
from pysa_convert.adapt.settings import Settings
from pysa_convert.adapt.trainer import Trainer
from pysa_convert.architectures.base import Dims
from pysa_convert.sources.checkpoint import Checkpoint

GIB = 2.0**30
TORCH_BYTES = 0.4 * GIB  # the libraries, before any model


@dataclass(frozen=True)
class Summary:
    """The lines' sources."""

    settings: Settings
    checkpoint: Checkpoint
    dims: Dims
    plan: Plan | None
    rows: Rows
    trainer: Trainer

    def lines(self) -> list[str]:
        """For people."""
        settings, rows, trainer = self.settings, self.rows, self.trainer
        n_trained = sum(p.numel() for p in trainer.learner.trained.values())
        what = f"adapters of rank {settings.lora}" if settings.lora else "all weights"
        n_ctx = rows.tokens.shape[1]
        length = f"{settings.minutes:g} minutes" if trainer.n_steps is None else f"{trainer.n_steps:,} steps"
        passes = "" if trainer.n_steps is None else f", {trainer.n_steps * settings.n_batch / len(rows):.2f} times over"
        per_step = f"{settings.n_batch} rows, {settings.n_batch * n_ctx:,} tokens, {settings.n_micro} at a time"
        where = f"{trainer.place.device}, {trainer.place.dtype}".replace("torch.", "")
        out = [
            f"{self.checkpoint.folder}: trains {n_trained / 1e6:.2f} M parameters ({what}) on {where}",
            self._plan_line(),
            f"data: {rows.n_documents:,} documents, {rows.n_tokens:,} tokens, {len(rows):,} rows of {n_ctx}{passes}",
            f"steps: {length} of {per_step}; learning rate {settings.peak_lr:g}",
            f"loss: {self._loss()}",
        ]
        if trainer.step:
            out.append(f"going on after step {trainer.step}")
        parts = self.memory()
        detail = ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts.items())
        return [*out, f"memory: about {sum(parts.values()) / GIB:.1f} GiB ({detail})"]

    def memory(self) -> dict[str, float]:
        """Bytes by part; activations are an estimate from the layer's sizes."""
        trainer, dims, settings = self.trainer, self.dims, self.settings
        learner = trainer.learner
        n_trained = sum(p.numel() for p in learner.trained.values())
        weights = sum(p.numel() * p.element_size() for p in learner.model.parameters())
        parts = {"torch": TORCH_BYTES, "weights": float(weights), "gradients and optimiser": 12.0 * n_trained}
        if trainer.teacher is not None and learner.wrapped is None:
            parts["dense model"] = float(weights)
        n_qkv = dims.size("n_q") + 2 * dims.size("n_kv")
        layer = 4.0 * (10 * dims.n_embd + 6 * n_qkv + 4 * dims.n_ff)  # bytes that one token's backward pass needs
        n_kept = 1 if settings.checkpointing else dims.n_layer
        kept = n_kept * layer + (dims.n_layer * 4.0 * (dims.n_embd + n_qkv) if settings.checkpointing else 0.0)
        logits = 4.0 * 4 * min(N_LOGITS, (settings.n_ctx or 0) * settings.n_micro * dims.n_vocab)
        parts["activations"] = kept * (settings.n_ctx or 0) * settings.n_micro + logits
        return parts

    def _plan_line(self) -> str:
        if self.settings.control or self.plan is None:
            return "plan: none, the dense model is trained as a control"
        kinds = self.plan.kinds()
        heads = ", ".join(f"{(kinds == kind).sum()} {kind}" for kind in ("owner", "follower", "local"))
        return f"plan: {self.plan.method}, window {self.plan.n_sink} + {self.plan.n_recent}, heads: {heads}"

    def _loss(self) -> str:
        parts = [(self.settings.kl_weight, "KL to the dense model"), (self.settings.ce_weight, "next-token loss")]
        return " + ".join(f"{weight:g} x {name}" for weight, name in parts if weight)
