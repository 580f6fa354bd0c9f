"""Sizes of public models in public quantisations, by arithmetic: docs/edge.md's table is made of them.

Hyper-parameters are those of the models' own config.json; which matrix of a mix gets more bits is libllama's rule.
`python -m helpers.public_shapes`, in tests/, prints the table's rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pysa import ArgumentError, Plan
from pysa._footprint import Shape
from pysa.memory import fit_shape

# Bytes of so many elements.
BLOCKS = {"q4_0": (18, 32), "q8_0": (34, 32), "q4_k": (144, 256), "q6_k": (210, 256), "f32": (4, 1)}


@dataclass(frozen=True)
class PublicModel:
    """A model by its config.json."""

    name: str
    n_layer: int
    n_embd: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_ff: int
    n_vocab: int
    n_ctx_train: int
    n_merges: int
    tied: bool

    def shape(self, mix: str) -> Shape:
        """As pysa counts it, quantised as `mix`: "Q4_0", "Q4_K_M" or "Q8_0"."""
        return Shape(
            self.n_layer,
            self.n_embd,
            self.n_head,
            self.n_head_kv,
            self.head_dim,
            self.head_dim,
            self.n_ff,
            self.n_vocab,
            self.n_ctx_train,
            self.file_bytes(mix) + (self._embedding(mix) if self.tied else 0),
            self.n_merges,
        )

    def file_bytes(self, mix: str) -> int:
        """Bytes of all tensors."""
        plain = mix.lower().removesuffix("_m")
        n_q, n_kv = self.n_head * self.head_dim, self.n_head_kv * self.head_dim
        total = self._embedding(mix) + (0 if self.tied else self._output(mix)) + _bytes(self.n_embd, "f32")
        for il in range(self.n_layer):
            finer = "q6_k" if mix.endswith("_M") and _has_more_bits(il, self.n_layer) else plain
            total += _bytes(self.n_embd * (2 * n_q + n_kv) + 2 * self.n_embd * self.n_ff, plain)
            total += _bytes(self.n_embd * n_kv + self.n_embd * self.n_ff, finer)  # attn_v, ffn_down
            total += _bytes(2 * self.n_embd, "f32")
        return total

    def _embedding(self, mix: str) -> int:
        if self.tied:
            return self._output(mix)
        return _bytes(self.n_vocab * self.n_embd, mix.lower().removesuffix("_m"))

    def _output(self, mix: str) -> int:
        return _bytes(self.n_vocab * self.n_embd, "q8_0" if mix == "Q8_0" else "q6_k")


def _bytes(n: int, kind: str) -> int:
    n_bytes, n_block = BLOCKS[kind]
    return n * n_bytes // n_block


def _has_more_bits(il: int, n_layer: int) -> bool:
    return il < n_layer // 8 or il >= 7 * n_layer // 8 or (il - n_layer // 8) % 3 == 2


_LLAMA = {"n_vocab": 128256, "n_ctx_train": 131072, "n_merges": 280147}
_QWEN = {"n_vocab": 151936, "n_ctx_train": 40960, "n_merges": 151387}
MODELS = {
    model.name: model
    for model in (
        PublicModel("Qwen3-0.6B", 28, 1024, 16, 8, 128, 3072, tied=True, **_QWEN),
        PublicModel("Llama-3.2-1B", 16, 2048, 32, 8, 64, 8192, tied=True, **_LLAMA),
        PublicModel("Qwen3-1.7B", 28, 2048, 16, 8, 128, 6144, tied=True, **_QWEN),
        PublicModel("Llama-3.2-3B", 28, 3072, 24, 8, 128, 8192, tied=True, **_LLAMA),
        PublicModel("Qwen3-4B", 36, 2560, 32, 8, 128, 9728, tied=True, **_QWEN),
        PublicModel("Llama-3.1-8B", 32, 4096, 32, 8, 128, 14336, tied=False, **_LLAMA),
        PublicModel("Qwen3-8B", 36, 4096, 32, 8, 128, 12288, tied=False, **_QWEN),
    )
}

# Memory of a machine, what is left for pysa, and what is worth trying there.
CHOICES = (
    (4, 3, ("Qwen3-0.6B Q8_0", "Llama-3.2-1B Q4_K_M", "Llama-3.2-1B Q8_0", "Qwen3-1.7B Q4_K_M", "Llama-3.2-3B Q4_K_M")),
    (8, 6, ("Qwen3-1.7B Q8_0", "Llama-3.2-3B Q4_K_M", "Qwen3-4B Q4_K_M", "Llama-3.1-8B Q4_K_M", "Qwen3-8B Q4_K_M")),
    (16, 13, ("Qwen3-4B Q8_0", "Llama-3.1-8B Q4_K_M", "Llama-3.1-8B Q8_0", "Qwen3-8B Q4_K_M", "Qwen3-8B Q8_0")),
)


def edge_rows() -> Iterator[str]:
    """The rows of docs/edge.md's table."""
    for machine, gib, choices in CHOICES:
        for choice in choices:
            name, mix = choice.split()
            model = MODELS[name]
            dense = Plan.dense(model.n_layer, model.n_head)
            pairs = Plan.pod_blocks(model.n_layer, model.n_head, 2, n_sink=16, n_recent=1008)
            contexts = [
                _context(model.shape(mix), plan, gib << 30, kind)
                for plan, kind in ((dense, "f16"), (dense, "q8_0"), (pairs, "q8_0"))
            ]
            size = f"{model.file_bytes(mix) / 1e9:.1f} GB"
            yield f"| {machine} GB | {name} | {mix} | {size} | {' | '.join(contexts)} |"


def _context(shape: Shape, plan: Plan, n_bytes: int, kind: str) -> str:
    try:
        found = fit_shape(shape, plan, n_bytes, types=(kind, kind), distant_budget_bytes=64 << 20)
    except ArgumentError:
        return "no"
    return f"{found.n_ctx:,}" + (" (all)" if found.limited_by == "n_ctx_train" else "")


if __name__ == "__main__":
    print("\n".join(edge_rows()))
