"""What was written, or would be: the plan in numbers and the cache dense beside shared."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pysa.plan import Plan
from pysa_convert.architectures.base import Dims

CONTEXTS = (4096, 8192, 32768)
N_BYTES_F16 = 2
UNMEASURED = "nothing was measured: this plan is a guess, look at the quality before you use it"


@dataclass
class Report:
    """The result of a conversion; `size_bytes` is None where only quantising tells."""

    source: str
    output: Path
    architecture: str
    outtype: str
    dims: Dims
    plan: Plan | None
    n_tensors: int
    size_bytes: int | None
    written: bool = False
    n_ids_compared: int | None = None
    vocabulary: str = ""
    notes: list[str] = field(default_factory=list)

    def cache_rows(self) -> list[dict[str, Any]]:
        """Bytes of an f16 cache at 4K, 8K, 32K and the file's own context, dense and shared."""
        dims = self.dims
        plan = self.plan or Plan.dense(dims.n_layer, dims.n_head)
        dense = Plan.dense(dims.n_layer, dims.n_head)
        row = (dims.n_head_kv, dims.head_dim * N_BYTES_F16, dims.head_dim_v * N_BYTES_F16)
        rows = []
        for n in sorted({*CONTEXTS, dims.n_ctx}):
            full, shared = dense.cache_bytes(n, *row)["total"], plan.cache_bytes(n, *row)["total"]
            rows.append({"n": n, "dense_bytes": full, "shared_bytes": shared, "saving": 1.0 - shared / full})
        return rows

    def heads(self) -> dict[str, int]:
        """How many heads are owners, followers and local."""
        kinds = (self.plan or Plan.dense(self.dims.n_layer, self.dims.n_head)).kinds()
        return {kind: int((kinds == kind).sum()) for kind in ("owner", "follower", "local")}

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        plan = self.plan
        return {
            "source": self.source,
            "output": str(self.output),
            "written": self.written,
            "architecture": self.architecture,
            "outtype": self.outtype,
            "size_bytes": self.size_bytes,
            "n_tensors": self.n_tensors,
            "vocabulary": self.vocabulary,
            "n_ids_compared": self.n_ids_compared,
            "plan": None if plan is None else {"method": plan.method, "n_sink": plan.n_sink, "n_recent": plan.n_recent},
            "heads": self.heads(),
            "cache_f16": self.cache_rows(),
            "notes": self.notes,
        }

    def lines(self) -> list[str]:
        """For people."""
        size = "size known after quantising" if self.size_bytes is None else _size(self.size_bytes)
        verb = "wrote" if self.written else "would write"
        out = [f"{verb} {self.output}: {self.architecture} {self.outtype}, {size}, {self.n_tensors} tensors"]
        if self.n_ids_compared is not None:
            out.append(f"vocabulary {self.vocabulary}: {self.n_ids_compared} ids equal the checkpoint's own tokenizer")
        if self.plan is None:
            out.append("plan: none, the file runs dense")
        else:
            heads = ", ".join(f"{n} {kind}" for kind, n in self.heads().items() if n)
            window = f"window {self.plan.n_sink} + {self.plan.n_recent}" if self.plan.n_recent else "no window"
            out.append(f"plan: {self.plan.method}, {window}, heads: {heads}")
        out.append("cache (f16)      dense       shared      saved")
        for row in self.cache_rows():
            dense, shared = _size(row["dense_bytes"]), _size(row["shared_bytes"])
            out.append(f"{row['n']:>10,} {dense:>11} {shared:>12} {row['saving']:>9.1%}")
        return out + [f"note: {note}" for note in self.notes]


def _size(n: int) -> str:
    value = float(n)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.2f} GiB"
