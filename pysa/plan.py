"""The sharing plan as data: which head scores its distant tokens, which reuses another head's scores, which has none.

docs/format.md is the specification; native/include/pysa/sharing_plan.h holds the same data in C++. Used by the
converter (to write `pysa.*` keys), by pysa.Model (to override a file's plan) and by people, as JSON.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pysa.errors import PlanError

PLAN_VERSION = 1
DISTANT_KINDS = ("scores", "keys")
KEY_PREFIX = "pysa."
CALIBRATION_PREFIX = "pysa.calibration."
PRUNED_KEY = "pysa.pruned"  # a fact about the file, not part of the plan
U32_MAX = 2**32 - 1

IntGrid = npt.NDArray[np.int32]
FloatGrid = npt.NDArray[np.float32]
CalibrationValue = float | int | str

# field: (GGUF type, required). The order is the order in which the keys are written.
KEY_TYPES: dict[str, tuple[str, bool]] = {
    "version": ("u32", True),
    "enabled": ("bool", False),
    "method": ("string", False),
    "distant": ("string", True),
    "n_sink": ("u32", True),
    "n_recent": ("u32", True),
    "score_layer": ("i32[]", True),
    "score_head": ("i32[]", True),
    "mass_bias": ("f32[]", False),
    "skip_gate": ("f32", False),
}
JSON_REQUIRED = ("version", "distant", "n_sink", "n_recent", "n_layer", "n_head", "score_layer", "score_head")
JSON_OPTIONAL = ("enabled", "method", "skip_gate", "mass_bias", "calibration")


@dataclass(eq=False)
class Plan:
    """One sharing plan.

    Attributes:
        method: a label (`dense`, `sa`, `pod`, `streaming`, `custom`); it decides nothing.
        distant: `scores` (a follower takes its source's scores) or `keys` (its own query on its source's keys).
        n_sink: leading tokens that every head scores itself, in tokens.
        n_recent: last tokens that every head scores itself, in tokens, the current one included.
        score_layer: (n_layer, n_head) int32, source layer; the own layer for an owner, -1 for a local head.
        score_head: (n_layer, n_head) int32, source head in that layer; -1 for a local head.
        mass_bias: (n_layer, n_head) float32 added to the distant scores, or None: all 0.
        skip_gate: share of the softmax mass in the window from which the distant part is skipped; 1.0 never skips.
        enabled: False runs dense.
        calibration: what was measured, by name.
    """

    method: str
    distant: str
    n_sink: int
    n_recent: int
    score_layer: IntGrid
    score_head: IntGrid
    mass_bias: FloatGrid | None = None
    skip_gate: float = 1.0
    enabled: bool = True
    version: int = PLAN_VERSION
    calibration: dict[str, CalibrationValue] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.score_layer = _grid(self.score_layer, "score_layer", np.dtype(np.int32))
        self.score_head = _grid(self.score_head, "score_head", np.dtype(np.int32))
        if self.mass_bias is not None:
            self.mass_bias = _grid(self.mass_bias, "mass_bias", np.dtype(np.float32))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plan) and self.to_json() == other.to_json()

    __hash__ = None  # type: ignore[assignment]  # arrays can be changed in place

    @property
    def n_layer(self) -> int:
        """Layers."""
        return int(self.score_layer.shape[0])

    @property
    def n_head(self) -> int:
        """Query heads of a layer."""
        return int(self.score_layer.shape[1])

    # ---- makers

    @classmethod
    def dense(cls, n_layer: int, n_head: int) -> Plan:
        """Every head an owner: what a file without a plan runs."""
        return cls("dense", "scores", 0, 0, *_owners(n_layer, n_head))

    @classmethod
    def streaming(cls, n_layer: int, n_head: int, n_sink: int = 16, n_recent: int = 4080) -> Plan:
        """Every head local: sinks and window only. Source: StreamingLLM, arXiv 2309.17453."""
        local = np.full((n_layer, n_head), -1, np.int32)
        return cls("streaming", "scores", n_sink, n_recent, local, local.copy())

    @classmethod
    def sa(cls, n_layer: int, n_head: int, spans: Iterable[tuple[int, int]]) -> Plan:
        """Whole layers follow for all tokens. Source: SA, arXiv 2407.12866.

        Args:
            spans: first and last follower, 0-based and inclusive; a span follows the layer before it. Where that layer
                follows another one, both follow the same owner: the weights handed on are the owner's.

        Raises:
            PlanError: a span is empty, overlaps another, or has no layer before it.
        """
        score_layer, score_head = _spans(n_layer, n_head, spans)
        return cls("sa", "scores", 0, 0, score_layer, score_head)

    @classmethod
    def pod_spans(
        cls,
        n_layer: int,
        n_head: int,
        spans: Iterable[tuple[int, int]],
        n_sink: int = 16,
        n_recent: int = 4080,
        distant: str = "scores",
    ) -> Plan:
        """As `sa`, with a window that every layer scores itself. Source: PoD, arXiv 2412.02252, section 3."""
        score_layer, score_head = _spans(n_layer, n_head, spans)
        return cls("pod", distant, n_sink, n_recent, score_layer, score_head)

    @classmethod
    def pod_blocks(
        cls, n_layer: int, n_head: int, block: int, n_sink: int = 16, n_recent: int = 4080, distant: str = "scores"
    ) -> Plan:
        """Uniform blocks of `block` layers that follow the first of the block. Nothing about the model is measured."""
        if not 1 <= block <= n_layer:
            raise PlanError(f"block: expected 1..{n_layer} layers, got {block}")
        starts = range(1, n_layer, block) if block > 1 else ()
        spans = [(first, min(first + block - 1, n_layer) - 1) for first in starts]
        return cls.pod_spans(n_layer, n_head, spans, n_sink, n_recent, distant)

    # ---- what it says

    def kinds(self) -> npt.NDArray[np.str_]:
        """(n_layer, n_head) array of `owner`, `follower` or `local`."""
        layer, head = np.indices(self.score_layer.shape)
        owner = (self.score_layer == layer) & (self.score_head == head)
        return np.where(self.score_layer < 0, "local", np.where(owner, "owner", "follower"))

    def validate(self, n_head_kv: int, n_layer: int | None = None, n_head: int | None = None) -> None:
        """Checks every rule of docs/format.md that can be checked without the file.

        Args:
            n_head_kv: KV heads of each layer of the model.
            n_layer: layers of the model, if known.
            n_head: query heads of each layer of the model, if known.

        Raises:
            PlanError: all faults, the first twenty named.
        """
        faults = list(self._scalar_faults())
        shape = self.score_layer.shape
        if self.score_head.shape != shape:
            faults.append(f"score_head: expected shape {shape} as score_layer, got {self.score_head.shape}")
        if self.mass_bias is not None:
            if self.mass_bias.shape != shape:
                faults.append(f"mass_bias: expected shape {shape}, got {self.mass_bias.shape}")
            if not np.isfinite(self.mass_bias).all():
                faults.append("mass_bias: expected finite values, got NaN or infinity")
        if n_layer is not None and shape[0] != n_layer:
            faults.append(f"score_layer: expected {n_layer} layers as the model has, got {shape[0]}")
        if n_head is not None and shape[1] != n_head:
            faults.append(f"score_layer: expected {n_head} heads as the model has, got {shape[1]}")
        if n_head_kv < 1 or shape[1] % max(n_head_kv, 1):
            faults.append(f"n_head_kv: expected a divisor of {shape[1]} heads, got {n_head_kv}")
        if self.score_head.shape == shape:
            faults += self._source_faults(n_head_kv)
        raise_plan_faults("plan", faults)

    def _scalar_faults(self) -> Iterable[str]:
        if self.version != PLAN_VERSION:
            yield f"version: expected {PLAN_VERSION}, got {self.version!r}"
        if self.distant not in DISTANT_KINDS:
            yield f"distant: expected one of {', '.join(DISTANT_KINDS)}, got {self.distant!r}"
        if not isinstance(self.method, str) or not self.method:
            yield f"method: expected a name, got {self.method!r}"
        for name, value in (("n_sink", self.n_sink), ("n_recent", self.n_recent)):
            if not 0 <= value <= 2**31 - 1:
                yield f"{name}: expected 0..2147483647 tokens, got {value}"
        if not (math.isfinite(self.skip_gate) and 0.0 < self.skip_gate <= 1.0):
            yield f"skip_gate: expected a number above 0, at most 1, got {self.skip_gate}"
        if self.n_recent == 0 and self.n_sink != 0:
            yield f"n_recent: expected at least 1 where n_sink is {self.n_sink}, got 0"

    def _source_faults(self, n_head_kv: int) -> list[str]:
        faults: list[str] = []
        n_layer, n_head = self.score_layer.shape
        kinds = self.kinds()
        for il, h in np.ndindex(n_layer, n_head):
            layer, head = int(self.score_layer[il, h]), int(self.score_head[il, h])
            where = f"layer {il} head {h}"
            if layer == -1 and head == -1:
                if self.n_recent == 0:
                    faults.append(f"{where}: a local head needs a window: expected n_recent of at least 1, got 0")
            elif not (0 <= layer < n_layer and 0 <= head < n_head):
                faults.append(f"{where}: expected a source in 0..{il}, 0..{n_head - 1} or -1, -1, got {layer}, {head}")
            elif kinds[il, h] == "follower":
                if layer >= il:
                    faults.append(f"{where}: expected a source in an earlier layer, got layer {layer} head {head}")
                elif kinds[layer, head] != "owner":
                    found = f"layer {layer} head {head}, a {kinds[layer, head]}"
                    faults.append(f"{where}: expected an owner as the source, got {found}")
        if self.distant == "keys" and not faults and n_head_kv > 0 and n_head % n_head_kv == 0:
            faults += self._keys_faults(n_head // n_head_kv)
        return faults

    def _keys_faults(self, n_gqa: int) -> Iterable[str]:
        groups = np.arange(self.n_head) // n_gqa
        for il, group in np.ndindex(self.n_layer, self.n_head // n_gqa):
            heads = np.flatnonzero((groups == group) & (self.score_layer[il] >= 0))
            layers = sorted({int(self.score_layer[il, h]) for h in heads})
            if len(layers) > 1:
                yield f"layer {il} KV head {group}: `keys` expects one source layer for the group, got {layers}"
            for h in heads:
                if groups[self.score_head[il, h]] != group:
                    found = int(self.score_head[il, h])
                    yield f"layer {il} head {h}: `keys` expects a source in KV group {group}, got head {found}"

    def cache_bytes(
        self,
        n: int,
        n_head_kv: int,
        row_bytes_k: float,
        row_bytes_v: float,
        n_slack: int = 0,
        first_layer: int = 0,
    ) -> dict[str, int]:
        """Bytes of the split cache that hold `n` tokens: the formula of docs/format.md, by part.

        Args:
            n: tokens held.
            n_head_kv: KV heads of each layer.
            row_bytes_k: bytes of one token's key of one KV head.
            row_bytes_v: bytes of one token's value of one KV head.
            n_slack: ring rows beyond n_sink + n_recent.
            first_layer: layers before it are not counted.

        Returns:
            `k_full`, `v_full`, `k_window`, `v_window` and `total`, in bytes.
        """
        heads_k, heads_v = self.full_heads(n_head_kv, first_layer)
        n_all = (self.n_layer - first_layer) * n_head_kv
        has_window = self.n_recent > 0 or self.n_sink > 0
        n_window = min(n, self.n_sink + self.n_recent + n_slack) if has_window else 0
        parts = {
            "k_full": int(n * heads_k * row_bytes_k),
            "v_full": int(n * heads_v * row_bytes_v),
            "k_window": int(n_window * (n_all - heads_k) * row_bytes_k),
            "v_window": int(n_window * (n_all - heads_v) * row_bytes_v),
        }
        return {**parts, "total": sum(parts.values())}

    def full_heads(self, n_head_kv: int, first_layer: int = 0) -> tuple[int, int]:
        """KV heads, over all layers from `first_layer` on, whose K and whose V are kept for every token."""
        if not self.enabled:
            n_all = (self.n_layer - first_layer) * n_head_kv
            return n_all, n_all
        groups = self.kinds().reshape(self.n_layer, n_head_kv, -1)[first_layer:]
        return int((groups == "owner").any(2).sum()), int((groups != "local").any(2).sum())

    # ---- JSON

    def to_json(self) -> dict[str, Any]:
        """The plan as plan.json's dict; the native module takes this dict."""
        out: dict[str, Any] = {
            "version": int(self.version),
            "enabled": bool(self.enabled),
            "method": self.method,
            "distant": self.distant,
            "n_sink": int(self.n_sink),
            "n_recent": int(self.n_recent),
            "n_layer": self.n_layer,
            "n_head": self.n_head,
            "skip_gate": float(self.skip_gate),
            "score_layer": self.score_layer.tolist(),
            "score_head": self.score_head.tolist(),
        }
        if self.mass_bias is not None:
            out["mass_bias"] = self.mass_bias.tolist()
        if self.calibration:
            out["calibration"] = dict(self.calibration)
        return out

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str = "plan") -> Plan:
        """Reads plan.json's dict; unknown or missing keys and wrong types are refused, all faults at once.

        Raises:
            PlanError: naming `where` and every fault.
        """
        if not isinstance(data, Mapping):
            raise PlanError(f"{where}: expected an object, got {type(data).__name__}")
        faults = [f"{key!r}: unknown key" for key in sorted(set(data) - set(JSON_REQUIRED) - set(JSON_OPTIONAL))]
        faults += [f"{key!r}: missing" for key in JSON_REQUIRED if key not in data]
        for key, kinds in _JSON_TYPES.items():
            value = data.get(key)
            if key in data and (not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)):
                faults.append(f"{key!r}: expected {kinds[0].__name__}, got {type(value).__name__}")
        raise_plan_faults(where, faults)
        shape = (data["n_layer"], data["n_head"])
        grids: dict[str, Any] = {}
        for key, kind in (("score_layer", int), ("score_head", int), ("mass_bias", float)):
            if data.get(key) is not None:
                grids[key] = _read_grid(data[key], key, shape, kind, faults)
        faults += [
            f"calibration.{key}: expected a number or a string, got {type(value).__name__}"
            for key, value in data.get("calibration", {}).items()
            if isinstance(value, bool) or not isinstance(value, (int, float, str))
        ]
        raise_plan_faults(where, faults)
        scalars = {k: data[k] for k in ("version", "enabled", "distant", "n_sink", "n_recent") if k in data}
        return cls(
            method=data.get("method", "custom"),
            skip_gate=float(data.get("skip_gate", 1.0)),
            calibration=dict(data.get("calibration", {})),
            **scalars,
            **grids,
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Reads a plan.json.

        Raises:
            PlanError: the file cannot be read, is no JSON or no plan.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
            data = json.loads(text)
        except OSError as error:
            raise PlanError(f"{path}: cannot be read: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise PlanError(f"{path}: expected JSON in UTF-8: {error}") from error
        return cls.from_json(data, str(path))

    def save(self, path: str | os.PathLike[str], force: bool = False) -> None:
        """Writes a plan.json, one layer a line; an existing file is replaced only with `force`.

        Raises:
            PlanError: the file exists, or cannot be written.
        """
        target = Path(path)
        if target.exists() and not force:
            raise PlanError(f"{target}: exists; pass force to replace it")
        temporary = target.with_name(f".{target.name}.tmp-{os.getpid()}")
        try:
            with open(temporary, "w", encoding="utf-8") as out:
                out.write(_dump(self.to_json()))
                out.flush()
                os.fsync(out.fileno())
            os.replace(temporary, target)
        except OSError as error:
            raise PlanError(f"{target}: cannot be written: {error.strerror}") from error
        finally:
            temporary.unlink(missing_ok=True)

    # ---- GGUF keys

    def to_keys(self) -> dict[str, tuple[str, Any]]:
        """The `pysa.*` keys in the order of writing: key -> (GGUF type, value); array types end in `[]`."""
        keys: dict[str, tuple[str, Any]] = {}
        for name, (kind, _) in KEY_TYPES.items():
            value = getattr(self, name)
            if value is not None:
                keys[KEY_PREFIX + name] = (kind, value.ravel().tolist() if isinstance(value, np.ndarray) else value)
        for name, value in self.calibration.items():
            kind = "string" if isinstance(value, str) else "i64" if isinstance(value, int) else "f64"
            keys[CALIBRATION_PREFIX + name] = (kind, value)
        return keys

    @classmethod
    def from_keys(cls, metadata: Mapping[str, Any], n_layer: int, n_head: int) -> Plan | None:
        """Reads the plan from a GGUF's metadata; None if the file has no `pysa.version`.

        Raises:
            PlanError: a key is missing, of a wrong type or length.
        """
        if KEY_PREFIX + "version" not in metadata:
            return None
        data: dict[str, Any] = {"n_layer": n_layer, "n_head": n_head}
        faults: list[str] = []
        for name, (kind, required) in KEY_TYPES.items():
            value = metadata.get(KEY_PREFIX + name)
            if value is None:
                faults += [f"{KEY_PREFIX}{name}: missing"] if required else []
            elif kind.endswith("[]"):
                flat = list(value) if isinstance(value, (list, tuple, np.ndarray)) else None
                if flat is None or len(flat) != n_layer * n_head:
                    found = type(value).__name__ if flat is None else f"{len(flat)} values"
                    faults.append(f"{KEY_PREFIX}{name}: expected {n_layer * n_head} values, got {found}")
                else:
                    data[name] = [flat[il * n_head : (il + 1) * n_head] for il in range(n_layer)]
            else:
                data[name] = value
        known = {KEY_PREFIX + name for name in KEY_TYPES} | {PRUNED_KEY}
        unknown = [k for k in metadata if k.startswith(KEY_PREFIX) and not k.startswith(CALIBRATION_PREFIX)]
        faults += [f"{key}: unknown key" for key in sorted(set(unknown) - known)]
        raise_plan_faults("plan", faults)
        calibration = {k[len(CALIBRATION_PREFIX) :]: v for k, v in metadata.items() if k.startswith(CALIBRATION_PREFIX)}
        return cls.from_json({**data, **({"calibration": calibration} if calibration else {})})


def raise_plan_faults(where: str, faults: Sequence[str]) -> None:
    """Raises one PlanError for all faults: the first twenty are named, the rest counted."""
    if not faults:
        return
    if len(faults) == 1:
        raise PlanError(f"{where}: {faults[0]}")
    shown = "".join(f"\n  - {fault}" for fault in faults[:20])
    more = f"\n  and {len(faults) - 20} more" if len(faults) > 20 else ""
    raise PlanError(f"{where}: {len(faults)} faults:{shown}{more}")


_JSON_TYPES: dict[str, tuple[type, ...]] = {
    "version": (int,),
    "enabled": (bool,),
    "method": (str,),
    "distant": (str,),
    "n_sink": (int,),
    "n_recent": (int,),
    "n_layer": (int,),
    "n_head": (int,),
    "skip_gate": (float, int),
    "score_layer": (list,),
    "score_head": (list,),
    "mass_bias": (list, type(None)),
    "calibration": (dict,),
}


def _grid(values: Any, name: str, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    try:
        grid = np.array(values, dtype=dtype)
    except (OverflowError, TypeError, ValueError) as error:
        raise PlanError(f"{name}: expected an array of {dtype}: {error}") from error
    if grid.ndim != 2 or 0 in grid.shape:
        raise PlanError(f"{name}: expected shape (n_layer, n_head), got {grid.shape}")
    return grid


def _read_grid(rows: Any, key: str, shape: tuple[int, int], kind: type, faults: list[str]) -> list[list[Any]] | None:
    """The rows of a JSON grid if each has the stated length and type; a fault otherwise."""
    if len(rows) != shape[0]:
        faults.append(f"{key!r}: expected {shape[0]} rows, got {len(rows)}")
        return None
    for il, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != shape[1]:
            found = len(row) if isinstance(row, list) else type(row).__name__
            faults.append(f"{key!r} row {il}: expected {shape[1]} values, got {found}")
            return None
        for value in row:
            wrong = isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else int)
            if wrong or (kind is int and not -(2**31) <= value < 2**31):
                faults.append(f"{key!r} row {il}: expected {kind.__name__} values, got {value!r}")
                return None
    return list(rows)


def _owners(n_layer: int, n_head: int) -> tuple[IntGrid, IntGrid]:
    layer, head = np.indices((n_layer, n_head), dtype=np.int32)
    return layer, head


def _spans(n_layer: int, n_head: int, spans: Iterable[tuple[int, int]]) -> tuple[IntGrid, IntGrid]:
    score_layer, score_head = _owners(n_layer, n_head)
    n_taken = 0
    for first, last in sorted(spans):
        if not max(n_taken, 1) <= first <= last < n_layer:
            expected = f"first layer {max(n_taken, 1)} or later, last layer {n_layer - 1} or earlier, in order"
            raise PlanError(f"layers {first}-{last}: expected {expected}")
        score_layer[first : last + 1] = score_layer[first - 1]
        n_taken = last + 1
    return score_layer, score_head


def _dump(data: Mapping[str, Any]) -> str:
    """JSON with one row of a grid a line, so that a plan can be read and edited."""
    items = []
    for key, value in data.items():
        if key in ("score_layer", "score_head", "mass_bias"):
            text = "[\n" + ",\n".join("    " + json.dumps(row) for row in value) + "\n  ]"
        else:
            text = json.dumps(value, ensure_ascii=False)
        items.append(f"  {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(items) + "\n}\n"
