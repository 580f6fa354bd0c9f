"""Tells what a model thinks from what it answers, while it streams. Called by pysa.chat.answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pysa.chat.turn import Kind, Piece

if TYPE_CHECKING:
    from pysa.model import Model

# What opens and closes thinking, by the models that write it.
MARKS = (
    ("<think>", "</think>"),  # DeepSeek-R1, Qwen3, QwQ, SmolLM3, Phi-4-reasoning
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),  # EXAONE Deep
    ("<reasoning>", "</reasoning>"),
    ("[THINK]", "[/THINK]"),  # Magistral
    ("<|begin_of_thought|>", "<|end_of_thought|>"),  # Sky-T1
    ("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A
)


def mark_tokens(model: Model) -> frozenset[int]:
    """Special tokens that are a mark: TextStream has to write them out."""
    ids = (model.tokenize(mark, add_special=False) for pair in MARKS for mark in pair)
    return frozenset(tokens[0] for tokens in ids if len(tokens) == 1)


class ThinkingSplitter:
    """Splits an answer's text as it comes. Marks are not given; white space around them neither.

    An answer thinks only if it begins with a mark, so that talk about marks is talk.

    Args:
        prompt: the rendered prompt: a template may have opened the thinking itself.
    """

    def __init__(self, prompt: str = "") -> None:
        end = prompt.rstrip()
        self._close = next((close for open_, close in MARKS if end.endswith(open_)), "")
        self._kind: Kind | None = "thinking" if self._close else None  # None: not known yet
        self._at_start = True
        self._held = ""

    @property
    def has_thought(self) -> bool:
        """Whether there was a mark."""
        return bool(self._close)

    def feed(self, text: str) -> list[Piece]:
        """The pieces that are sure with this text."""
        self._held += text
        pieces: list[Piece] = []
        if self._kind is None:
            self._begin()
        if self._kind == "thinking":
            self._think(pieces)
        if self._kind == "answer":
            self._give(pieces, self._held)
            self._held = ""
        return pieces

    def finish(self) -> list[Piece]:
        """What was held back: text that might have become a mark."""
        pieces: list[Piece] = []
        self._give(pieces, self._held)
        self._held = ""
        return pieces

    def _begin(self) -> None:
        text = self._held.lstrip()
        for open_, close in MARKS:
            if text.startswith(open_):
                self._kind, self._close, self._held = "thinking", close, text.removeprefix(open_)
                return
        if not any(open_.startswith(text) for open_, _ in MARKS):
            self._kind = "answer"

    def _think(self, pieces: list[Piece]) -> None:
        inside, mark, rest = self._held.partition(self._close)
        if mark:
            self._give(pieces, inside.rstrip())
            self._kind, self._at_start, self._held = "answer", True, rest
            return
        # A mark may have begun, and white space before it is dropped with it.
        n_keep = len(inside) - n_begun(inside, self._close)
        n_keep = len(inside[:n_keep].rstrip())
        self._give(pieces, inside[:n_keep])
        self._held = inside[n_keep:]

    def _give(self, pieces: list[Piece], text: str) -> None:
        text = text.lstrip() if self._at_start else text
        if text:
            self._at_start = False
            pieces.append(Piece(self._kind or "answer", text))


def n_begun(text: str, mark: str) -> int:
    """How many characters at the end of `text` may be the beginning of `mark`."""
    return next((n for n in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:n])), 0)
