"""What the makers of a vocabulary share: tokens with types and scores, and what comes out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from pysa_convert.architectures.base import KeyValue
from pysa_convert.faults import Faults


class TokenType(IntEnum):
    """`tokenizer.ggml.token_type`, and the piece types of a sentencepiece model."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass
class TokenTable:
    """Tokens by id; `scores` only matter to the `llama` kind."""

    texts: list[str]
    types: list[int]
    scores: list[float]

    @classmethod
    def of(cls, vocab: Mapping[str, int], n_vocab: int, faults: Faults) -> TokenTable:
        """A table of `n_vocab` tokens; ids without a token become unused ones, ids beyond are faults."""
        table = cls([""] * n_vocab, [int(TokenType.UNUSED)] * n_vocab, [0.0] * n_vocab)
        taken = [False] * n_vocab
        for text, token in vocab.items():
            if type(token) is not int or not 0 <= token < n_vocab:
                faults.add(f"tokenizer.json: token {text!r}: expected an id below vocab_size {n_vocab}, got {token!r}")
            elif taken[token]:
                faults.add(f"tokenizer.json: token {text!r}: expected an id of its own, got {token}, which is taken")
            else:
                taken[token] = True
                table.texts[token], table.types[token] = text, int(TokenType.NORMAL)
        for token in range(n_vocab):
            if not taken[token]:
                table.texts[token] = f"[PAD{token}]"
        return table

    def add(self, token: int, text: str, kind: TokenType, score: float, faults: Faults) -> None:
        """Sets an added token."""
        if 0 <= token < len(self.texts):
            self.texts[token], self.types[token], self.scores[token] = text, int(kind), score
        else:
            expected = f"an id below vocab_size {len(self.texts)}"
            faults.add(f"added token {text!r}: expected {expected}, got {token}; the embedding has no row for it")

    def rename_repeated(self) -> None:
        """A text that occurs twice keeps its last id: libllama wants texts that differ."""
        seen: dict[str, int] = {}
        for token, text in enumerate(self.texts):
            if text in seen:
                self.texts[seen[text]] = f"[PAD{seen[text]}]"
                self.types[seen[text]] = int(TokenType.UNUSED)
            seen[text] = token

    def id_of(self, text: str) -> int | None:
        """The id of a text, or None."""
        try:
            return self.texts.index(text)
        except ValueError:
            return None


@dataclass(frozen=True)
class Vocabulary:
    """The `tokenizer.*` keys and what proves them.

    `reference` is the tokenizer.json to compare with, None where only a sentencepiece model exists (`reference_model`).
    """

    kind: str
    pre: str
    keys: list[KeyValue]
    table: TokenTable
    add_bos: bool
    add_eos: bool
    reference: Mapping[str, Any] | None
    reference_model: bytes | None = None
    notes: list[str] = field(default_factory=list)


# libllama makes these control tokens by their text, whatever a file says
# fmt: off
CONTROL_TEXTS = frozenset((
    "</s>", "<eos>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "[PAD]", "<PAD>", "<end_of_turn>", "<end_of_utterance>",
    "<turn|>", "<|tool_response>", "[e~[", "<fim-prefix>", "<fim_prefix>", "<PRE>", "▁<PRE>", "<fim-suffix>",
    "<fim_suffix>", "<SUF>", "▁<SUF>", "<fim-middle>", "<fim_middle>", "<MID>", "▁<MID>", "<fim-pad>", "<fim_pad>",
    "<fim-repo>", "<REPO>", "<reponame>",
))
# fmt: on


def added_type(text: str, special: bool) -> TokenType:
    """Control for special tokens and for what looks like one."""
    looks_special = (text.startswith("<|") and text.endswith("|>")) or (text.startswith("<｜") and text.endswith("｜>"))
    is_control = special or looks_special or text in CONTROL_TEXTS
    return TokenType.CONTROL if is_control else TokenType.USER_DEFINED
