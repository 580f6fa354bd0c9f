"""`pysa inspect`: gathers what a model is, what its plan says and what its cache costs. render.py draws it."""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from typing import Any

from pysa.cli.console import Console
from pysa.cli.render import CACHE_PARTS, inspection_lines
from pysa.model import Model
from pysa.plan import Plan

LENGTHS = (4096, 8192, 32768, 131072)  # tokens


@dataclass
class CacheRow:
    """Bytes of a cache that holds `n` tokens, as Model.cache_bytes has them; `saving` is a share of `dense`."""

    n: int
    bytes: dict[str, int]
    saving: float


@dataclass
class Inspection:
    """What is known about one file."""

    model: dict[str, Any]
    tokenizer: dict[str, Any]
    plan: Plan | None
    n_ctx_train: int
    type_k: str
    type_v: str
    cache: list[CacheRow]

    def to_json(self) -> dict[str, Any]:
        """As one JSON object; `plan` is plan.json's dict with the number of heads of each kind."""
        plan = None
        if self.plan is not None:
            kinds = self.plan.kinds()
            heads = {kind: int((kinds == kind).sum()) for kind in ("owner", "follower", "local")}
            plan = {**self.plan.to_json(), "heads": heads}
        cache = {"type_k": self.type_k, "type_v": self.type_v, "at": [asdict(row) for row in self.cache]}
        return {"model": self.model, "tokenizer": self.tokenizer, "plan": plan, "cache": cache}


def inspect_model(model: Model, options: argparse.Namespace) -> Inspection:
    """Gathers everything; nothing is allocated for it."""
    plan = model.resolve_plan(options.plan)
    rows = []
    for n in LENGTHS:
        report = model.cache_bytes(n, options.plan, options.type_k, options.type_v)
        sizes = {part: report[part] for part in CACHE_PARTS}
        rows.append(CacheRow(n, sizes, 1.0 - sizes["total"] / sizes["dense"]))
    return Inspection(
        _model_facts(model), _tokenizer_facts(model), plan, model.n_ctx_train, options.type_k, options.type_v, rows
    )


def _model_facts(model: Model) -> dict[str, Any]:
    metadata, native = model.metadata, model.native
    return {
        "file": model.path,
        "name": str(metadata.get("general.name", "")) or "unnamed",
        "architecture": model.arch,
        "n_layer": model.n_layer,
        "n_embd": model.n_embd,
        "n_head": model.n_head,
        "n_head_kv": model.n_head_kv,
        "n_embd_head_k": native.n_embd_head_k,
        "n_embd_head_v": native.n_embd_head_v,
        "n_ctx_train": model.n_ctx_train,
        "pruned": native.pruned,
        "size_bytes": model.size_bytes,
    }


def _tokenizer_facts(model: Model) -> dict[str, Any]:
    metadata = model.metadata
    return {
        "kind": str(metadata.get("tokenizer.ggml.model", "unknown")),
        "pre": str(metadata.get("tokenizer.ggml.pre", "default")),
        "n_vocab": model.n_vocab,
        "chat_template": "tokenizer.chat_template" in metadata,
    }


def run(options: argparse.Namespace, console: Console) -> int:
    """Inspects and prints; the exit status."""
    with Model(options.model, use_repack=False, device="cpu") as model:
        inspection = inspect_model(model, options)
    if options.json:
        console.json(inspection.to_json())
    else:
        console.lines(inspection_lines(inspection, console))
    return 0
