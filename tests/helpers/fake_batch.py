"""Sessions, a batch and completions without an engine, for the scheduler's rules. The "model" hashes the tokens."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pysa.errors import ContextFullError, EvaluationCancelledError
from pysa.prefix import Reuse

N_VOCAB = 97


def next_token(tokens: Sequence[int]) -> int:
    """What the fake model says after these tokens; depends on all of them and their order."""
    value = 1
    for token in tokens:
        value = (value * 31 + token + 7) % 10007
    return value % N_VOCAB


def answer_of(prompt: Sequence[int], n: int) -> list[int]:
    """The n tokens a greedy answer has."""
    tokens = list(prompt)
    for _ in range(n):
        tokens.append(next_token(tokens))
    return tokens[len(prompt) :]


class FakeSession:
    """What the scheduler uses of pysa.Session and its native one."""

    _n_vocab = N_VOCAB

    def __init__(self, n_ctx: int = 1000, n_ubatch: int = 32, has_window: bool = False) -> None:
        self.n_ctx, self.n_ubatch, self.has_window = n_ctx, n_ubatch, has_window
        self.tokens: list[int] = []
        self.checkpoints: list[int] = []
        self.closed = False
        self.plan = {"n_sink": 0}
        self.embeds: list[int] = []  # tokens of each embedding call

    @property
    def native(self) -> FakeSession:
        return self

    @property
    def n_past(self) -> int:
        return len(self.tokens)

    def rollback_position(self, n: int) -> int:
        if not self.has_window or n == self.n_past:
            return n
        return max((at for at in self.checkpoints if at <= n), default=0)

    def truncate(self, n: int) -> None:
        assert self.rollback_position(n) == n
        del self.tokens[n:]
        self.checkpoints = [at for at in self.checkpoints if at <= n]

    def checkpoint(self) -> int:
        self.checkpoints.append(self.n_past)
        return self.n_past

    def reset(self) -> None:
        self.tokens.clear()
        self.checkpoints.clear()

    def memory(self) -> dict[str, int]:
        return {"total": 10 * self.n_past, "checkpoints": len(self.checkpoints)}

    def close(self) -> None:
        self.closed = True

    def eval(self, tokens: Any, logits: str, interrupt: Callable[[], bool] | None = None) -> Any:
        if interrupt is not None and interrupt():
            raise EvaluationCancelledError("stopped")
        if logits == "embeddings":
            self.embeds.append(len(tokens))
            rows = np.array([[float(token), float(self.n_past + i)] for i, token in enumerate(tokens)], np.float32)
        else:
            assert logits == "all"
            rows = np.stack([row_of([*self.tokens, *tokens[: i + 1]]) for i in range(len(tokens))])
        self.tokens += [int(token) for token in tokens]
        return rows


def row_of(tokens: Sequence[int]) -> Any:
    row = np.zeros(N_VOCAB, np.float32)
    row[next_token(tokens)] = 1.0
    return row


class FakeBatch:
    """Evaluates and writes down: `log` has each step's entries as (session, n_tokens, wants_logits).

    Args:
        gate: every step waits for it, so that a test can see what is between two; None: no step waits any more.
    """

    def __init__(self, gate: threading.Semaphore | None = None) -> None:
        self.log: list[list[tuple[FakeSession, int, bool]]] = []
        self.gate = gate
        self.poisoned: set[int] = set()  # tokens whose evaluation fails
        self.in_step = threading.Event()
        self.interrupts = 0

    def close(self) -> None:
        self.closed = True

    def step(self, entries: Any, interrupt: Callable[[], bool] | None = None) -> tuple[list[int], Any]:
        assert len({id(session) for session, _, _ in entries}) == len(entries) > 0
        self.in_step.set()
        while (gate := self.gate) is not None and not gate.acquire(timeout=0.01):
            if interrupt is not None and interrupt():
                self.interrupts += 1
                raise EvaluationCancelledError("stopped")
        for session, tokens, _ in entries:
            if session.n_past + len(tokens) > session.n_ctx:
                raise ContextFullError("full")
            if self.poisoned & set(tokens.tolist()):
                raise MemoryError("poisoned")
        counts, rows = [], []
        for session, tokens, wants_logits in entries:
            n = min(len(tokens), session.n_ubatch)
            session.tokens += tokens[:n].tolist()
            counts.append(n)
            if wants_logits and n == len(tokens):
                rows.append(row_of(session.tokens))
        self.log.append([(session, len(tokens), wants) for session, tokens, wants in entries])
        return counts, np.array(rows, np.float32).reshape(-1, N_VOCAB)


class FakeCompletion:
    """A greedy answer of a fixed length.

    Args:
        prompt: token ids.
        n: tokens of the answer.
        fails_at: raises when it picks its k-th token.
    """

    def __init__(self, prompt: Sequence[int], n: int = 5, fails_at: int | None = None, rows: bool = False) -> None:
        self.prompt_tokens = list(prompt)
        self.finish_reason: str | None = None
        self.wants_prompt_logits = rows
        self.tokens: list[int] = []
        self.reuse: Reuse | None = None
        self.prompt_rows: list[int] = []
        self._n, self._fails_at, self._n_given = n, fails_at, 0

    def set_reuse(self, reuse: Reuse) -> None:
        assert self.reuse is None
        self.reuse = reuse

    def add_prompt_logits(self, rows: Any) -> None:
        self.prompt_rows += rows.argmax(axis=1).tolist()

    def pick(self, logits: Any) -> int | None:
        if len(self.tokens) == self._fails_at:
            raise RuntimeError("my logits processor is broken")
        self.tokens.append(int(np.argmax(logits)))
        if len(self.tokens) == self._n:
            self.finish_reason = "length"
            return None
        return self.tokens[-1]

    def take_chunks(self) -> list[dict[str, Any]]:
        new, self._n_given = self.tokens[self._n_given :], len(self.tokens)
        return [{"token": token} for token in new]

    def finish(self, reason: str) -> None:
        assert self.finish_reason is None
        self.finish_reason = reason

    def result(self) -> dict[str, Any]:
        return {"tokens": self.tokens, "finish_reason": self.finish_reason}
