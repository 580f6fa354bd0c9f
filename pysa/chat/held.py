"""The tokens a conversation put in its session, beside the text they stand for. Called by pysa.chat.conversation.

The tokens are the truth: an answer stays as it was sampled, however a tokenizer would cut its text. A template may
write earlier turns differently the next time; from there on, the text is tokenized anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pysa.prefix import common_prefix

if TYPE_CHECKING:
    from pysa.chat.renderer import Renderer
    from pysa.chat.turn import Turn
    from pysa.model import Model


@dataclass(frozen=True)
class Segment:
    """Rendered text, or an answer's, and its tokens."""

    text: str
    tokens: list[int]


@dataclass
class Held:
    """What was put in the session, oldest first.

    Args:
        segments: in turn what the template wrote and what the model said.
        n_evaluated: tokens from the beginning that have been evaluated, also where the session has lost them since.
    """

    segments: list[Segment] = field(default_factory=list)
    n_evaluated: int = 0

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(segment.text for segment in self.segments)

    @property
    def tokens(self) -> list[int]:
        """All of them."""
        return [token for segment in self.segments for token in segment.tokens]

    def cut(self, n_segments: int, n_evaluated: int) -> None:
        """Forgets the segments from `n_segments` on, and that more than `n_evaluated` tokens were evaluated."""
        del self.segments[n_segments:]
        self.n_evaluated = min(self.n_evaluated, n_evaluated)


@dataclass(frozen=True)
class Prompt:
    """A rendered conversation as tokens.

    Args:
        text: all of it.
        segments: it, in pieces; those that were put in the session before come first and keep their tokens.
        n_kept: how many of the pieces those are.
        n_known: tokens at the beginning that have been evaluated before.
        n_same: characters at the beginning that have stood there before.
        is_rewritten: something else stood there before.
    """

    text: str
    segments: list[Segment]
    n_kept: int
    n_known: int
    n_same: int
    is_rewritten: bool

    @property
    def tokens(self) -> list[int]:
        """All of them."""
        return [token for segment in self.segments for token in segment.tokens]


def fit(held: Held, text: str, renderer: Renderer) -> Prompt:
    """A prompt for `text` that keeps the tokens of what is held as far as the text is the same."""
    segments: list[Segment] = []
    n_same = 0
    for segment in held.segments:
        if not text.startswith(segment.text, n_same):
            break
        n_same += len(segment.text)
        segments.append(segment)
    n_kept = len(segments)
    is_rewritten = n_kept < len(held.segments)
    if n_same < len(text):
        segments.append(Segment(text[n_same:], renderer.tokenize_more(text[:n_same], text[n_same:])))
    tokens = [token for segment in segments for token in segment.tokens]
    n_known = min(held.n_evaluated, common_prefix(held.tokens, tokens))
    if is_rewritten:
        n_same += _n_common(held.text[n_same:], text[n_same:])
    return Prompt(text, segments, n_kept, n_known, n_same, is_rewritten)


def n_said_behind(prompt: Prompt, turns: Sequence[Turn], model: Model) -> int:
    """Tokens of these turns' messages and answers that stand behind what is the same in the prompt as before."""
    n, at = 0, 0
    for turn in turns:
        for text in (turn.user.strip(), turn.answer.strip()):
            found = prompt.text.find(text, at)
            if text and found >= 0:
                at = found + len(text)
                n += len(model.tokenize(text, add_special=False)) if found >= prompt.n_same else 0
    return n


def _n_common(a: str, b: str) -> int:
    n = min(len(a), len(b))
    return next((i for i in range(n) if a[i] != b[i]), n)
