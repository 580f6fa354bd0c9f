"""Random valid sharing plans, the one table of attention cases and the one table of tolerances.

Every test of the shared attention takes its cases and its limits from here. Plans are built by the rules of
docs/format.md without calling pysa's own validation, so that a validator that refuses too much is noticed.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from helpers.reference import ReferenceModel, Trace, reference_model
from helpers.tiny_gguf import write_tiny_gguf
from hypothesis import strategies as st
from numpy.typing import NDArray

from pysa import Plan

# -- dimensions ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Dims:
    """A tiny model whose dimensions all differ."""

    arch: str
    n_layer: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_embd: int
    n_ff: int
    head_dim_v: int | None = None

    def write(self, folder: Path, *, dtype: str = "f32", seed: int = 0, **fields: Any) -> Path:
        """The model as a GGUF in `folder`, written once per content."""
        digest = hashlib.sha256(repr(sorted(fields.items())).encode()).hexdigest()[:12]
        name = "-".join(str(value) for value in [*dataclasses.astuple(self), dtype, seed, digest])
        path = folder / f"{name}.gguf"
        if not path.exists():
            shape = {key: value for key, value in dataclasses.asdict(self).items() if key != "arch"}
            write_tiny_gguf(path, self.arch, dtype=dtype, seed=seed, **shape, **fields)
        return path


GQA3 = Dims("llama", n_layer=4, n_head=6, n_head_kv=2, head_dim=32, n_embd=96, n_ff=160)
GQA2 = Dims("qwen3", n_layer=3, n_head=8, n_head_kv=4, head_dim=64, n_embd=128, n_ff=224)
MHA = Dims("qwen2", n_layer=2, n_head=5, n_head_kv=5, head_dim=64, n_embd=320, n_ff=192)
MQA = Dims("llama", n_layer=5, n_head=7, n_head_kv=1, head_dim=96, n_embd=160, n_ff=288)
ODD = Dims("llama", n_layer=3, n_head=9, n_head_kv=1, head_dim=80, n_embd=112, n_ff=176, head_dim_v=48)
WIDE = Dims("qwen3", n_layer=3, n_head=4, n_head_kv=2, head_dim=256, n_embd=144, n_ff=208, head_dim_v=192)
ALL_DIMS = (GQA3, GQA2, MHA, MQA)

# -- plans -----------------------------------------------------------------------------------------------------------

Ints = NDArray[np.int32]


def make_plan(score_layer: Ints, score_head: Ints, n_sink: int, n_recent: int, **fields: Any) -> Plan:
    """A Plan of these sources; fields: distant, mass_bias, skip_gate, method, enabled."""
    defaults = {"method": "custom", "distant": "scores", "mass_bias": None}
    values = {**defaults, **fields}
    return Plan(
        n_sink=n_sink,
        n_recent=n_recent,
        score_layer=score_layer.astype(np.int32),
        score_head=score_head.astype(np.int32),
        **values,
    )


def owners(n_layer: int, n_head: int) -> tuple[Ints, Ints]:
    """(score_layer, score_head) in which every head is an owner."""
    layer = np.repeat(np.arange(n_layer, dtype=np.int32)[:, None], n_head, axis=1)
    head = np.repeat(np.arange(n_head, dtype=np.int32)[None, :], n_layer, axis=0)
    return layer, head


Pick = Callable[[Sequence[Any]], Any]  # chooses one of the values: a generator's choice or Hypothesis' sampled_from


def mixed_sources(dims: Dims, distant: str, pick: Pick, *, with_local: bool = True) -> tuple[Ints, Ints]:
    """Owners, followers and local heads at random.

    "scores": a follower's source is any owner head of any earlier layer. "keys": all owners and followers of a KV group
    take their distant keys from one layer, from the same group there.
    """
    layer, head = owners(dims.n_layer, dims.n_head)
    n_gqa = dims.n_head // dims.n_head_kv
    kinds = ("owner", "follower", "follower", "local") if with_local else ("owner", "follower", "follower")
    for il in range(dims.n_layer):
        for kv in range(dims.n_head_kv):
            group = range(kv * n_gqa, (kv + 1) * n_gqa)
            owned = [
                (a, g)
                for a in range(il)
                for g in (range(dims.n_head) if distant == "scores" else group)
                if layer[a, g] == a
            ]
            group_layer = pick([il, *sorted({a for a, _ in owned})])
            for h in group:
                kind = pick(kinds)
                if kind == "local":
                    layer[il, h] = head[il, h] = -1
                elif distant == "keys" and group_layer != il:
                    layer[il, h], head[il, h] = pick([source for source in owned if source[0] == group_layer])
                elif distant == "scores" and kind == "follower" and owned:
                    layer[il, h], head[il, h] = pick(owned)
    return layer, head


def span_sources(dims: Dims, n_span: int) -> tuple[Ints, Ints]:
    """SA: after every layer, the next n_span - 1 layers follow it head for head; layer 0 stays out."""
    layer, head = owners(dims.n_layer, dims.n_head)
    for il in range(1, dims.n_layer):
        layer[il] = il - (il - 1) % n_span
    return layer, head


def block_sources(dims: Dims, n_block: int) -> tuple[Ints, Ints]:
    """PoD: blocks of layers, whose boundaries differ from KV group to KV group."""
    layer, head = owners(dims.n_layer, dims.n_head)
    n_gqa = dims.n_head // dims.n_head_kv
    for h in range(dims.n_head):
        shift = (h // n_gqa) % n_block
        for il in range(dims.n_layer):
            layer[il, h] = max(0, (il + shift) // n_block * n_block - shift)
    return layer, head


def build_plan(
    kind: str,
    dims: Dims,
    n_sink: int,
    n_recent: int,
    *,
    distant: str = "scores",
    bias: bool = False,
    gate: float = 1.0,
    seed: int = 0,
) -> Plan:
    """A plan of one of the kinds: owners, sa, pod, streaming, mixed."""
    rng = np.random.default_rng(seed)
    if kind == "owners":
        layer, head = owners(dims.n_layer, dims.n_head)
    elif kind == "sa":
        layer, head = span_sources(dims, n_span=2)
    elif kind == "pod":
        layer, head = block_sources(dims, n_block=2)
    elif kind == "streaming":
        layer, head = (np.full((dims.n_layer, dims.n_head), -1, dtype=np.int32) for _ in range(2))
    elif kind == "mixed":
        with_local = n_recent > 0
        layer, head = mixed_sources(dims, distant, lambda v: v[int(rng.integers(len(v)))], with_local=with_local)
    else:
        raise ValueError(kind)
    mass_bias = rng.normal(0.0, 0.7, layer.shape).astype(np.float32) if bias else None
    method = kind if kind in ("sa", "pod") else "custom"
    return make_plan(layer, head, n_sink, n_recent, method=method, distant=distant, mass_bias=mass_bias, skip_gate=gate)


@st.composite
def random_plans(draw: st.DrawFn, dims: Dims, max_recent: int = 80) -> Plan:
    """Any valid plan for `dims` but for the gate, which choose_gate sets; Hypothesis shrinks towards owners."""
    distant = draw(st.sampled_from(["scores", "keys"]))
    shared_attention = draw(st.booleans())
    n_sink = 0 if shared_attention else draw(st.integers(0, 16))
    n_recent = 0 if shared_attention else draw(st.integers(1, max_recent))
    layer, head = mixed_sources(
        dims, distant, lambda values: draw(st.sampled_from(list(values))), with_local=not shared_attention
    )
    mass_bias = None
    if draw(st.booleans()):
        rng = np.random.default_rng(draw(st.integers(0, 2**16)))
        mass_bias = rng.normal(0.0, 0.7, layer.shape).astype(np.float32)
    return make_plan(layer, head, n_sink, n_recent, distant=distant, mass_bias=mass_bias)


def choose_gate(model: ReferenceModel, tokens: Any, plan: Plan, *, kv_round: str | None = None) -> tuple[Plan, float]:
    """The plan with a gate that skips some distant parts, and how far the nearest g stays from it.

    Near the gate a rounding decides and results rightly differ, so the gate goes into a wide gap between the g of this
    prompt. A skip moves the g of later layers: the candidates are tried until one leaves enough room.
    """
    trace = Trace()
    model.logits(tokens, plan, kv_round=kv_round, trace=trace)
    g = np.sort(np.concatenate([gate[np.isfinite(gate)] for gate in trace.gate]))
    g = g[(g > 0.2) & (g < 0.98)]
    if len(g) < 2:
        return plan, np.inf
    widest = np.argsort(np.diff(g))[::-1][:12]
    best = (plan, 0.0)
    for i in widest:
        gated = dataclasses.replace(plan, skip_gate=float(np.float32((g[i] + g[i + 1]) / 2)))
        trace = Trace()
        model.logits(tokens, gated, kv_round=kv_round, trace=trace)
        margin = trace.gate_margin(gated.skip_gate)
        if margin > best[1]:
            best = (gated, margin)
        if margin >= 2e-3:
            break
    return best


# -- cases -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One attention test: a model, a plan, a window, the cache types and a prompt length that is no multiple of 32."""

    name: str
    dims: Dims
    kind: str
    n_sink: int
    n_recent: int
    n_tok: int
    distant: str = "scores"
    bias: bool = False
    gate: bool = False
    type_k: str = "f32"
    type_v: str = "f32"
    seed: int = 0

    def path(self, folder: Path) -> Path:
        return self.dims.write(folder, seed=self.seed)

    def tokens(self) -> NDArray[np.int32]:
        rng = np.random.default_rng(1000 + self.seed)
        return rng.integers(0, 256, self.n_tok).astype(np.int32)

    def plan(self, folder: Path) -> Plan:
        return _case_plan(self, folder)

    def reference(self, folder: Path) -> NDArray[np.float64]:
        """Logits (n_tok, n_vocab) of the float64 model that rounds its cache as the types do."""
        return _case_reference(self, folder)


@cache
def _case_plan(case: Case, folder: Path) -> Plan:
    plan = build_plan(
        case.kind, case.dims, case.n_sink, case.n_recent, distant=case.distant, bias=case.bias, seed=case.seed
    )
    if not case.gate:
        return plan
    gated, margin = choose_gate(reference_model(case.path(folder)), case.tokens(), plan)
    if margin < 1e-3:
        raise AssertionError(f"{case.name}: no gate keeps 1e-3 from every g (best {margin:.1e}); change the seed")
    return gated


@cache
def _case_reference(case: Case, folder: Path) -> NDArray[np.float64]:
    model = reference_model(case.path(folder))
    return model.logits(case.tokens(), case.plan(folder), kv_round=case.type_k, v_round=case.type_v)


CASES: tuple[Case, ...] = (
    Case("owners-window-beyond-prompt", GQA3, "owners", 4, 300, 201),
    Case("owners-window-within-prompt", GQA2, "owners", 3, 37, 131),
    Case("sa", MQA, "sa", 0, 0, 141),
    Case("sa-keys", GQA3, "sa", 0, 0, 99, distant="keys"),
    Case("sa-bias", GQA2, "sa", 0, 0, 77, bias=True),
    Case("pod", GQA3, "pod", 16, 48, 203),
    Case("pod-keys", GQA2, "pod", 5, 29, 171, distant="keys"),
    Case("pod-no-sink", MHA, "pod", 0, 1, 83),
    Case("pod-window-beyond-prompt", MQA, "pod", 2, 150, 117),
    Case("pod-gate", GQA3, "pod", 7, 22, 69, gate=True, seed=3),
    Case("streaming", GQA2, "streaming", 4, 33, 167),
    Case("streaming-window-of-one", GQA3, "streaming", 0, 1, 45),
    Case("mixed", GQA3, "mixed", 4, 21, 233, bias=True, seed=1),
    Case("mixed-keys", MQA, "mixed", 9, 40, 157, distant="keys", bias=True, seed=2),
    Case("mixed-mha", MHA, "mixed", 1, 11, 121, bias=True, seed=4),
    Case("mixed-gate", GQA2, "mixed", 6, 17, 61, bias=True, gate=True, seed=5),
    Case("mixed-keys-gate", GQA3, "mixed", 3, 26, 75, distant="keys", bias=True, gate=True, seed=6),
    Case("mixed-sinks-overlap-window", GQA2, "mixed", 16, 5, 70, bias=True, seed=7),
    Case("mixed-long", GQA3, "mixed", 11, 190, 613, bias=True, seed=8),
    Case("mixed-f16", GQA2, "mixed", 4, 31, 149, bias=True, type_k="f16", type_v="f16", seed=9),
    Case("mixed-keys-f16", GQA3, "mixed", 4, 31, 149, distant="keys", type_k="f16", type_v="f16", seed=10),
    Case("mixed-bf16", GQA3, "mixed", 5, 23, 139, bias=True, type_k="bf16", type_v="bf16", seed=11),
    Case("mixed-q8_0", MQA, "mixed", 6, 27, 137, bias=True, type_k="q8_0", type_v="q8_0", seed=12),
    Case("mixed-q4_0", GQA2, "mixed", 7, 19, 113, bias=True, type_k="q4_0", type_v="q4_0", seed=13),
    Case("mixed-q8_0-f16", GQA3, "mixed", 8, 25, 127, distant="keys", type_k="q8_0", type_v="f16", seed=14),
    Case("mixed-odd-sizes", ODD, "mixed", 5, 24, 151, bias=True, seed=16),
    Case("mixed-odd-sizes-f16", ODD, "mixed", 2, 34, 109, distant="keys", type_k="f16", type_v="f16", seed=17),
    Case("mixed-wide-q8_0", WIDE, "mixed", 3, 28, 97, bias=True, type_k="q8_0", type_v="q8_0", seed=18),
    Case("sa-f16", GQA2, "sa", 0, 0, 103, type_k="f16", type_v="f16", seed=15),
)


def by_name(name: str) -> Case:
    """The case of this name."""
    return next(case for case in CASES if case.name == name)


def cases(*, types: Sequence[str] | None = None, kinds: Sequence[str] | None = None) -> list[Case]:
    """The cases of these K cache types and plan kinds; None: all."""
    return [c for c in CASES if (types is None or c.type_k in types) and (kinds is None or c.kind in kinds)]


# -- tolerances ------------------------------------------------------------------------------------------------------

# Largest difference of a logit from the float64 reference that rounds its cache the same way, as a share of the logits'
# range; (attention, cache type). About three times what was measured over CASES and random plans.
TOLERANCES: dict[tuple[str, str], float] = {
    ("composed", "f32"): 5e-5,  # float32 sums, up to five layers deep
    ("fused", "f32"): 2e-4,  # owners hand their distant weights on in f16
    # From here on a float32 difference can tip a row's element over to the type's next step.
    ("composed", "f16"): 1e-3,
    ("fused", "f16"): 1e-3,
    ("composed", "bf16"): 3e-3,
    ("fused", "bf16"): 3e-3,
    ("composed", "q8_0"): 1.5e-2,  # a step is 1/127 of the largest element of its block of 32
    ("fused", "q8_0"): 1.5e-2,
    ("composed", "q4_0"): 5e-2,  # a step is 1/8
    ("fused", "q4_0"): 5e-2,
}


def relative_error(actual: Any, expected: Any) -> float:
    """The largest difference as a share of the expected values' range."""
    expected = np.asarray(expected, dtype=np.float64)
    return float(np.abs(np.asarray(actual, dtype=np.float64) - expected).max() / np.ptp(expected))
