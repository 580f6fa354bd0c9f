"""What a model and its sessions take of memory, from a file's header alone. pysa/memory.py chooses a context by it.

Weights and cache are counted; activations and the process are estimates, whose constants were measured (docs/edge.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pysa import _native
from pysa.errors import ArgumentError
from pysa.plan import Plan

# Bytes of so many elements, of the types a cache may have.
CACHE_BLOCKS = {"f32": (4, 1), "f16": (2, 1), "bf16": (2, 1), "q8_0": (34, 32), "q4_0": (18, 32)}
CACHE_ROWS = 256  # the cache grows in blocks of so many rows
LOGGED_WINDOWS = 5  # rows of four windows at most are kept to go back to, and those of one to undo an evaluation

# Estimates: the interpreter with numpy and the engine; per token and merge of the vocabulary; per node of a graph,
# and of the threads.
PROCESS_BYTES = 48 << 20
TOKEN_BYTES, MERGE_BYTES = 220, 130
NODE_BYTES, SCRATCH_BYTES = 1024, 1 << 20


@dataclass(frozen=True)
class Shape:
    """The numbers of a model that decide what it takes; `weights_bytes` is of its tensors.

    The last four say which of them can go to a GPU: each layer's, the output's, an embedding that is the output too, of
    which the GPU gets a copy, and what `weights_bytes` has for the processor's copy of that one.
    """

    n_layer: int
    n_embd: int
    n_head: int
    n_head_kv: int
    n_embd_head_k: int
    n_embd_head_v: int
    n_ff: int
    n_vocab: int
    n_ctx_train: int
    weights_bytes: int
    n_merges: int = 0
    layer_bytes: tuple[int, ...] = ()
    output_bytes: int = 0
    tied_bytes: int = 0
    repacked_bytes: int = 0

    @classmethod
    def of_file(cls, path: str, header: Mapping[str, Any]) -> Shape:
        """Of a GGUF's header (gguf_read), whose keys have been checked (gguf_plan reads them all)."""
        keys = header["metadata"]
        arch = keys["general.architecture"]
        n_embd = int(keys[f"{arch}.embedding_length"])
        n_head = _count(keys[f"{arch}.attention.head_count"])
        tensors = {name: n_bytes for name, _, _, _, n_bytes in header["tensors"]}
        types = {name: kind for name, kind, *_ in header["tensors"]}
        # An output that is the embedding is copied besides if the processor has a better layout for its type: at most.
        is_plain = types["token_embd.weight"] in ("f32", "f16", "bf16")
        tied = 0 if "output.weight" in tensors else tensors["token_embd.weight"]
        repacked = 0 if is_plain else tied
        n_layer = int(keys[f"{arch}.block_count"])
        layer_bytes = [0] * n_layer
        for name, n_bytes in tensors.items():
            if name.startswith("blk."):
                layer_bytes[int(name.split(".")[1])] += n_bytes
        return cls(
            n_layer=n_layer,
            n_embd=n_embd,
            n_head=n_head,
            n_head_kv=_count(keys.get(f"{arch}.attention.head_count_kv", n_head)),
            n_embd_head_k=int(keys.get(f"{arch}.attention.key_length", n_embd // n_head)),
            n_embd_head_v=int(keys.get(f"{arch}.attention.value_length", n_embd // n_head)),
            n_ff=int(keys[f"{arch}.feed_forward_length"]),
            n_vocab=len(keys["tokenizer.ggml.tokens"]),
            n_ctx_train=int(keys[f"{arch}.context_length"]),
            weights_bytes=sum(tensors.values()) + repacked,
            n_merges=len(keys.get("tokenizer.ggml.merges", ())),
            layer_bytes=tuple(layer_bytes),
            output_bytes=sum(n_bytes for name, n_bytes in tensors.items() if name.startswith("output")),
            tied_bytes=tied,
            repacked_bytes=repacked,
        )

    def row_bytes(self, type_k: str, type_v: str) -> tuple[float, float]:
        """Bytes of one token's key and value of one KV head."""
        sizes = []
        for name, kind, n in (("type_k", type_k, self.n_embd_head_k), ("type_v", type_v, self.n_embd_head_v)):
            n_bytes, n_block = CACHE_BLOCKS[kind]
            if n % n_block:
                raise ArgumentError(
                    f"{name}: does not fit the model: expected a head size that is a multiple of {n_block} for "
                    f"{kind}, got {n}; choose f16"
                )
            sizes.append(n * n_bytes / n_block)
        return sizes[0], sizes[1]


def read_shape(path: str) -> tuple[Shape, Plan | None]:
    """A file's shape, and its plan if it has one.

    Raises:
        ModelFileError, UnsupportedModelError, PlanError: as Model() has them.
    """
    plan = _native.gguf_plan(path)
    shape = Shape.of_file(path, _native.gguf_read(path))
    return shape, None if plan is None else Plan.from_json(plan)


def cache_bytes(
    shape: Shape, plan: Plan, n_ctx: int, type_k: str, type_v: str, first_layer: int = 0
) -> tuple[int, int]:
    """Bytes of a full cache as it is allocated, from a layer on, and of one copy of its window's rows."""
    n_rows = -(-n_ctx // CACHE_ROWS) * CACHE_ROWS
    parts = plan.cache_bytes(n_rows, shape.n_head_kv, *shape.row_bytes(type_k, type_v), first_layer=first_layer)
    return parts["total"], parts["k_window"] + parts["v_window"]


def compute_bytes(shape: Shape, plan: Plan, n_ctx: int, n_ubatch: int, distant_budget_bytes: int) -> int:
    """Bytes that a session's evaluations take besides the cache: an estimate, rather too high."""
    n_tokens = min(n_ubatch, n_ctx)
    n_q, n_out = shape.n_head * shape.n_embd_head_k, shape.n_head * shape.n_embd_head_v
    n_kv = shape.n_head_kv * (shape.n_embd_head_k + shape.n_embd_head_v)
    attention = 3 * shape.n_embd + 3 * n_q + n_out + 2 * n_kv
    feed_forward = 3 * shape.n_embd + 3 * shape.n_ff
    activations = 4 * n_tokens * max(attention, feed_forward) + 8 * shape.n_vocab
    converted = 2 * n_tokens * max(shape.n_ff, n_out, shape.n_embd)  # the inputs of a product, in the weights' type
    n_slots = score_slots(plan)
    one_token = n_ctx * (5 * shape.n_head + 2 * n_slots)
    shared = min(distant_budget_bytes, n_tokens * n_slots * n_ctx * 17 // 8)
    n_nodes = 256 + shape.n_layer * (80 + 40 * shape.n_head_kv + 4 * shape.n_head)
    return activations + converted + max(one_token, shared) + SCRATCH_BYTES + n_nodes * NODE_BYTES


def process_bytes(shape: Shape) -> int:
    """Bytes of the interpreter, the engine and the vocabulary: an estimate."""
    return PROCESS_BYTES + shape.n_vocab * TOKEN_BYTES + shape.n_merges * MERGE_BYTES


def score_slots(plan: Plan) -> int:
    """Heads whose distant weights are kept at the same time, for followers in later layers."""
    if not plan.enabled or plan.distant != "scores":
        return 0
    until: dict[tuple[int, int], int] = {}
    for il, head in np.argwhere(plan.kinds() == "follower"):
        until[int(plan.score_layer[il, head]), int(plan.score_head[il, head])] = int(il)
    return max((sum(a <= il <= last for (a, _), last in until.items()) for il in range(plan.n_layer)), default=0)


def _count(value: Any) -> int:
    """A count of heads: one number, or equal ones for all layers."""
    return int(value[0] if isinstance(value, list) else value)
