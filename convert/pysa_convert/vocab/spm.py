"""SentencePiece BPE with byte fallback: `tokenizer.ggml.model` "llama".

Scores come from tokenizer.model where it is there and agrees with tokenizer.json, else from the rank of the merges.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pysa.errors import ModelFileError, UnsupportedModelError
from pysa_convert.faults import Faults
from pysa_convert.vocab.base import TokenTable, TokenType, added_type

ADDED_SCORE = -1000.0
MODEL_BPE = 2
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True)
class SentencePiece:
    """What is used of a tokenizer.model: pieces as (text, score, type), and two flags of its normaliser."""

    pieces: list[tuple[str, float, int]]
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool


def read_model(data: bytes, where: str) -> SentencePiece:
    """Parses a sentencepiece model (a protobuf: pieces 1, trainer 2, normaliser 3).

    Raises:
        ModelFileError: it does not parse.
        UnsupportedModelError: not a BPE model.
    """
    pieces: list[tuple[str, float, int]] = []
    model_type, dummy_prefix, remove_extra = 1, True, True
    try:
        for number, value in _fields(data):
            if number == 1 and isinstance(value, bytes):
                entry: dict[int, Any] = dict(_fields(value))
                score = struct.unpack("<f", entry[2])[0] if 2 in entry else 0.0
                pieces.append((entry[1].decode("utf-8"), score, int(entry.get(3, 1))))
            elif number == 2 and isinstance(value, bytes):
                model_type = int(dict(_fields(value)).get(3, 1))
            elif number == 3 and isinstance(value, bytes):
                spec = dict(_fields(value))
                dummy_prefix, remove_extra = bool(spec.get(3, 1)), bool(spec.get(4, 1))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, struct.error) as error:
        raise ModelFileError(f"{where}: expected a sentencepiece model: {error!r}") from error
    if not pieces:
        raise ModelFileError(f"{where}: expected a sentencepiece model, got no pieces")
    if model_type != MODEL_BPE:
        kinds = {1: "unigram", 3: "word", 4: "char"}
        found = kinds.get(model_type, str(model_type))
        raise UnsupportedModelError(f"{where}: model_type: expected bpe, got {found}; libllama's `llama` kind is BPE")
    return SentencePiece(pieces, dummy_prefix, remove_extra)


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of one protobuf message: varints as int, everything else as bytes."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == BYTES:
            n, at = _varint(data, at)
        elif wire in (FIXED32, FIXED64):
            n = 4 if wire == FIXED32 else 8
        else:
            raise ValueError(f"wire type {wire}")
        if n > len(data) - at:
            raise ValueError(f"{n} bytes at {at}, of {len(data)}")
        yield number, data[at : at + n]
        at += n


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise ValueError(f"varint at {at}")


def table_of_model(model: SentencePiece, n_vocab: int, where: str, faults: Faults) -> TokenTable:
    """The tokens of a sentencepiece model alone."""
    table = TokenTable.of({}, n_vocab, faults)
    if len(model.pieces) > n_vocab:
        faults.add(f"{where}: expected at most vocab_size {n_vocab} pieces, got {len(model.pieces)}")
    for token, (text, score, kind) in enumerate(model.pieces[:n_vocab]):
        table.texts[token], table.scores[token], table.types[token] = text, score, kind
    return table


def table_of_json(tokenizer: Mapping[str, Any], n_vocab: int, faults: Faults) -> TokenTable:
    """The tokens of a byte-fallback BPE in tokenizer.json: a token's score is minus the rank of its first merge."""
    spec = tokenizer["model"]
    table = TokenTable.of(spec["vocab"], n_vocab, faults)
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(spec.get("merges") or []):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        ranks.setdefault("".join(pair), rank)
    for token, text in enumerate(table.texts):
        if table.types[token] == TokenType.UNUSED:
            continue
        if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            table.types[token] = int(TokenType.BYTE)
        elif text == spec.get("unk_token"):
            table.types[token] = int(TokenType.UNKNOWN)
        else:
            # what no merge makes must lose against everything that one makes
            table.scores[token] = -float(ranks.get(text, len(ranks) + 1 if len(text) > 1 else 0))
    return table


def add_tokens(table: TokenTable, tokenizer: Mapping[str, Any], faults: Faults) -> None:
    """The added tokens of tokenizer.json; a piece keeps its type where the model itself made it special."""
    for added in tokenizer.get("added_tokens") or []:
        token, text = int(added.get("id", -1)), str(added.get("content", ""))
        inside = 0 <= token < len(table.types)
        if inside and table.texts[token] == text and table.types[token] in (TokenType.UNKNOWN, TokenType.BYTE):
            continue
        table.add(token, text, added_type(text, bool(added.get("special"))), ADDED_SCORE, faults)
    table.rename_repeated()


def agrees(model: SentencePiece, tokenizer: Mapping[str, Any]) -> bool:
    """Whether every piece has its own id in tokenizer.json's vocabulary, so that the true scores can be used."""
    vocab = tokenizer["model"]["vocab"]
    added = {entry.get("id"): entry.get("content") for entry in tokenizer.get("added_tokens") or []}
    return all(vocab.get(text) == token or token in added for token, (text, _, _) in enumerate(model.pieces))


def space_prefix(tokenizer: Mapping[str, Any]) -> str:
    """`always`, `first` or `never`: where tokenizer.json puts a space before a text."""
    text = repr(tokenizer.get("normalizer"))
    if "'type': 'Prepend'" in text:
        return "always"
    for part in _parts(tokenizer.get("pre_tokenizer")):
        if part.get("type") == "Metaspace":
            scheme = part.get("prepend_scheme", "always" if part.get("add_prefix_space", True) else "never")
            return str(scheme)
    return "never"


def with_prefix_always(tokenizer: Mapping[str, Any]) -> dict[str, Any]:
    """tokenizer.json with a space before every text, as libllama does it, in place of before the first alone."""
    top = tokenizer["pre_tokenizer"]
    parts = [{**part, "prepend_scheme": "always"} if part.get("type") == "Metaspace" else part for part in _parts(top)]
    changed = parts[0] if top.get("type") != "Sequence" else {**top, "pretokenizers": parts}
    return {**tokenizer, "pre_tokenizer": changed}


def _parts(top: Any) -> list[dict[str, Any]]:
    if not isinstance(top, Mapping):
        return []
    return list(top.get("pretokenizers", [])) if top.get("type") == "Sequence" else [dict(top)]
