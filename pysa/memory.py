"""`pysa.fit`: the largest context that fits in memory, asked before anything is loaded.

_footprint.py counts what is taken, _memory_budget.py what may be; here is the choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pysa._arguments import CACHE_TYPES, CacheType, PathLike, check_choice, check_int, check_path
from pysa._footprint import (
    CACHE_ROWS,
    LOGGED_WINDOWS,
    Shape,
    cache_bytes,
    compute_bytes,
    process_bytes,
    read_shape,
)
from pysa._memory_budget import available_bytes, parse_memory
from pysa.errors import ArgumentError, PlanError
from pysa.plan import Plan

DISTANT_BUDGET_BYTES = 256 << 20  # as Model.session() has it
N_CTX_MAX = 2**31 - 1


@dataclass(frozen=True)
class Fit:
    """A context, and what it takes when it is full. str() gives a table.

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
        limited_by: why n_ctx is not larger: `memory`, `n_ctx_train` or `n_ctx_max`.
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

    def __str__(self) -> str:
        sessions = "" if self.n_sessions == 1 else f", {self.n_sessions} sessions"
        parts = ("weights", "cache", "checkpoints", "compute", "process", "total")
        sizes = (
            self.weights_bytes,
            self.cache_bytes,
            self.checkpoint_bytes,
            self.compute_bytes,
            self.process_bytes,
            self.total_bytes,
        )
        lines = [f"n_ctx {self.n_ctx}{sessions}, limited by {self.limited_by}"]
        for part, size in zip(parts, sizes, strict=True):
            estimate = "  estimate" if part in ("compute", "process") else ""
            lines.append(f"  {part:<12}{size / 2**20:>10,.0f} MiB{estimate}")
        return "\n".join([*lines, f"  {'of':<12}{self.memory_bytes / 2**20:>10,.0f} MiB"])


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
) -> Fit:
    """The largest context with which a model's sessions fit in memory. Reads the file's header only.

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

    Returns:
        The context and what it takes. Model.session(n_ctx=...) takes no memory for it beforehand: a cache grows with
        the tokens held.

    Raises:
        ArgumentError: an argument is of the wrong type or out of range, or not even the smallest context fits.
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
) -> Fit:
    """fit() for a model that need not be there; the arguments have been checked."""
    limited_by, limit = ("n_ctx_train", shape.n_ctx_train) if n_ctx_max is None else ("n_ctx_max", n_ctx_max)

    def taken(n_ctx: int, why: str = "memory") -> Fit:
        cache, window = cache_bytes(shape, plan, n_ctx, *types)
        compute = compute_bytes(shape, plan, n_ctx, n_ubatch, distant_budget_bytes)
        parts = {
            "weights_bytes": shape.weights_bytes,
            "cache_bytes": n_sessions * cache,
            "checkpoint_bytes": n_sessions * window * LOGGED_WINDOWS,
            "compute_bytes": n_sessions * (compute + cache // shape.n_layer),  # a growing cache has one layer twice
            "process_bytes": process_bytes(shape),
        }
        return Fit(n_ctx, n_sessions, n_bytes, **parts, total_bytes=sum(parts.values()), limited_by=why)

    least = taken(min(CACHE_ROWS, limit))
    if least.total_bytes > n_bytes:
        raise ArgumentError(
            f"memory: not enough: expected at least {least.total_bytes} bytes for a context of {least.n_ctx} tokens, "
            f"got {n_bytes}; choose a smaller model, a smaller quantisation or fewer sessions"
        )
    if (most := taken(limit, limited_by)).total_bytes <= n_bytes:
        return most
    fits, too_many = 1, -(-limit // CACHE_ROWS)  # blocks of the cache
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if taken(middle * CACHE_ROWS).total_bytes <= n_bytes:
            fits = middle
        else:
            too_many = middle
    return taken(fits * CACHE_ROWS) if limit > CACHE_ROWS else least


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
