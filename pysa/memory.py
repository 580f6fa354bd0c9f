"""`pysa.fit`: the largest context that fits in memory, asked before anything is loaded.

_footprint.py counts what is taken, _memory_budget.py what may be; here is the choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pysa._arguments import CACHE_TYPES, CacheType, PathLike, check_choice, check_int, check_path, check_text
from pysa._footprint import (
    CACHE_ROWS,
    LOGGED_WINDOWS,
    Shape,
    cache_bytes,
    compute_bytes,
    process_bytes,
    read_shape,
)
from pysa._gpu_footprint import NO_GPU, Load, Room
from pysa._memory_budget import available_bytes, parse_memory
from pysa.device import find_device
from pysa.errors import ArgumentError, PlanError
from pysa.plan import Plan

DISTANT_BUDGET_BYTES = 256 << 20  # as Model.session() has it
N_CTX_MAX = 2**31 - 1


@dataclass(frozen=True)
class Fit:
    """A context, and what it takes when it is full. str() gives a table.

    Sizes are of the host's memory but for those that begin with `gpu_`, which are 0 where nothing is to be on a GPU.

    Attributes:
        n_ctx: tokens of a session.
        n_sessions: sessions of that context at the same time.
        memory_bytes: what may be spent.
        weights_bytes: the model's tensors: counted.
        cache_bytes: keys and values of all sessions: counted.
        checkpoint_bytes: rows that windows have forgotten, kept to go back to, at most: counted.
        compute_bytes: activations, scores and graphs of all sessions: an estimate.
        process_bytes: interpreter, engine and vocabulary: an estimate.
        total_bytes: all of these.
        limited_by: why n_ctx is not larger: `memory`, `gpu_memory`, `n_ctx_train` or `n_ctx_max`.
        device: for Model(): the GPU's name; `auto` for one that need not be here; `cpu`.
        n_gpu_layers: for Model(): layers on it, the output counted as one.
        gpu_memory_bytes: what may be spent there.
        gpu_weights_bytes: of these layers: counted.
        gpu_cache_bytes: of these layers, as far as scores need not cross over: counted.
        gpu_compute_bytes: an estimate.
        gpu_total_bytes: all of these.
    """

    n_ctx: int
    n_sessions: int
    memory_bytes: int
    weights_bytes: int
    cache_bytes: int
    checkpoint_bytes: int
    compute_bytes: int
    process_bytes: int
    total_bytes: int
    limited_by: str
    device: str = "cpu"
    n_gpu_layers: int = 0
    gpu_memory_bytes: int = 0
    gpu_weights_bytes: int = 0
    gpu_cache_bytes: int = 0
    gpu_compute_bytes: int = 0
    gpu_total_bytes: int = 0

    def __str__(self) -> str:
        sessions = "" if self.n_sessions == 1 else f", {self.n_sessions} sessions"
        lines = [f"n_ctx {self.n_ctx}{sessions}, limited by {self.limited_by}"]
        lines += _table(
            {
                "weights": self.weights_bytes,
                "cache": self.cache_bytes,
                "checkpoints": self.checkpoint_bytes,
                "compute": self.compute_bytes,
                "process": self.process_bytes,
                "total": self.total_bytes,
                "of": self.memory_bytes,
            }
        )
        if self.gpu_memory_bytes:
            where = self.device if self.device != "auto" else "a GPU"
            lines += [f"{self.n_gpu_layers} layers on {where}"]
            lines += _table(
                {
                    "weights": self.gpu_weights_bytes,
                    "cache": self.gpu_cache_bytes,
                    "compute": self.gpu_compute_bytes,
                    "total": self.gpu_total_bytes,
                    "of": self.gpu_memory_bytes,
                }
            )
        return "\n".join(lines)

    def _exceeded(self) -> str | None:
        """Which memory is not enough."""
        if self.gpu_total_bytes > self.gpu_memory_bytes:
            return "gpu_memory"
        return "memory" if self.total_bytes > self.memory_bytes else None


def _table(sizes: Mapping[str, int]) -> list[str]:
    return [
        f"  {part:<12}{size / 2**20:>10,.0f} MiB{'  estimate' if part in ('compute', 'process') else ''}"
        for part, size in sizes.items()
    ]


def fit(
    path: PathLike,
    memory: int | str | None = None,
    *,
    type_k: CacheType = "f16",
    type_v: CacheType = "f16",
    plan: Plan | Mapping[str, Any] | PathLike | None = None,
    n_sessions: int = 1,
    n_ubatch: int = 512,
    n_ctx_max: int | None = None,
    distant_budget_bytes: int = 0,
    device: str | None = None,
    gpu_memory: int | str | None = None,
    n_gpu_layers: int = -1,
) -> Fit:
    """The largest context with which a model's sessions fit in memory. Reads the file's header only.

    With a GPU: the largest context that the host's memory and the GPU's hold together, and as many layers on the GPU as
    fit beside its cache then. A smaller context, by n_ctx_max, leaves room for more layers; with n_gpu_layers that many
    are on the GPU, and the context is what fits there.

    Args:
        path: the GGUF file.
        memory: bytes for the whole process, weights included, as a number or a text: "8G" and "8GiB" are 8 * 2**30,
            "8GB" is 8 * 10**9. None: what the machine has available now, less a tenth, at least 256 MiB.
        type_k: how keys are kept.
        type_v: how values are kept.
        plan: as for Model.session(); None is the file's own.
        n_sessions: sessions of that context at the same time, 1 or more.
        n_ubatch: as for Model.session(); fewer need less for activations.
        n_ctx_max: the largest context wanted, also beyond what the model was trained for; None: n_ctx_train.
        distant_budget_bytes: as for Model.session(); 0 is 256 MiB.
        device: a GPU as Model() has it, or `auto`; None, `cpu`, and `auto` where there is no GPU: none.
        gpu_memory: bytes of it that may be taken, as for `memory`. None: what it has free now, less what the engine
            leaves alone. Without `device`, a GPU that need not be here.
        n_gpu_layers: layers that are to be on the GPU, the output counted as one; -1: as many as fit.

    Returns:
        The context and what it takes. Model.session(n_ctx=...) takes no memory for it beforehand: a cache grows with
        the tokens held.

    Raises:
        ArgumentError: an argument is of the wrong type or out of range, or not even the smallest context fits.
        DeviceError: there is no such GPU.
        ModelFileError: the file is missing, damaged or inconsistent.
        UnsupportedModelError: an architecture or a feature that pysa does not have.
        PlanError: the plan does not fit the model.
    """
    path = check_path("path", path)
    types = check_choice("type_k", type_k, CACHE_TYPES), check_choice("type_v", type_v, CACHE_TYPES)
    n_sessions = check_int("n_sessions", n_sessions, 1, 2**20)
    n_ubatch = check_int("n_ubatch", n_ubatch, 1, 65536)
    budget = check_int("distant_budget_bytes", distant_budget_bytes, 0, 2**62) or DISTANT_BUDGET_BYTES
    n_most = None if n_ctx_max is None else check_int("n_ctx_max", n_ctx_max, 1, N_CTX_MAX)
    n_bytes = available_bytes() if memory is None else parse_memory(memory)
    room = _room(device, gpu_memory, check_int("n_gpu_layers", n_gpu_layers, -1, N_CTX_MAX))
    shape, own = read_shape(path)
    try:
        return fit_shape(
            shape,
            _resolve(plan, own, path, shape),
            n_bytes,
            types=types,
            n_sessions=n_sessions,
            n_ubatch=n_ubatch,
            n_ctx_max=n_most,
            distant_budget_bytes=budget,
            room=room,
        )
    except ArgumentError as error:
        raise ArgumentError(f"{path}: {error}") from None


def fit_shape(
    shape: Shape,
    plan: Plan,
    n_bytes: int,
    *,
    types: tuple[str, str] = ("f16", "f16"),
    n_sessions: int = 1,
    n_ubatch: int = 512,
    n_ctx_max: int | None = None,
    distant_budget_bytes: int = DISTANT_BUDGET_BYTES,
    room: Room = NO_GPU,
) -> Fit:
    """fit() for a model that need not be there; the arguments have been checked."""
    limited_by, limit = ("n_ctx_train", shape.n_ctx_train) if n_ctx_max is None else ("n_ctx_max", n_ctx_max)

    def taken(n_ctx: int, why: str = "memory") -> Fit:
        gpu = Load(shape, plan, n_ctx, types, n_sessions, n_ubatch, distant_budget_bytes).placed(room)
        cache, window = cache_bytes(shape, plan, n_ctx, *types)
        compute = compute_bytes(shape, plan, n_ctx, n_ubatch, distant_budget_bytes)
        parts = {
            "weights_bytes": gpu.host_weights_bytes,
            "cache_bytes": n_sessions * cache - gpu.cache_bytes,
            "checkpoint_bytes": n_sessions * window * LOGGED_WINDOWS,
            "compute_bytes": n_sessions * (compute + cache // shape.n_layer),  # a growing cache has one layer twice
            "process_bytes": process_bytes(shape),
        }
        return Fit(
            n_ctx,
            n_sessions,
            n_bytes,
            **parts,
            total_bytes=sum(parts.values()),
            limited_by=why,
            device=room.device,
            n_gpu_layers=gpu.n_layers,
            gpu_memory_bytes=room.n_bytes,
            gpu_weights_bytes=gpu.weights_bytes,
            gpu_cache_bytes=gpu.cache_bytes,
            gpu_compute_bytes=gpu.compute_bytes,
            gpu_total_bytes=gpu.total_bytes,
        )

    least = taken(min(CACHE_ROWS, limit))
    if (exceeded := least._exceeded()) is not None:
        raise ArgumentError(_too_little(least, exceeded))
    if (most := taken(limit, limited_by))._exceeded() is None:
        return most
    fits, too_many = 1, -(-limit // CACHE_ROWS)  # blocks of the cache
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if taken(middle * CACHE_ROWS)._exceeded() is None:
            fits = middle
        else:
            too_many = middle
    why = taken(min(too_many * CACHE_ROWS, limit))._exceeded() or "memory"
    return taken(fits * CACHE_ROWS, why) if limit > CACHE_ROWS else least


def _too_little(least: Fit, exceeded: str) -> str:
    needed, found = (
        (least.gpu_total_bytes, least.gpu_memory_bytes)
        if exceeded == "gpu_memory"
        else (least.total_bytes, least.memory_bytes)
    )
    advice = "fewer n_gpu_layers" if exceeded == "gpu_memory" else "a smaller model"
    return (
        f"{exceeded}: not enough: expected at least {needed} bytes for a context of {least.n_ctx} tokens, "
        f"got {found}; choose {advice}, a smaller quantisation or fewer sessions"
    )


def _room(device: str | None, gpu_memory: int | str | None, n_gpu_layers: int) -> Room:
    """The GPU that is to be counted with."""
    n_bytes = None if gpu_memory is None else parse_memory(gpu_memory, "gpu_memory")
    found = None if device is None else find_device(check_text("device", device))
    if found is not None:
        return Room(found.name, found.room_bytes if n_bytes is None else n_bytes, n_gpu_layers)
    if n_bytes is not None and device is None:
        return Room("auto", n_bytes, n_gpu_layers)
    if n_bytes is not None or n_gpu_layers > 0:
        name = "gpu_memory" if n_bytes is not None else "n_gpu_layers"
        raise ArgumentError(f"{name}: there is no GPU: expected device= to name one, got {device!r}")
    return NO_GPU


def _resolve(plan: Plan | Mapping[str, Any] | PathLike | None, own: Plan | None, path: str, shape: Shape) -> Plan:
    """The plan that Model.session(plan=...) runs."""
    if plan is None:
        plan = own or "dense"
    if isinstance(plan, str) and plan == "dense":
        return Plan.dense(shape.n_layer, shape.n_head)
    if isinstance(plan, Mapping):
        plan = Plan.from_json(plan)
    elif not isinstance(plan, Plan):
        plan = Plan.load(check_path("plan", plan))
    try:
        plan.validate(shape.n_head_kv, shape.n_layer, shape.n_head)
    except PlanError as error:
        raise PlanError(f"plan: does not fit {path}: {error}") from error
    return plan
