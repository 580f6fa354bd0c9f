"""Base of AsyncLlama: what it takes over from pysa.Llama as it is, and how it gets completions without running them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Concatenate, ParamSpec

from pysa._arguments import PathLike
from pysa.llama.llama import Llama
from pysa.llama.tokenizer import LlamaTokenizer
from pysa.model import Model
from pysa.session import Session

P = ParamSpec("P")


class Requests(Llama):
    """A Llama that gives completions away instead of running them; its sessions are as many as requests at once."""

    def __init__(self, model_path: PathLike, n_parallel: int = 1, **arguments: Any) -> None:
        self._n_sessions = n_parallel
        super().__init__(model_path, **arguments)

    def _run(self, completion: Any, stream: bool) -> Any:
        return completion, stream

    def make_session(self) -> Session:
        """Another session like the first one."""
        assert self._open_context is not None
        return self._open_context().session


def as_of(original: Callable[Concatenate[Any, P], Any]) -> Callable[[Any], Callable[Concatenate[Any, P], Any]]:
    """Gives a method the signature of another class's."""

    def decorate(method: Any) -> Any:
        method.__signature__ = inspect.signature(original)
        return method

    return decorate


class AsyncBase:
    """The part of AsyncLlama that computes nothing."""

    _llama: Requests

    @property
    def model(self) -> Model:
        """The pysa.Model it is opened on."""
        return self._llama.model

    @property
    def model_path(self) -> str:
        """The model's file."""
        return self._llama.model_path

    @property
    def metadata(self) -> dict[str, str]:
        """The file's keys and values as text, lists left out."""
        return self._llama.metadata

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        """Text to token ids: as Llama.tokenize."""
        return self._llama.tokenize(text, add_bos, special)

    def detokenize(
        self, tokens: Sequence[int], prev_tokens: Sequence[int] | None = None, special: bool = False
    ) -> bytes:
        """Token ids to bytes: as Llama.detokenize."""
        return self._llama.detokenize(tokens, prev_tokens, special)

    def tokenizer(self) -> LlamaTokenizer:
        """The model's tokenizer."""
        return self._llama.tokenizer()

    def token_bos(self) -> int:
        """The token a text begins with, -1 if there is none."""
        return self._llama.token_bos()

    def token_eos(self) -> int:
        """The token a text ends with, -1 if there is none."""
        return self._llama.token_eos()

    def token_nl(self) -> int:
        """The token of a line break."""
        return self._llama.token_nl()

    def n_vocab(self) -> int:
        """Tokens of the vocabulary."""
        return self._llama.n_vocab()

    def n_embd(self) -> int:
        """Width of an embedding."""
        return self._llama.n_embd()

    def pooling_type(self) -> int:
        """How rows become an embedding: 0 not at all, 1 mean, 2 the first token's, 3 the last token's."""
        return self._llama.pooling_type()
