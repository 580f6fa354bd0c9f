"""`Context`: a session with what llama-cpp-python keeps beside it: the position, the tokens, the logits.

pysa.Llama has one, and another for a call that comes while a stream is under way. Locks are the caller's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from pysa._arguments import Tokens, check_int, check_tokens
from pysa.errors import ContextFullError
from pysa.prefix import Reuse, common_prefix, evaluate_prompt, rewind
from pysa.prefix_cache import settings_of

if TYPE_CHECKING:
    from pysa.prefix_cache import PrefixCache
    from pysa.session import Session

Ids = npt.NDArray[np.int32]
Logits = npt.NDArray[np.float32]

WORTH_KEEPING = 256  # new tokens after which a session is written to the cache folder again


class Driven(Protocol):
    """A Completion or ChatCompletion."""

    @property
    def prompt_tokens(self) -> list[int]: ...  # noqa: D102
    @property
    def wants_prompt_logits(self) -> bool: ...  # noqa: D102
    def add_prompt_logits(self, rows: Logits) -> None: ...  # noqa: D102
    def set_reuse(self, reuse: Reuse) -> None: ...  # noqa: D102
    def pick(self, logits: Logits) -> int | None: ...  # noqa: D102
    def take_chunks(self) -> list[dict[str, Any]]: ...  # noqa: D102
    def result(self) -> dict[str, Any]: ...  # noqa: D102


class Context:
    """A session, its position, and logits.

    Args:
        session: is closed with it.
        n_step: most tokens evaluated at once where the logits of all are wanted.
        logits_all: keep the logits of every token.
        cache: where sessions are looked up and kept; not with logits_all, for logits are not kept there.

    Attributes:
        last: logits (n_vocab,) of the last token evaluated; None if they are not known.
        scores: logits (n_ctx, n_vocab) of every token; None without logits_all.
        input_ids: (n_ctx,), the tokens held; what follows them means nothing.
        in_use: a stream or a call is under way.
    """

    def __init__(self, session: Session, n_step: int, logits_all: bool, cache: PrefixCache | None = None) -> None:
        self.session = session
        self.last: Logits | None = None
        # Pages of zeros take no memory until they are written.
        self.scores = np.zeros((session.n_ctx, session.model.n_vocab), np.float32) if logits_all else None
        self.input_ids = np.zeros(session.n_ctx, np.intc)
        self.in_use = False
        self.cache = cache
        self._n_step = n_step
        self._n_tokens: int | None = None  # where the next tokens go, if that is not behind all that is held
        self._n_on_disk = 0

    @property
    def n_tokens(self) -> int:
        """Tokens held; set lower, it forgets those after it when the next ones are evaluated."""
        return self.session.n_past if self._n_tokens is None else self._n_tokens

    @n_tokens.setter
    def n_tokens(self, n: int) -> None:
        n = check_int("n_tokens", n, 0, self.session.n_past)
        if n < self.session.n_past:
            self._n_tokens, self.last = n, None
        else:
            self._n_tokens = None

    def eval(self, tokens: Tokens) -> Logits:
        """Evaluates tokens after those held; the logits of the last one."""
        self.settle()
        ids = check_tokens(tokens, self.session.model.n_vocab)
        self._check_room(self.session.n_past + ids.size)
        step = ids.size if self.scores is None else self._n_step
        for begin in range(0, ids.size, step):
            self._take(ids[begin : begin + step])
        return self._last()

    def settle(self) -> None:
        """Forgets what lies beyond n_tokens; where a window cannot, evaluates again from where it can."""
        if self._n_tokens is not None:
            self.session.truncate(self._n_tokens, reevaluate=True)
            self._n_on_disk = min(self._n_on_disk, self._n_tokens)
            self._n_tokens = None

    def start(self, completion: Driven) -> Logits:
        """Evaluates a completion's prompt, what is not held of it; the logits of its last token."""
        completion.set_reuse(self._begin(completion.prompt_tokens, completion))
        return self._last()

    def begin(self, tokens: Tokens) -> Logits:
        """Makes the session hold exactly `tokens`; the logits of the last one."""
        self._begin(tokens, None)
        return self._last()

    def _begin(self, tokens: Tokens, completion: Driven | None) -> Reuse:
        ids = check_tokens(tokens, self.session.model.n_vocab)
        self._check_room(ids.size)
        self._n_tokens = None
        rows_for = completion if completion is not None and completion.wants_prompt_logits else None
        try:
            if rows_for is not None or self.scores is not None:
                reuse = self._begin_with_logits(ids, rows_for)
            else:
                self._look_up(ids)
                self.last, reuse = evaluate_prompt(self.session, ids)
        finally:  # an interrupt leaves a part of the prompt
            self.input_ids[: self.session.n_past] = self.session.tokens
        self._n_on_disk = min(self._n_on_disk, reuse.n_reused)
        self.keep()
        return reuse

    def _begin_with_logits(self, tokens: Ids, rows_for: Driven | None) -> Reuse:
        session, n = self.session, tokens.size
        if self.scores is None:
            session.reset()  # what is held has left no logits behind
        reuse = rewind(session, tokens)
        if rows_for is not None and self.scores is not None:
            rows_for.add_prompt_logits(self.scores[: reuse.n_reused])
        while (begin := session.n_past) < n:
            # The last token by itself, as evaluate_prompt() does.
            end = min(begin + self._n_step, n - 1) if begin < n - 1 else n
            if end == n:
                session.checkpoint()
            rows = self._take(tokens[begin:end], "all")
            if rows_for is not None:
                rows_for.add_prompt_logits(rows)
        return reuse

    def _take(self, ids: Ids, logits: str = "last") -> Logits:
        """Evaluates tokens and puts them and their logits where they belong."""
        begin = self.session.n_past
        rows = self.session.native.eval(ids, logits if self.scores is None else "all")
        self.input_ids[begin : begin + ids.size] = ids
        if self.scores is not None:
            self.scores[begin : begin + ids.size] = rows
        self.last = rows[-1]
        return rows

    def _check_room(self, n: int) -> None:
        if n > self.session.n_ctx:
            raise ContextFullError(
                f"tokens: {n} do not fit: expected at most {self.session.n_ctx} (n_ctx); open it with a larger one"
            )

    def _last(self) -> Logits:
        assert self.last is not None
        return self.last

    def _look_up(self, tokens: Ids) -> None:
        """Takes a session of the cache folder in place of this one, if that spares more of the prompt."""
        if self.cache is None:
            return
        held = self.session
        n_held = held.native.rollback_position(common_prefix(held.tokens, tokens[:-1]))
        found = self.cache.find(held.model, tokens, settings_of(held), longer_than=n_held, kv_offload=held.kv_offload)
        if found is not None:
            held.close()
            self.session, self._n_on_disk = found, found.n_past

    def keep(self) -> None:
        """Writes the session to the cache folder if it has grown by what is worth it."""
        if self.cache is not None and self.scores is None and self.session.n_past >= self._n_on_disk + WORTH_KEEPING:
            self.cache.put(self.session)
            self._n_on_disk = self.session.n_past

    def replace(self, session: Session, tokens: npt.NDArray[np.intc], last: Logits | None) -> None:
        """Takes another session in place of this one."""
        self.session.close()
        self.session, self.last = session, last
        self.input_ids[: tokens.size] = tokens
        self._n_tokens, self._n_on_disk = None, 0

    def reset(self) -> None:
        """Forgets everything."""
        self.session.reset()
        self.last, self._n_tokens, self._n_on_disk = None, None, 0

    def close(self) -> None:
        """Lets the session go."""
        self.session.close()
