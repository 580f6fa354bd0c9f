"""Filling in between a prompt and a suffix: the special tokens models have for that, and how they are put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from pysa.model import Model

# Metadata keys, the older ones last, and how the tokens are written where there is no key.
_KEYS = {
    "prefix": ("fim_pre_token_id", "prefix_token_id"),
    "suffix": ("fim_suf_token_id", "suffix_token_id"),
    "middle": ("fim_mid_token_id", "middle_token_id"),
}
_TEXTS = {
    "prefix": (
        "<|fim_prefix|>",
        "<fim-prefix>",
        "<fim_prefix>",
        "<｜fim▁begin｜>",
        "<PRE>",
        "▁<PRE>",
        "<|code_prefix|>",
    ),
    "suffix": (
        "<|fim_suffix|>",
        "<fim-suffix>",
        "<fim_suffix>",
        "<｜fim▁hole｜>",
        "<SUF>",
        "▁<SUF>",
        "<|code_suffix|>",
    ),
    "middle": ("<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>", "▁<MID>", "<|code_middle|>"),
}
_ANCHOR = "☺"  # keeps the tokenizer from putting a space before the suffix


class InfillTokens(NamedTuple):
    """Tokens that announce the text before the gap, the text after it, and the gap."""

    prefix: int
    suffix: int
    middle: int


def infill_tokens(metadata: Mapping[str, Any]) -> InfillTokens | None:
    """A model's tokens for filling in; None unless it has all three."""
    found = {name: _find(metadata, name) for name in _KEYS}
    ids = {name: token for name, token in found.items() if token is not None}
    return InfillTokens(**ids) if len(ids) == len(found) else None


def fill_in_tokens(
    model: Model, prompt: Sequence[int], suffix: str, suffix_first: bool = False
) -> tuple[list[int], str] | None:
    """The prompt for filling in; None if the model has no tokens for that.

    Args:
        model: whose vocabulary it is.
        prompt: tokens of the text before the gap.
        suffix: the text after it.
        suffix_first: whether the suffix comes before the prompt.

    Returns:
        Token ids without BOS and EOS; and what remains to be appended to the text, nothing.
    """
    special = infill_tokens(model.metadata)
    if special is None:
        return None
    before = [special.prefix, *prompt]
    after = [special.suffix, *_suffix_tokens(model, suffix)]
    return [*(after + before if suffix_first else before + after), special.middle], ""


def _suffix_tokens(model: Model, suffix: str) -> list[int]:
    if not suffix:
        return []
    tokenize = model.native.vocab.tokenize
    anchor, anchored = tokenize(_ANCHOR, False, False), tokenize(_ANCHOR + suffix, False, False)
    if anchored[: len(anchor)] == anchor:
        return anchored[len(anchor) :]
    return tokenize(suffix, False, False)


def _find(metadata: Mapping[str, Any], name: str) -> int | None:
    for key in _KEYS[name]:
        token = metadata.get(f"tokenizer.ggml.{key}")
        if isinstance(token, int):
            return token
    tokens = metadata.get("tokenizer.ggml.tokens", [])
    for text in _TEXTS[name]:
        if text in tokens:
            return int(tokens.index(text))
    return None
