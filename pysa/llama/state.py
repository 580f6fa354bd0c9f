"""Saved states of pysa.Llama: what save_state() gives and load_state() returns to."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pysa.errors import StateFileError
from pysa.llama.base import LlamaBase
from pysa.llama.context import Context
from pysa.prefix_cache import settings_of

if TYPE_CHECKING:
    from pysa.session import Session


class LlamaState:
    """A conversation's state: the session as bytes, and what pysa.Llama keeps beside it. May be pickled.

    Args:
        input_ids: int (n_ctx,), the tokens evaluated, then zeros.
        scores: float32 (n_rows, n_vocab), the logits of every token with `logits_all`, else of the last one, if known.
        n_tokens: tokens evaluated.
        llama_state: the file that Session.save writes.
        llama_state_size: its bytes.
        seed: where the seeds of completions come from.
    """

    def __init__(
        self,
        input_ids: npt.NDArray[np.intc],
        scores: npt.NDArray[np.float32],
        n_tokens: int,
        llama_state: bytes,
        llama_state_size: int,
        seed: int,
    ) -> None:
        self.input_ids = input_ids
        self.scores = scores
        self.n_tokens = n_tokens
        self.llama_state = llama_state
        self.llama_state_size = llama_state_size
        self.seed = seed


class SavedStates(LlamaBase):
    """The part of pysa.Llama that saves and loads."""

    def save_state(self) -> LlamaState:
        """The conversation as it is; load_state() returns to it."""
        with self._lock:
            return self._save(self._held())

    def load_state(self, state: LlamaState) -> None:
        """Returns to a state of save_state(), of a Llama of the same model and settings.

        Raises:
            StateFileError: it is damaged, or of another model, plan or settings.
        """
        with self._lock:
            self._load(self._free(), state)
            self._seed, self._stepwise = state.seed, None

    def _save(self, context: Context) -> LlamaState:
        context.settle()
        data, n = session_bytes(context.session), context.n_tokens
        if context.scores is not None:
            scores = context.scores[:n].copy()
        else:
            n_rows = 0 if context.last is None else 1
            scores = np.empty((n_rows, self.n_vocab()), np.float32)
            if context.last is not None:
                scores[0] = context.last
        return LlamaState(context.input_ids.copy(), scores, n, data, len(data), self._seed)

    def _load(self, context: Context, state: LlamaState) -> None:
        rows = np.asarray(state.scores, np.float32)
        if context.scores is not None and rows.shape != (state.n_tokens, self.n_vocab()):
            raise StateFileError("state: saved without logits_all: expected the logits of all tokens")
        session = session_from_bytes(context.session, state.llama_state)
        context.replace(session, state.input_ids[: state.n_tokens], rows[-1].copy() if len(rows) else None)
        if context.scores is not None:
            context.scores[: state.n_tokens] = rows


def session_bytes(session: Session) -> bytes:
    """What Session.save writes."""
    with tempfile.TemporaryDirectory(prefix="pysa-state-") as folder:
        path = Path(folder, "session.state")
        session.save(path)
        return path.read_bytes()


def session_from_bytes(like: Session, data: bytes) -> Session:
    """A session from session_bytes(), with the settings of `like`.

    Raises:
        StateFileError: the bytes are damaged, or of another model, plan or settings.
    """
    with tempfile.TemporaryDirectory(prefix="pysa-state-") as folder:
        path = Path(folder, "session.state")
        path.write_bytes(data)
        session = like.model.load_session(path, like.kv_offload)
    found, expected = settings_of(session), settings_of(like)
    if found != expected:
        differing = ", ".join(f"{key}={found[key]!r}" for key in found if found[key] != expected[key])
        raise StateFileError(f"state: saved with other settings: expected those of this Llama, got {differing}")
    return session
