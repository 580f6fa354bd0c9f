"""Tokens to text as they come. Called by pysa.cli, pysa.chat and pysa.llama; whole texts are Model.detokenize()'s."""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Container

    from pysa.model import Model


class TextStream:
    """Tokens to text as they come: bytes that do not yet make a character wait for the next token.

    Args:
        model: whose tokens they are.
        written_out: special tokens that are written out; the others give no text.
    """

    def __init__(self, model: Model, written_out: Container[int] = ()) -> None:
        self._model = model
        self._written_out = written_out
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: int) -> str:
        """The text that is complete with this token."""
        return self._decoder.decode(self._model.token_to_piece(token, token in self._written_out))

    def finish(self) -> str:
        """What is left: U+FFFD for an unfinished character."""
        return self._decoder.decode(b"", final=True)
