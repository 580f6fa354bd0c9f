"""Text to tokens and back as llama-cpp-python has it: bytes, token by token, special tokens silent unless asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pysa._arguments import check_bool, check_text, check_tokens
from pysa.errors import ArgumentError
from pysa.model import Model

if TYPE_CHECKING:
    from pysa.llama.base import LlamaBase


class LlamaTokenizer:
    """The tokenizer of a model.

    Args:
        source: a pysa.Llama or pysa.Model.
    """

    def __init__(self, source: LlamaBase | Model) -> None:
        self._model = source if isinstance(source, Model) else source.model

    def tokenize(self, text: bytes | str, add_bos: bool = True, special: bool = True) -> list[int]:
        """Text to token ids.

        Args:
            text: UTF-8, or str.
            add_bos: add the tokens the model expects around a text, a leading BOS for instance.
            special: read special tokens written out in the text.

        Raises:
            ArgumentError: no text, or bytes that are not UTF-8.
        """
        if isinstance(text, bytes | bytearray):
            try:
                text = bytes(text).decode("utf-8")
            except UnicodeDecodeError as error:
                raise ArgumentError(f"text: not UTF-8 at byte {error.start}: expected text, got bytes") from None
        vocab = self._model.native.vocab
        return vocab.tokenize(check_text("text", text), check_bool("add_bos", add_bos), check_bool("special", special))

    def detokenize(
        self, tokens: Sequence[int], prev_tokens: Sequence[int] | None = None, special: bool = False
    ) -> bytes:
        """Token ids to bytes; a character may be spread over several tokens.

        Args:
            tokens: ids; none at all gives b"".
            prev_tokens: has no effect: no token's text depends on those before it.
            special: write special tokens out instead of leaving them out.

        Raises:
            ArgumentError: an id that is no integer or out of range.
        """
        ids = check_tokens(tokens, self._model.n_vocab, allow_empty=True).tolist()
        vocab, special = self._model.native.vocab, check_bool("special", special)
        text = b"".join(vocab.token_to_piece(token, special) for token in ids)
        # SentencePiece puts a space before a text's first word.
        return text[1:] if ids and ids[0] == vocab.bos and text.startswith(b" ") else text

    def encode(self, text: str, add_bos: bool = True, special: bool = True) -> list[int]:
        """Text to token ids; lone surrogates are left out."""
        return self.tokenize(text.encode("utf-8", "ignore"), add_bos, special)

    def decode(self, tokens: Sequence[int]) -> str:
        """Token ids to text; bytes that are no UTF-8 are left out."""
        return self.detokenize(tokens).decode("utf-8", "ignore")


def newline_token(model: Model) -> int:
    """The token of a line break; the padding token or -1 if there is none."""
    metadata = model.metadata
    if metadata.get("tokenizer.ggml.model") == "llama":
        tokens = metadata.get("tokenizer.ggml.tokens", [])
        ids = [tokens.index(text) for text in ("<0x0A>", "\n") if text in tokens]
    else:
        ids = model.native.vocab.tokenize("\n", False, False)
    return int(ids[0] if ids else metadata.get("tokenizer.ggml.padding_token_id", -1))


def text_metadata(model: Model) -> dict[str, str]:
    """The file's keys that are no lists, with their values written out as llama.cpp does."""
    return {key: _written(value) for key, value in model.metadata.items() if not isinstance(value, list | tuple)}


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:f}" if isinstance(value, float) else str(value)
