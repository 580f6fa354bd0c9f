"""How likely the model found each token of a completion, in the form of OpenAI's `logprobs`."""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pysa.llama.types import CompletionLogprobs

if TYPE_CHECKING:
    from pysa import _native


def log_softmax(logits: npt.ArrayLike, axis: int = -1) -> npt.NDArray[np.float32]:
    """Logits to the logarithms of probabilities along `axis`, in float32; -inf stays -inf."""
    values = np.asarray(logits, dtype=np.float32)
    largest = np.max(values, axis=axis, keepdims=True)
    shifted = values - np.where(np.isfinite(largest), largest, np.float32(0))
    with np.errstate(divide="ignore"):
        out: npt.NDArray[np.float32] = shifted - np.log(np.sum(np.exp(shifted), axis=axis, keepdims=True))
    return out


class LogprobsRecord:
    """Collects tokens with their log-probabilities, from the model's own logits: before bias, penalties and grammar.

    Args:
        vocab: of the model.
        n_top: likeliest tokens that are listed for each, 0 or more.
        text_offset: offset of the first token in the text.
    """

    def __init__(self, vocab: _native.Vocab, n_top: int, text_offset: int) -> None:
        self._vocab = vocab
        self._n_top = n_top
        self._offset = text_offset
        self._decoder = codecs.getincrementaldecoder("utf-8")("ignore")
        self.tokens: list[str] = []
        self.text_offset: list[int] = []
        self.token_logprobs: list[float | None] = []
        self.top_logprobs: list[dict[str, float] | None] = []

    def add(self, token: int, logits: npt.NDArray[np.float32] | None) -> None:
        """Adds a token and the logits (n_vocab,) it was picked from; None where nothing came before it."""
        piece = self._vocab.token_to_piece(token, False)
        self.tokens.append(piece.decode("utf-8", "ignore"))
        self.text_offset.append(self._offset)
        self._offset += len(self._decoder.decode(piece))
        if logits is None:
            self.token_logprobs.append(None)
            self.top_logprobs.append(None)
            return
        logprobs = log_softmax(logits)
        self.token_logprobs.append(float(logprobs[token]))
        self.top_logprobs.append({**self._top(logprobs), self.tokens[-1]: float(logprobs[token])})

    def skip(self, token: int) -> None:
        """Passes over a token that is not listed but whose text counts."""
        self._offset += len(self._decoder.decode(self._vocab.token_to_piece(token, False)))

    def _top(self, logprobs: npt.NDArray[np.float32]) -> dict[str, float]:
        n = min(self._n_top, logprobs.size)
        if n == 0:
            return {}
        ids = np.argpartition(-logprobs, n - 1)[:n]
        top: dict[str, float] = {}
        for token in ids[np.lexsort((-ids, -logprobs[ids]))].tolist():
            # Tokens of one text share an entry: the likeliest one's.
            top.setdefault(self._vocab.token_to_piece(token, False).decode("utf-8", "ignore"), float(logprobs[token]))
        return top

    def as_dict(self, first: int = 0, end: int | None = None) -> CompletionLogprobs:
        """Entries first..end - 1."""
        return {
            "tokens": self.tokens[first:end],
            "text_offset": self.text_offset[first:end],
            "token_logprobs": self.token_logprobs[first:end],
            "top_logprobs": self.top_logprobs[first:end],
        }
