"""Embeddings from a decoder: rows of its last layer, pooled as llama.cpp pools them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pysa._arguments import check_bool, check_int, check_text
from pysa.errors import ArgumentError
from pysa.llama.base import LlamaBase
from pysa.llama.types import CreateEmbeddingResponse

NONE, MEAN, CLS, LAST = 0, 1, 2, 3
UNSPECIFIED = -1

Rows = npt.NDArray[np.float32]


def resolve_pooling(given: object, metadata: Mapping[str, Any]) -> int:
    """How rows become one: as given, or as the file says, or not at all.

    Raises:
        ArgumentError: a kind that pysa does not have, ranking for instance.
    """
    value = check_int("pooling_type", given, -1, 100)
    if value == UNSPECIFIED:
        value = metadata.get(f"{metadata.get('general.architecture')}.pooling_type", NONE)
    if value not in (NONE, MEAN, CLS, LAST):
        raise ArgumentError(
            f"pooling_type: expected 0 (none), 1 (mean), 2 (first token) or 3 (last token), got {value}"
        )
    return int(value)


def pool(rows: Rows, pooling: int) -> Rows:
    """Rows (n_tokens, n_embd) to what an input's embedding is: themselves, or one row (n_embd,)."""
    if pooling == MEAN:
        return np.asarray(rows.mean(axis=0, dtype=np.float64), np.float32)
    if pooling in (CLS, LAST):
        return np.asarray(rows[0 if pooling == CLS else -1])
    return rows


def normalized(rows: Rows) -> Rows:
    """Rows of length one; a row of zeros stays."""
    length = np.linalg.norm(rows, axis=-1, keepdims=True)
    return np.asarray(rows / np.where(length == 0, 1, length), np.float32)


class Embeddings(LlamaBase):
    """The part of pysa.Llama that embeds texts."""

    model_path: str
    n_batch: int
    _pooling: int

    def pooling_type(self) -> int:
        """How rows are pooled: 0 not at all, 1 mean, 2 the first token's, 3 the last token's."""
        return self._pooling

    def embed(
        self,
        input: str | Sequence[str],
        normalize: bool = False,
        truncate: bool = True,
        return_count: bool = False,
    ) -> Any:
        """Embeds texts; what the session held is forgotten. Works without `embedding=True` too.

        Args:
            input: one text or several.
            normalize: scale each row to length one.
            truncate: leave out what is beyond n_batch tokens, instead of refusing it.
            return_count: give the tokens evaluated too.

        Returns:
            For one text its embedding, for several a list of them: n_embd numbers, or without pooling n_embd numbers
            for each token. With `return_count` a pair with the number of tokens.

        Raises:
            ArgumentError: no text, one that comes to no tokens, or to too many with truncate=False.
        """
        texts = [input] if isinstance(input, str) else list(input)
        check_bool("normalize", normalize), check_bool("truncate", truncate)
        prompts = [self._embedding_tokens(i, text, truncate) for i, text in enumerate(texts)]
        found = []
        with self._taken() as context, self._lock:
            for tokens in prompts:
                context.reset()
                rows = context.session.native.eval(np.array(tokens, np.int32), "embeddings")
                pooled = pool(rows, self._pooling)
                found.append((normalized(pooled) if normalize else pooled).tolist())
            context.reset()
        output = found[0] if isinstance(input, str) else found
        return (output, sum(map(len, prompts))) if return_count else output

    def _embedding_tokens(self, i: int, text: object, truncate: bool) -> list[int]:
        tokens = self.tokenizer_.tokenize(check_text(f"input[{i}]", text), special=False)
        if not tokens:
            raise ArgumentError(f"input[{i}]: comes to no tokens: expected some text")
        if len(tokens) > self.n_batch and not truncate:
            raise ArgumentError(f"input[{i}]: too long: expected at most {self.n_batch} tokens, got {len(tokens)}")
        return tokens[: self.n_batch]

    def create_embedding(self, input: str | Sequence[str], model: str | None = None) -> CreateEmbeddingResponse:
        """Embeds texts, in the form of OpenAI's embeddings.

        Args:
            input: one text or several.
            model: name in the result; None is the model's path.

        Raises:
            ArgumentError: as embed() does.
        """
        texts = [input] if isinstance(input, str) else list(input)
        rows, n_tokens = self.embed(texts, return_count=True)
        return {
            "object": "list",
            "data": [{"object": "embedding", "embedding": row, "index": i} for i, row in enumerate(rows)],
            "model": model if model is not None else self.model_path,
            "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
        }
