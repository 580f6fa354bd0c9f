"""What a conversation is made of and what it tells while it answers. Plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from pysa.model import Model

Kind: TypeAlias = Literal["thinking", "answer"]
Stopped: TypeAlias = Literal["", "end", "max_tokens", "interrupted", "context_full"]
Reason: TypeAlias = Literal["window", "thinking", "rewritten", "system", "dropped", "loaded"]


@dataclass
class Speed:
    """What an answer cost. Times in seconds.

    Args:
        n_prompt: tokens of the whole prompt.
        n_reused: of which the session held already.
        n_again: of which had been evaluated before, and were evaluated again.
        n_answer: tokens of the answer.
        prompt_s: until the first token of the answer.
        answer_s: from there to the last.
    """

    n_prompt: int = 0
    n_reused: int = 0
    n_again: int = 0
    n_answer: int = 0
    prompt_s: float = 0.0
    answer_s: float = 0.0

    @property
    def prompt_per_s(self) -> float:
        """Tokens of the prompt evaluated a second."""
        return (self.n_prompt - self.n_reused) / self.prompt_s if self.prompt_s > 0 else 0.0

    @property
    def answer_per_s(self) -> float:
        """Tokens of the answer a second; the first one belongs to the prompt."""
        return (self.n_answer - 1) / self.answer_s if self.answer_s > 0 else 0.0


@dataclass
class Turn:
    """A message and its answer.

    Args:
        user: the message.
        answer: as the template gets it back, thinking left out.
        thinking: what stood between the model's marks of thinking.
        stopped: why the answer ended; empty while there is none.
        start: tokens that stood before the message.
        n_segments: segments of what is held before it.
        speed: what the answer cost.
    """

    user: str
    answer: str = ""
    thinking: str = ""
    stopped: Stopped = ""
    start: int = 0
    n_segments: int = 0
    speed: Speed = field(default_factory=Speed)

    def n_tokens(self, model: Model) -> int:
        """Tokens of the message and the answer, without what a template writes around them."""
        return sum(len(model.tokenize(text, add_special=False)) for text in (self.user, self.answer))


@dataclass(frozen=True)
class Piece:
    """Text that is ready to be shown."""

    kind: Kind
    text: str


@dataclass(frozen=True)
class Again:
    """Tokens that were evaluated once are about to be evaluated again."""

    n_tokens: int
    reason: Reason


@dataclass(frozen=True)
class Dropped:
    """The oldest turns were dropped from the context, which is full; the system message stays."""

    n_turns: int
    n_tokens: int


Event: TypeAlias = "Piece | Again | Dropped"
