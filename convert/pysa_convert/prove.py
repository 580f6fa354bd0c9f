"""The proof of a written file: it opens, its plan reads back, and its vocabulary gives the checkpoint's own ids.

Runs on the temporary file, before it gets its name. libllama opens the vocabulary, through pysa's own validation.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pysa.errors import ConvertError, ModelFileError
from pysa.plan import Plan
from pysa_convert.architectures.base import Dims
from pysa_convert.proof_text import PARTS
from pysa_convert.vocab.base import TokenType, Vocabulary

Encode = Callable[[str, bool, bool], list[int]]  # text, add_special, parse_special
N_SPECIAL_SHOWN = 24


def native() -> Any:
    """The native module; ConvertError if it was not built."""
    try:
        import pysa._native as module  # noqa: PLC0415
    except ImportError as error:
        raise ConvertError(f"pysa._native: needed to prove what is written: {error}") from error
    return module


def prove_file(path: Path, plan: Plan | None, dims: Dims) -> None:
    """Opens the file with pysa's own validator and compares the plan with the one meant.

    Raises:
        ModelFileError: the validator refuses the file.
        ConvertError: the plan reads back otherwise.
    """
    metadata: Mapping[str, Any] = native().gguf_read(str(path))["metadata"]
    found = Plan.from_keys(metadata, dims.n_layer, dims.n_head)
    if (found is None) != (plan is None) or (plan is not None and found != _rounded(plan)):
        raise ConvertError(f"{path}: pysa.*: expected the plan that was written, got another one")


def prove_vocabulary(path: Path, vocabulary: Vocabulary) -> int:
    """Compares ids on a multilingual text, with special tokens read and not read; returns how many were compared.

    Raises:
        ConvertError: the first difference, with the pieces on both sides.
    """
    written = native().Vocab(str(path))
    encode = _reference(vocabulary)
    n_ids = 0
    for text in _texts(vocabulary):
        for add_special, parse_special in ((True, True), (False, True), (False, False)):
            expected = encode(text, add_special, parse_special)
            found = list(written.tokenize(text, add_special, parse_special))
            if expected != found:
                raise ConvertError(_difference(vocabulary, written, text, expected, found, parse_special))
            n_ids += len(found)
    return n_ids


def _rounded(plan: Plan) -> Plan:
    """The plan as f32 keys hold it."""
    keys = {key: value for key, (_, value) in plan.to_keys().items()}
    keys["pysa.skip_gate"] = float(np.float32(plan.skip_gate))
    copy = Plan.from_keys(keys, plan.n_layer, plan.n_head)
    return copy if copy is not None else plan


def _texts(vocabulary: Vocabulary) -> Iterator[str]:
    """The parts alone and together, then special tokens between, before and after text."""
    yield from PARTS
    yield "".join(PARTS)
    marked = [
        text
        for text, kind in zip(vocabulary.table.texts, vocabulary.table.types, strict=True)
        if kind in (TokenType.CONTROL, TokenType.USER_DEFINED) and text.strip()
    ]
    shown = marked[: N_SPECIAL_SHOWN // 2] + marked[-N_SPECIAL_SHOWN // 2 :]
    for special in dict.fromkeys(shown):
        yield f"{special}user\nHello, 世界{special}\n\n{special} 42 {special}{special}end"
    if marked:
        yield "".join(f"{special}{part}" for special, part in zip(shown, PARTS, strict=False))


def _reference(vocabulary: Vocabulary) -> Encode:
    return _from_json(vocabulary) if vocabulary.reference is not None else _from_model(vocabulary)


def _from_json(vocabulary: Vocabulary) -> Encode:
    try:
        from tokenizers import Tokenizer  # noqa: PLC0415
    except ImportError as error:
        raise ConvertError("tokenizers: needed to prove the vocabulary: pip install 'pysa[hf]'") from error
    data = dict(vocabulary.reference or {})
    # libllama takes all control tokens for text where special tokens are not parsed, whatever the checkpoint calls them
    data["added_tokens"] = [
        {**entry, "special": vocabulary.table.types[entry["id"]] != TokenType.USER_DEFINED}
        for entry in data.get("added_tokens") or []
    ]
    try:
        parsing, plain = Tokenizer.from_str(json.dumps(data)), Tokenizer.from_str(json.dumps(data))
    # the library raises plain Exception
    except Exception as error:
        raise ModelFileError(f"tokenizer.json: the tokenizers library refuses it: {error}") from error
    plain.encode_special_tokens = True

    def encode(text: str, add_special: bool, parse_special: bool) -> list[int]:
        tokenizer = parsing if parse_special else plain
        return list(tokenizer.encode(text, add_special_tokens=add_special).ids)

    return encode


def _from_model(vocabulary: Vocabulary) -> Encode:
    try:
        import sentencepiece  # noqa: PLC0415
    except ImportError as error:
        raise ConvertError("sentencepiece: needed to prove the vocabulary: pip install 'pysa[hf]'") from error
    processor = sentencepiece.SentencePieceProcessor(model_proto=vocabulary.reference_model)
    table = vocabulary.table
    marked = {
        text: token
        for token, (text, kind) in enumerate(zip(table.texts, table.types, strict=True))
        if kind in (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)
    }
    ids = {key: value for key, _, value in vocabulary.keys}

    def encode(text: str, add_special: bool, parse_special: bool) -> list[int]:
        out = [ids["tokenizer.ggml.bos_token_id"]] if add_special and vocabulary.add_bos else []
        for part in _split(text, marked, parse_special, table.types):
            out += [part] if isinstance(part, int) else processor.encode(part)
        return out + ([ids["tokenizer.ggml.eos_token_id"]] if add_special and vocabulary.add_eos else [])

    return encode


def _split(text: str, marked: Mapping[str, int], parse_special: bool, types: list[int]) -> Iterator[str | int]:
    """Text and special tokens in turn, the longest special token first."""
    wanted = [s for s in marked if parse_special or types[marked[s]] == TokenType.USER_DEFINED]
    wanted.sort(key=len, reverse=True)
    start = at = 0
    while at < len(text):
        hit = next((special for special in wanted if text.startswith(special, at)), None)
        if hit is None:
            at += 1
            continue
        if at > start:
            yield text[start:at]
        yield marked[hit]
        at += len(hit)
        start = at
    if start < len(text):
        yield text[start:]


def _difference(
    vocabulary: Vocabulary, written: Any, text: str, expected: list[int], found: list[int], parse_special: bool
) -> str:
    at = next(
        (i for i, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b), min(len(expected), len(found))
    )

    def show(ids: list[int]) -> str:
        return (
            " ".join(f"{token}:{bytes(written.token_to_piece(token, True))!r}" for token in ids[at : at + 4])
            or "the end"
        )

    before = b"".join(bytes(written.token_to_piece(token, True)) for token in found[max(0, at - 6) : at])
    mode = "parsed" if parse_special else "as text"
    name = f"pre-tokenizer {vocabulary.pre!r}" if vocabulary.kind == "gpt2" else "sentencepiece kind"
    return (
        f"tokenizer: the written vocabulary ({name}) differs from the checkpoint's at token {at} of {text[:24]!r}..., "
        f"after {before!r}, special tokens {mode}: expected {show(expected)}, got {show(found)}; nothing was written"
        + ("; --pre NAME chooses another pre-tokenizer" if vocabulary.kind == "gpt2" else "")
    )
