"""Which kind of tokenizer a checkpoint has, and the `tokenizer.*` keys it becomes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pysa.errors import ConvertError, ModelFileError, UnsupportedModelError
from pysa_convert.architectures.base import KeyValue
from pysa_convert.faults import Faults
from pysa_convert.sources.checkpoint import read_json
from pysa_convert.vocab import bpe, special, spm
from pysa_convert.vocab.base import TokenTable, Vocabulary

NFC_NOTE = "the checkpoint's tokenizer normalises text to NFC, libllama does not: give it text in NFC"
PREFIX_NOTE = "libllama puts a space before text that follows a special token, the checkpoint's tokenizer does not"


def read_vocabulary(
    folder: Path, config: Mapping[str, Any], n_vocab: int, pre: str | None, faults: Faults
) -> Vocabulary:
    """Reads tokenizer.json and tokenizer.model.

    Args:
        n_vocab: rows of the embedding; ids without a token are filled up.
        pre: libllama's pre-tokenizer by name, in place of the one that the structure says.

    Raises:
        ModelFileError: a file is missing or damaged.
        UnsupportedModelError: a kind of tokenizer that libllama's `gpt2` and `llama` cannot express.
        ConvertError: the tokenizer needs Python code of its own, or has no pre-tokenizer that `pre` could name.
    """
    try:
        return _read(folder, config, n_vocab, pre, faults)
    # a part of the JSON that is not of the shape its kind has
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ModelFileError(f"{folder}: tokenizer files: expected another structure: {error!r:.200}") from error


def _read(folder: Path, config: Mapping[str, Any], n_vocab: int, pre: str | None, faults: Faults) -> Vocabulary:
    path = folder / "tokenizer_config.json"
    tokenizer_config = read_json(path) if path.is_file() else {}
    if tokenizer_config.get("auto_map") and not (folder / "tokenizer.json").is_file():
        advice = "save a tokenizer.json with transformers and convert that"
        raise ConvertError(f"{path}: auto_map: pysa runs no code from a checkpoint; {advice}")
    model_path = folder / "tokenizer.model"
    model = spm.read_model(model_path.read_bytes(), str(model_path)) if model_path.is_file() else None
    if not (folder / "tokenizer.json").is_file():
        if model is None:
            raise _missing(folder)
        _refuse_pre(pre)
        return _from_model(folder, config, tokenizer_config, n_vocab, model, faults)
    tokenizer = read_json(folder / "tokenizer.json")
    where = str(folder / "tokenizer.json")
    _check_shape(tokenizer, where)
    spec = tokenizer["model"]
    is_byte_level = any(step[0] == "bytes" for step in bpe.signature(tokenizer))
    if spec["type"] == "BPE" and is_byte_level:
        return _byte_level(folder, config, tokenizer_config, n_vocab, tokenizer, pre, faults)
    if spec["type"] == "BPE" and spec.get("byte_fallback"):
        _refuse_pre(pre)
        return _byte_fallback(folder, config, tokenizer_config, n_vocab, tokenizer, model, faults)
    expected = "BPE with a ByteLevel pre-tokenizer or with byte_fallback"
    raise UnsupportedModelError(f"{where}: model: expected {expected}, got {spec['type']}")


def _refuse_pre(pre: str | None) -> None:
    if pre:
        raise ConvertError(
            f"--pre {pre}: expected a byte-level BPE tokenizer; a sentencepiece one has no pre-tokenizer"
        )


def _missing(folder: Path) -> Exception:
    if (folder / "tekken.json").is_file():
        advice = "save a tokenizer.json with transformers and put it beside"
        return UnsupportedModelError(f"{folder / 'tekken.json'}: a tekken-only tokenizer is not read; {advice}")
    return ModelFileError(f"{folder}: expected tokenizer.json or tokenizer.model, got neither")


def _check_shape(tokenizer: Mapping[str, Any], where: str) -> None:
    spec = tokenizer.get("model")
    if not isinstance(spec, Mapping) or not isinstance(spec.get("type", "BPE"), str):
        raise ModelFileError(f"{where}: model: expected an object with a type, got {type(spec).__name__}")
    if "type" not in spec:
        raise ModelFileError(f"{where}: model: type: missing")
    if spec["type"] == "BPE" and not isinstance(spec.get("vocab"), Mapping):
        raise ModelFileError(f"{where}: model: vocab: expected an object, got {type(spec.get('vocab')).__name__}")


def _byte_level(
    folder: Path,
    config: Mapping[str, Any],
    tokenizer_config: Mapping[str, Any],
    n_vocab: int,
    tokenizer: Mapping[str, Any],
    pre: str | None,
    faults: Faults,
) -> Vocabulary:
    name = pre or bpe.find_pre(tokenizer, str(folder / "tokenizer.json"))
    table, merges = bpe.read_table(tokenizer, n_vocab, faults)
    ids = special.special_ids(folder, config, tokenizer_config, table, faults)
    ends = special.added_ends(tokenizer, ids, faults)
    keys: list[KeyValue] = [
        ("tokenizer.ggml.model", "string", "gpt2"),
        ("tokenizer.ggml.pre", "string", name),
        ("tokenizer.ggml.tokens", "string[]", table.texts),
        ("tokenizer.ggml.token_type", "i32[]", table.types),
        ("tokenizer.ggml.merges", "string[]", merges),
    ]
    keys += _closing_keys(ids, ends) + special.chat_templates(folder, tokenizer_config, faults)
    notes = [NFC_NOTE] if "NFC" in repr(tokenizer.get("normalizer")) else []
    return Vocabulary("gpt2", name, keys, table, *ends, reference=tokenizer, notes=notes)


def _byte_fallback(
    folder: Path,
    config: Mapping[str, Any],
    tokenizer_config: Mapping[str, Any],
    n_vocab: int,
    tokenizer: Mapping[str, Any],
    model: spm.SentencePiece | None,
    faults: Faults,
) -> Vocabulary:
    notes = []
    if model is not None and spm.agrees(model, tokenizer):
        table = spm.table_of_model(model, n_vocab, "tokenizer.model", faults)
        for token, text in enumerate(spm.table_of_json(tokenizer, n_vocab, faults).texts[len(model.pieces) :]):
            table.texts[token + len(model.pieces)] = text
    else:
        table = spm.table_of_json(tokenizer, n_vocab, faults)
        if model is not None:
            notes.append("tokenizer.model and tokenizer.json disagree; the scores come from tokenizer.json's merges")
    spm.add_tokens(table, tokenizer, faults)
    ids = special.special_ids(folder, config, tokenizer_config, table, faults)
    ends = special.added_ends(tokenizer, ids, faults)
    prefix = spm.space_prefix(tokenizer)
    keys = _spm_keys(table, prefix != "never") + _closing_keys(ids, ends)
    keys += special.chat_templates(folder, tokenizer_config, faults)
    reference = tokenizer
    if prefix == "first":
        reference = spm.with_prefix_always(tokenizer)
        notes.append(PREFIX_NOTE)
    return Vocabulary("llama", "default", keys, table, *ends, reference=reference, notes=notes)


def _from_model(
    folder: Path,
    config: Mapping[str, Any],
    tokenizer_config: Mapping[str, Any],
    n_vocab: int,
    model: spm.SentencePiece,
    faults: Faults,
) -> Vocabulary:
    table = spm.table_of_model(model, n_vocab, "tokenizer.model", faults)
    added = _added_beside(folder, tokenizer_config)
    spm.add_tokens(table, {"added_tokens": added}, faults)
    ids = special.special_ids(folder, config, tokenizer_config, table, faults)
    # transformers' own defaults for a Llama tokenizer without tokenizer.json
    ends = bool(tokenizer_config.get("add_bos_token", True)), bool(tokenizer_config.get("add_eos_token", False))
    for name, wanted in zip(("bos", "eos"), ends, strict=True):
        if wanted and name not in ids:
            faults.add(f"tokenizer_config.json: {name}_token: missing, though add_{name}_token is true")
    keys = _spm_keys(table, model.add_dummy_prefix) + _closing_keys(ids, ends)
    keys += special.chat_templates(folder, tokenizer_config, faults)
    data = (folder / "tokenizer.model").read_bytes()
    return Vocabulary("llama", "default", keys, table, *ends, reference=None, reference_model=data)


def _added_beside(folder: Path, tokenizer_config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Added tokens of a checkpoint without tokenizer.json."""
    added: dict[int, dict[str, Any]] = {}
    if (folder / "added_tokens.json").is_file():
        for text, token in read_json(folder / "added_tokens.json").items():
            added[int(token)] = {"id": int(token), "content": text, "special": False}
    decoder = tokenizer_config.get("added_tokens_decoder")
    for token, entry in (decoder if isinstance(decoder, Mapping) else {}).items():
        if isinstance(entry, Mapping) and str(token).isdigit():
            added[int(token)] = {**entry, "id": int(token)}
    return list(added.values())


def _spm_keys(table: TokenTable, prefix: bool) -> list[KeyValue]:
    return [
        ("tokenizer.ggml.model", "string", "llama"),
        ("tokenizer.ggml.pre", "string", "default"),
        ("tokenizer.ggml.tokens", "string[]", table.texts),
        ("tokenizer.ggml.scores", "f32[]", table.scores),
        ("tokenizer.ggml.token_type", "i32[]", table.types),
        ("tokenizer.ggml.add_space_prefix", "bool", prefix),
    ]


def _closing_keys(ids: Mapping[str, int], ends: tuple[bool, bool]) -> list[KeyValue]:
    keys: list[KeyValue] = [
        (f"tokenizer.ggml.{special.SPECIAL[name]}_token_id", "u32", token) for name, token in ids.items()
    ]
    keys.append(("tokenizer.ggml.add_bos_token", "bool", ends[0]))
    keys.append(("tokenizer.ggml.add_eos_token", "bool", ends[1]))
    return keys
