"""Byte-level BPE: `tokenizer.ggml.model` "gpt2". The name of the pre-tokenizer comes from its structure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pysa.errors import UnsupportedModelError
from pysa_convert.faults import Faults
from pysa_convert.vocab.base import TokenTable, added_type

Step = tuple[Any, ...]

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_START = r"[^\r\n\p{L}\p{N}]?"
_TAIL_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_BYTES: Step = ("bytes", False)

# structure -> name in libllama; names that differ only in the flags that are written as keys share a row
SIGNATURES: dict[tuple[Step, ...], str] = {
    (("bytes", True),): "gpt-2",
    (("digits",), ("bytes", True)): "smollm",
    (("split", rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}{{1,3}}|{_TAIL}"), _BYTES): "llama-bpe",
    (("split", rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}|{_TAIL}"), _BYTES): "qwen2",
    (("split", rf"{_CONTRACTIONS}|{_START}[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*"
      r"|\s*[\r\n]+|\s+(?!\S)|\s+"), _BYTES): "qwen35",
    (("split", rf"{_START}{_UPPER}*{_LOWER}+|{_START}{_UPPER}+{_LOWER}*|\p{{N}}|{_TAIL_SLASH}"), _BYTES): "tekken",
    (("split", rf"{_START}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_START}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
      rf"|\p{{N}}{{1,3}}|{_TAIL_SLASH}"), _BYTES): "gpt-4o",
}  # fmt: skip
# the same splits in libllama without looking a whole word up before merging
WITHOUT_IGNORE_MERGES = {"llama-bpe": "dbrx"}


def signature(tokenizer: Mapping[str, Any]) -> tuple[Step, ...]:
    """The pre-tokenizer as steps that can be compared."""
    top = tokenizer.get("pre_tokenizer") or {}
    return tuple(_step(part) for part in (top.get("pretokenizers", []) if top.get("type") == "Sequence" else [top]))


def _step(part: Mapping[str, Any]) -> Step:
    kind = part.get("type")
    if kind == "ByteLevel":
        prefix = ("prefix",) if part.get("add_prefix_space") else ()
        return ("bytes", bool(part.get("use_regex", True)), *prefix)
    if kind == "Digits" and part.get("individual_digits"):
        return ("digits",)
    pattern = part.get("pattern")
    if kind == "Split" and isinstance(pattern, Mapping) and part.get("behavior") in ("Isolated", "Removed"):
        inverted = part["behavior"] == "Removed"
        if bool(part.get("invert")) == inverted and isinstance(pattern.get("Regex"), str):
            # some files hold the control characters themselves
            return ("split", pattern["Regex"].replace("\r", r"\r").replace("\n", r"\n"))
    return ("other", str(kind), repr(sorted(part.items(), key=str)))


def find_pre(tokenizer: Mapping[str, Any], where: str) -> str:
    """The pre-tokenizer by libllama's name.

    Raises:
        UnsupportedModelError: a structure outside the table.
    """
    steps = signature(tokenizer)
    name = SIGNATURES.get(steps)
    if name is None:
        known = ", ".join(sorted(set(SIGNATURES.values())))
        advice = "if you know that one fits, name it with --pre NAME: the ids are compared before anything is kept"
        found = " + ".join(" ".join(str(item)[:90] for item in step) for step in steps)
        raise UnsupportedModelError(f"{where}: pre_tokenizer: expected the structure of {known}, got {found}; {advice}")
    if not tokenizer["model"].get("ignore_merges", False):
        name = WITHOUT_IGNORE_MERGES.get(name, name)
    return name


def read_table(tokenizer: Mapping[str, Any], n_vocab: int, faults: Faults) -> tuple[TokenTable, list[str]]:
    """The tokens and the merges as `left right`."""
    model = tokenizer["model"]
    table = TokenTable.of(model["vocab"], n_vocab, faults)
    for added in tokenizer.get("added_tokens") or []:
        text = str(added.get("content", ""))
        table.add(int(added.get("id", -1)), text, added_type(text, bool(added.get("special"))), 0.0, faults)
    table.rename_repeated()
    merges = []
    for merge in model.get("merges") or []:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) and part for part in pair):
            faults.add(f"tokenizer.json: merges: expected two parts, got {merge!r}")
            continue
        merges.append(" ".join(pair))
    if not merges:
        faults.add("tokenizer.json: merges: expected some, got none")
    return table, merges
