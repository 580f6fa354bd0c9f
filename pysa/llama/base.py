"""Base of pysa.Llama: the model, the lock, the session that calls take, the vocabulary."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pysa import _native
from pysa.errors import ArgumentError
from pysa.llama.context import Context
from pysa.llama.tokenizer import LlamaTokenizer, newline_token

if TYPE_CHECKING:
    from pysa.model import Model
    from pysa.session import Session


class LlamaBase:
    """Threads take turns by a lock. A stream under way keeps its session; a call that comes meanwhile gets another."""

    last_n_tokens_size: int

    def __init__(self, model: Model, open_context: Callable[[], Context] | None, seed: int) -> None:
        self._model = model
        self._open_context = open_context
        self._contexts: weakref.WeakSet[Context] = weakref.WeakSet()  # streams' too, until they end
        self._context: Context | None = None
        self._renew()
        self._lock = threading.RLock()
        self._seed = seed
        self._stepwise: tuple[Any, _native.Sampler] | None = None  # sample()'s, while its arguments stay the same
        self.tokenizer_ = LlamaTokenizer(model)

    @property
    def model(self) -> Model:
        """The pysa.Model it is opened on."""
        return self._model

    @property
    def session(self) -> Session:
        """The pysa.Session it computes in."""
        return self._held().session

    def _held(self) -> Context:
        self._model.native  # noqa: B018  raises for a closed model
        if self._context is None:
            raise ArgumentError("pysa.Llama: it has no session: expected vocab_only=False; open it without that")
        return self._context

    def _free(self) -> Context:
        """The context; a new one if a stream is under way in it, which keeps its own. Call with the lock."""
        if self._held().in_use:
            self._renew()
        return self._held()

    def _renew(self) -> None:
        if self._open_context is not None:
            self._context = self._open_context()
            self._contexts.add(self._context)

    @contextlib.contextmanager
    def _taken(self) -> Iterator[Context]:
        """A context that nobody else uses until the block is left."""
        with self._lock:
            context = self._free()
            context.in_use = True
        try:
            yield context
        finally:
            with self._lock:
                context.in_use = False
                if context is not self._context:
                    context.close()

    def close(self) -> None:
        """Lets the model and the cache go."""
        with self._lock:
            for context in self._contexts:
                context.close()
            self._context = None
            self._model.close()

    # ---- vocabulary

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        """Text to token ids.

        Args:
            text: UTF-8; str will do as well.
            add_bos: add the tokens the model expects around a text, a leading BOS for instance.
            special: read special tokens written out in the text.
        """
        return self.tokenizer_.tokenize(text, add_bos, special)

    def detokenize(
        self, tokens: Sequence[int], prev_tokens: Sequence[int] | None = None, special: bool = False
    ) -> bytes:
        """Token ids to bytes; `special` writes special tokens out; `prev_tokens` has no effect."""
        return self.tokenizer_.detokenize(tokens, prev_tokens, special)

    def tokenizer(self) -> LlamaTokenizer:
        """The model's tokenizer."""
        return LlamaTokenizer(self._model)

    def token_bos(self) -> int:
        """The token a text begins with, -1 if there is none."""
        return _or_none(self._model.native.vocab.bos)

    def token_eos(self) -> int:
        """The token a text ends with, -1 if there is none."""
        return _or_none(self._model.native.vocab.eos)

    def token_nl(self) -> int:
        """The token of a line break."""
        return newline_token(self._model)

    def n_vocab(self) -> int:
        """Tokens of the vocabulary."""
        return self._model.n_vocab

    def n_embd(self) -> int:
        """Width of an embedding."""
        return self._model.n_embd

    def n_ctx(self) -> int:
        """Most tokens the context holds."""
        return self.session.n_ctx


def _or_none(token: int | None) -> int:
    return -1 if token is None else token
