"""What is asked of the planner, and the defaults that depend on the model."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from pysa.errors import ArgumentError
from pysa.model import Model
from pysa.planning.budget import Budget

STRATEGIES = ("search", "pod", "sa", "streaming")
MAX_TOKENS = 4096  # of a text, unless more is asked for
MAX_RECENT = 4080  # PoD's window less its 16 sinks
WINDOW_SHARE = 8  # the window's default is one token in so many of a text


@dataclass(frozen=True)
class Settings:
    """What is asked.

    Attributes:
        strategy: one of STRATEGIES.
        n_sink: leading tokens of the window.
        n_recent: last tokens of the window; None: an eighth of a text less the sinks, at most 4080; `sa`: none.
        n_samples: texts, at most; time and memory may allow fewer.
        n_tokens: of a text; None: the model's context, at most 4096.
        n_queries: of each text, for the calibration.
        save: share of the cache's bytes to save at `at` tokens.
        at: None: the model's context.
        threshold: of `pod` (similarity) and `sa` (cosine).
        layers: of `sa`: the layers that follow, as `23-26,27-30`.
        n_follow: of `sa`: how many layers follow.
        only_layers, keep_layers, only_heads, keep_heads: as Limits.of.
        share_only: `search` without local heads.
        budget: what the plan may cost.
        time_s: of the search and the gate together, about.
        memory_bytes: for the texts that the search holds.
    """

    strategy: str = "search"
    n_sink: int = 16
    n_recent: int | None = None
    n_samples: int = 8
    n_tokens: int | None = None
    n_queries: int = 16
    save: float | None = None
    at: int | None = None
    threshold: float | None = None
    layers: str = ""
    n_follow: int | None = None
    only_layers: str = ""
    keep_layers: str = ""
    only_heads: str = ""
    keep_heads: str = ""
    share_only: bool = False
    budget: Budget = field(default_factory=Budget)
    time_s: float = 3600.0
    memory_bytes: int = 2 << 30


def default_recent(n_tokens: int, n_sink: int) -> int:
    """Last tokens of a window that leaves most of a text beyond it."""
    return max(1, min(MAX_RECENT, n_tokens // WINDOW_SHARE - n_sink))


def resolved(settings: Settings, model: Model) -> tuple[Settings, int, int, int]:
    """Settings without open ends for one model, and their n_tokens, n_recent and at.

    Raises:
        ArgumentError: they do not go together, or not with the model.
    """
    s = settings
    if s.strategy not in STRATEGIES:
        raise ArgumentError(f"--strategy: expected one of {', '.join(STRATEGIES)}, got {s.strategy!r}")
    n_tokens, at = s.n_tokens or min(MAX_TOKENS, model.n_ctx_train), s.at or model.n_ctx_train
    if n_tokens > model.n_ctx_train:
        raise ArgumentError(f"--tokens: expected at most the model's context of {model.n_ctx_train}, got {n_tokens}")
    n_recent = s.n_recent
    if n_recent is None:
        n_recent = 0 if s.strategy == "sa" else default_recent(n_tokens, s.n_sink)
    if n_recent == 0 and s.strategy != "sa":
        raise ArgumentError("--recent: expected at least 1 token, got 0; only --strategy sa goes without a window")
    n_sink = s.n_sink if n_recent else 0
    if 2 * (n_sink + n_recent) > n_tokens:
        raise ArgumentError(
            f"--tokens: texts too short for the window of {n_sink} + {n_recent}: expected at least "
            f"{2 * (n_sink + n_recent)} tokens, got {n_tokens}; half of them must lie beyond the window: take longer "
            "texts, or a smaller --recent"
        )
    return replace(s, n_tokens=n_tokens, n_recent=n_recent, at=at, n_sink=n_sink), n_tokens, n_recent, at
