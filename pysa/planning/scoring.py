"""What all measurements share: how sessions are made, texts evaluated side by side, means with their standard errors.

Called by perplexity.py, compare.py and retrieval.py; nothing here knows what is measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pysa._arguments import Attention, CacheType
from pysa.errors import DeviceError
from pysa.model import Model
from pysa.plan import Plan
from pysa.planning.texts import Ids
from pysa.session import Session

Advance = Callable[[int], object]  # called with the tokens evaluated since the last call
Floats = npt.NDArray[np.float64]

LOGITS_BYTES = 64 << 20  # of one session, in float32, held at a time
ROWS_BYTES = 8 << 20  # of the float64 rows worked on at a time
N_UNSCORED = 2048  # tokens evaluated between two calls of `advance` where no logits are wanted


@dataclass(frozen=True)
class Engine:
    """How sessions are made, apart from length and plan; as Model.session has it."""

    type_k: CacheType = "f16"
    type_v: CacheType = "f16"
    n_ubatch: int = 512
    attention: Attention = "auto"
    v_skip: float | None = None
    kv_offload: bool = True

    def session(self, model: Model, n_ctx: int, plan: Plan) -> Session:
        """A session for `n_ctx` tokens."""
        return model.session(
            n_ctx,
            self.type_k,
            self.type_v,
            self.n_ubatch,
            self.attention,
            plan,
            v_skip=self.v_skip,
            kv_offload=self.kv_offload,
        )

    @contextmanager
    def sessions(self, model: Model, n_ctx: int, plans: Mapping[str, Plan]) -> Iterator[dict[str, Session]]:
        """A session per plan, closed in the end."""
        with ExitStack() as stack:
            yield {name: stack.enter_context(self.session(model, n_ctx, plan)) for name, plan in plans.items()}

    def saving(self, model: Model, n_ctx: int, plan: Plan) -> float:
        """Share of the dense cache's bytes that the plan saves at `n_ctx` tokens, by the formula of docs/format.md."""
        sizes = model.cache_bytes(n_ctx, plan, self.type_k, self.type_v)
        return 1.0 - sizes["total"] / sizes["dense"]


@dataclass(frozen=True)
class Estimate:
    """A mean and one standard error of it."""

    value: float
    error: float

    @classmethod
    def of(cls, values: npt.ArrayLike) -> Estimate:
        """The mean of independent values; of a single one, the error is unknown and given as 0."""
        x = np.asarray(values, dtype=np.float64)
        error = float(x.std(ddof=1)) / math.sqrt(x.size) if x.size > 1 else 0.0
        return cls(float(x.mean()), error)

    def exp(self) -> Estimate:
        """The exponential, with the error that follows to first order."""
        value = math.exp(self.value)
        return Estimate(value, value * self.error)


def nothing(_: int) -> None:
    """An `advance` that nobody looks at."""


def log_softmax(logits: npt.NDArray[Any]) -> Floats:
    """(n, n_vocab) logits -> logarithms of probabilities, in float64."""
    x = logits.astype(np.float64)
    x -= x.max(axis=1, keepdims=True)
    x -= np.log(np.exp(x).sum(axis=1, keepdims=True))
    return x


def first_scored(tokens: Ids) -> int:
    """The position from which a text is scored: its second half, so that every prediction has a context."""
    return len(tokens) // 2


def scored_rows(
    sessions: Sequence[Session], tokens: Ids, advance: Advance = nothing
) -> Iterator[tuple[slice, list[Floats]]]:
    """Evaluates a text in all sessions from their start, side by side, and gives what they predict in its second half.

    Logits are held for a few positions at a time, whatever the vocabulary.

    Yields:
        Positions, and per session the logarithms of probabilities (n_positions, n_vocab) of the token after each.

    Raises:
        DeviceError: a model gives NaN or infinity.
    """
    first, end = first_scored(tokens), len(tokens) - 1
    n_vocab = sessions[0].model.n_vocab
    n_rows = max(1, ROWS_BYTES // (8 * n_vocab))
    n_block = max(n_rows, min(sessions[0].n_ubatch, LOGITS_BYTES // (4 * n_vocab)))
    for session in sessions:
        session.reset()
        evaluate(session, tokens[:first], advance)
    for start in range(first, end, n_block):
        block = tokens[start : min(start + n_block, end)]
        logits = [session.eval(block, logits="all") for session in sessions]
        for row in range(0, len(block), n_rows):
            part = slice(start + row, start + min(row + n_rows, len(block)))
            rows = [log_softmax(one[row : row + n_rows]) for one in logits]
            if not all(np.isfinite(one).all() for one in rows):
                raise DeviceError(
                    f"{sessions[0].model.path}: its logits after token {part.start}: expected finite ones"
                )
            yield part, rows
        advance(len(block) * len(sessions))


def evaluate(session: Session, tokens: Ids, advance: Advance = nothing) -> None:
    """Evaluates tokens whose logits nobody wants."""
    for start in range(0, len(tokens), N_UNSCORED):
        batch = tokens[start : start + N_UNSCORED]
        session.eval(batch, logits="none")
        advance(len(batch))


def n_evaluated(samples: Sequence[Ids], n_sessions: int) -> int:
    """Tokens that `scored_rows` will have reported for all samples."""
    return sum(len(tokens) - 1 for tokens in samples) * n_sessions


def losses(rows: Floats, tokens: Ids, part: slice) -> Floats:
    """Negative log-likelihoods, in nats, of the tokens after the positions of `part`."""
    targets = tokens[part.start + 1 : part.stop + 1]
    return -rows[np.arange(len(targets)), targets]
