"""The float64 numpy model that pysa's engine is held against: llama, qwen2 and qwen3 with shared attention.

Reads a GGUF through the gguf package alone, shares no code with pysa, and is quadratic in memory on purpose: the whole
score matrix of every head is kept, so a follower reads its owner's scores by plain indexing. Used by tests/parity and
tests/property.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import gguf
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Rounding = str | Callable[[Array], Array] | None


class PlanLike(Protocol):
    """What the reference reads of a pysa.Plan."""

    distant: str
    n_sink: int
    n_recent: int
    score_layer: NDArray[np.int32]
    score_head: NDArray[np.int32]
    mass_bias: NDArray[np.float32] | None
    skip_gate: float
    enabled: bool


@dataclass(frozen=True)
class Rope:
    """Cosines and sines (n_tok, n_rot / 2) and whether a pair is (i, i + n_rot / 2) or (2i, 2i + 1)."""

    cos: Array
    sin: Array
    halves: bool

    def __call__(self, x: Array) -> Array:
        """Rotates x (n_tok, n_head, head_dim); dimensions beyond n_rot pass through."""
        n_pair = self.cos.shape[1]
        first = slice(0, n_pair) if self.halves else slice(0, 2 * n_pair, 2)
        second = slice(n_pair, 2 * n_pair) if self.halves else slice(1, 2 * n_pair, 2)
        out = x.copy()
        cos, sin = self.cos[:, None, :], self.sin[:, None, :]
        out[..., first] = x[..., first] * cos - x[..., second] * sin
        out[..., second] = x[..., first] * sin + x[..., second] * cos
        return out


@dataclass
class Trace:
    """What the attention saw: gate[l] is g (n_tok, n_head), NaN where a head's distant set is empty; weight[l] is w."""

    gate: list[Array] = field(default_factory=list)
    weight: list[Array] = field(default_factory=list)

    def gate_margin(self, skip_gate: float) -> float:
        """The smallest |g - skip_gate|: below about 1e-3 rounding may decide whether a distant part is skipped."""
        gaps = [np.abs(g[np.isfinite(g)] - skip_gate) for g in self.gate]
        return float(min((gap.min() for gap in gaps if gap.size), default=np.inf))


def round_rows(x: Array, rounding: Rounding) -> Array:
    """Rows (..., head_dim) as a cache of that type gives them back; None leaves them in float64."""
    if rounding is None:
        return x
    if callable(rounding):
        return rounding(x)
    if rounding == "f32":
        return x.astype(np.float32).astype(np.float64)
    if rounding == "f16":
        return x.astype(np.float32).astype(np.float16).astype(np.float64)
    kind = gguf.GGMLQuantizationType[rounding.upper()]
    rows = np.ascontiguousarray(x, dtype=np.float32)
    restored: Array = gguf.quants.dequantize(gguf.quants.quantize(rows, kind), kind).astype(np.float64).reshape(x.shape)
    return restored


def proximal_and_distant(n_tok: int, n_sink: int, n_recent: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """P(t) and D(t), proximal and distant, as masks (n_tok queries, n_tok keys)."""
    t = np.arange(n_tok)[:, None]
    j = np.arange(n_tok)[None, :]
    causal = j <= t
    proximal = causal & ((j < n_sink) | (j > t - n_recent))
    distant = causal & (j >= n_sink) & (j <= t - n_recent)
    return proximal, distant


class ReferenceModel:
    """One GGUF, dequantised to float64."""

    def __init__(self, path: str | Path) -> None:
        reader = gguf.GGUFReader(str(path))
        self.keys: dict[str, Any] = {name: f.contents() for name, f in reader.fields.items() if f.types}
        self.arch: str = self.keys["general.architecture"]
        if self.arch not in ("llama", "qwen2", "qwen3"):
            raise ValueError(f"{path}: the reference has no architecture {self.arch!r}")
        self.tensors = {
            t.name: gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float64) for t in reader.tensors
        }
        self.n_layer = int(self.key("block_count"))
        self.n_embd = int(self.key("embedding_length"))
        self.n_head = int(self.key("attention.head_count"))
        self.n_head_kv = int(self.key("attention.head_count_kv", self.n_head))
        self.head_dim_k = int(self.key("attention.key_length", self.n_embd // self.n_head))
        self.head_dim_v = int(self.key("attention.value_length", self.n_embd // self.n_head))
        self.eps = float(self.key("attention.layer_norm_rms_epsilon"))
        scale = float(self.key("attention.scale", 0.0)) if self.arch == "llama" else 0.0
        self.kq_scale = scale or 1.0 / np.sqrt(self.head_dim_k)

    def key(self, name: str, default: Any = None) -> Any:
        value = self.keys.get(f"{self.arch}.{name}", default)
        if value is None:
            raise KeyError(f"{self.arch}.{name}")
        return value

    def rope(self, n_tok: int) -> Rope:
        """RoPE for positions 0..n_tok-1: plain, linear or YaRN scaling, divided by rope_freqs if there are any."""
        n_rot = int(self.key("rope.dimension_count", self.head_dim_k))
        base = float(self.key("rope.freq_base", 10000.0))
        pair = np.arange(n_rot // 2, dtype=np.float64)
        inverse = base ** (-2.0 * pair / n_rot)
        if "rope_freqs.weight" in self.tensors:
            inverse = inverse / self.tensors["rope_freqs.weight"]
        factor = float(self.key("rope.scaling.factor", 0.0)) or 1.0
        kind = self.key("rope.scaling.type", "linear")
        magnitude = float(self.key("rope.scaling.attn_factor", 1.0))
        if kind == "linear":
            inverse = inverse / factor
        elif kind == "yarn":
            n_ctx_orig = int(self.key("rope.scaling.original_context_length", self.key("context_length")))

            def boundary(n_turns: float) -> float:
                """The pair whose wave turns n_turns times within the original context."""
                return float(n_rot * np.log(n_ctx_orig / (n_turns * 2.0 * np.pi)) / (2.0 * np.log(base)))

            low = max(0.0, np.floor(boundary(32.0)))
            high = min(n_rot - 1.0, np.ceil(boundary(1.0)))
            extrapolated = 1.0 - np.clip((pair - low) / max(0.001, high - low), 0.0, 1.0)
            inverse = inverse * (extrapolated + (1.0 - extrapolated) / factor)
            magnitude *= 1.0 + 0.1 * np.log(factor)
        elif kind != "none":
            raise ValueError(f"rope.scaling.type: the reference has no {kind!r}")
        angle = np.arange(n_tok, dtype=np.float64)[:, None] * inverse
        return Rope(np.cos(angle) * magnitude, np.sin(angle) * magnitude, halves=self.arch != "llama")

    def linear(self, x: Array, name: str) -> Array:
        y: Array = x @ self.tensors[f"{name}.weight"].T
        bias = self.tensors.get(f"{name}.bias")
        return y if bias is None else y + bias

    def rms_norm(self, x: Array, name: str) -> Array:
        mean_square = np.mean(x * x, axis=-1, keepdims=True)
        normed: Array = x / np.sqrt(mean_square + self.eps) * self.tensors[f"{name}.weight"]
        return normed

    def logits(
        self,
        tokens: Any,
        plan: PlanLike | None = None,
        *,
        kv_round: Rounding = None,
        v_round: Rounding = None,
        trace: Trace | None = None,
    ) -> Array:
        """Logits (n_tok, n_vocab) of the whole prompt.

        Args:
            plan: None or a disabled plan runs dense.
            kv_round: how K and V rows are rounded on their way into the cache: a cache type's name or a function.
            v_round: the same for V alone, where the two types differ.
        """
        ids = np.asarray(tokens, dtype=np.int64)
        n_tok = len(ids)
        if plan is not None and not plan.enabled:
            plan = None
        rope = self.rope(n_tok)
        x = self.tensors["token_embd.weight"][ids]
        scores: list[Array] = []
        keys: list[Array] = []
        for il in range(self.n_layer):
            blk = f"blk.{il}"
            h = self.rms_norm(x, f"{blk}.attn_norm")
            q = self.linear(h, f"{blk}.attn_q").reshape(n_tok, self.n_head, self.head_dim_k)
            k = self.linear(h, f"{blk}.attn_k").reshape(n_tok, self.n_head_kv, self.head_dim_k)
            v = self.linear(h, f"{blk}.attn_v").reshape(n_tok, self.n_head_kv, self.head_dim_v)
            if f"{blk}.attn_q_norm.weight" in self.tensors:
                q, k = self.rms_norm(q, f"{blk}.attn_q_norm"), self.rms_norm(k, f"{blk}.attn_k_norm")
            q, k = rope(q), round_rows(rope(k), kv_round)
            v = round_rows(v, v_round if v_round is not None else kv_round)
            keys.append(k)
            scores.append(np.stack([self.own_score(q, k, head) for head in range(self.n_head)]))
            weight, gate = self.attention_weights(il, q, scores, keys, plan)
            if trace is not None:
                trace.weight.append(weight)
                trace.gate.append(gate)
            n_gqa = self.n_head // self.n_head_kv
            out = np.stack([weight[head] @ v[:, head // n_gqa] for head in range(self.n_head)], axis=1)
            x = x + self.linear(out.reshape(n_tok, -1), f"{blk}.attn_output")
            h = self.rms_norm(x, f"{blk}.ffn_norm")
            gated = self.linear(h, f"{blk}.ffn_gate")
            gated = gated / (1.0 + np.exp(-gated)) * self.linear(h, f"{blk}.ffn_up")
            x = x + self.linear(gated, f"{blk}.ffn_down")
        x = self.rms_norm(x, "output_norm")
        return self.linear(x, "output" if "output.weight" in self.tensors else "token_embd")

    def own_score(self, q: Array, k: Array, head: int) -> Array:
        """kq_scale * q[h](t) . k[kv(h)](j), (n_tok, n_tok), future positions included."""
        return self.kq_scale * (q[:, head] @ k[:, head // (self.n_head // self.n_head_kv)].T)

    def attention_weights(
        self, il: int, q: Array, scores: list[Array], keys: list[Array], plan: PlanLike | None
    ) -> tuple[Array, Array]:
        """w (n_head, n_tok, n_tok) and the gate g (n_tok, n_head) of layer il."""
        n_tok = len(q)
        n_sink, n_recent = (0, n_tok + 1) if plan is None else (plan.n_sink, plan.n_recent)
        proximal, distant = proximal_and_distant(n_tok, n_sink, n_recent)
        weight = np.zeros((self.n_head, n_tok, n_tok))
        gate = np.full((n_tok, self.n_head), np.nan)
        for h in range(self.n_head):
            s = np.where(proximal, scores[il][h], -np.inf)
            source = il if plan is None else int(plan.score_layer[il, h])
            if plan is not None and source >= 0:
                source_head = int(plan.score_head[il, h])
                d = scores[source][source_head] if plan.distant == "scores" else self.own_score(q, keys[source], h)
                bias = 0.0 if plan.mass_bias is None else float(plan.mass_bias[il, h])
                d = np.where(distant, d + bias, -np.inf)
            else:
                d = np.full_like(s, -np.inf)
            m = np.maximum(s.max(axis=1), d.max(axis=1))[:, None]
            e_s, e_d = np.exp(s - m), np.exp(d - m)
            z_s, z_d = e_s.sum(axis=1), e_d.sum(axis=1)
            g = z_s / (z_s + z_d)
            gate[:, h] = np.where(np.isfinite(d).any(axis=1), g, np.nan)
            if plan is not None and plan.skip_gate < 1.0:
                e_d = np.where((g >= plan.skip_gate)[:, None], 0.0, e_d)
            weight[h] = (e_s + e_d) / (e_s + e_d).sum(axis=1, keepdims=True)
        return weight, gate


@lru_cache(maxsize=64)
def _opened(path: str, mtime_ns: int, size_bytes: int) -> ReferenceModel:
    return ReferenceModel(path)


def reference_model(path: str | Path) -> ReferenceModel:
    """The file at `path`, read once as long as it does not change."""
    stat = Path(path).stat()
    return _opened(str(path), stat.st_mtime_ns, stat.st_size)


def reference_logits(
    path: str | Path, tokens: Any, plan: PlanLike | None = None, *, kv_round: Rounding = None, v_round: Rounding = None
) -> Array:
    """Float64 logits (n_tok, n_vocab) of a GGUF under a sharing plan; see ReferenceModel.logits."""
    return reference_model(path).logits(tokens, plan, kv_round=kv_round, v_round=v_round)
