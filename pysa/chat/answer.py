"""One answer: generating it, its text as it comes, thinking apart. Called by pysa.chat.conversation."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from pysa.chat.thinking import ThinkingSplitter, mark_tokens, n_begun
from pysa.chat.turn import Event, Kind, Piece, Turn
from pysa.errors import EvaluationCancelledError
from pysa.prefix import evaluate_prompt
from pysa.sampling import MAX_SEED
from pysa.text_stream import TextStream

if TYPE_CHECKING:
    from pysa import _native
    from pysa.chat.conversation import Conversation
    from pysa.chat.held import Prompt
    from pysa.model import Model

# Asked between the nodes of a graph, with the tokens held and those of the prompt; True stops the answer.
Watch: TypeAlias = "Callable[[int, int], bool]"


class Answer:
    """Tokens in, pieces of text out.

    Args:
        model: whose tokens they are.
        prompt: what is answered; its end may open the thinking. It is replaced when turns are dropped meanwhile.
        stop: text that ends the answer and is no part of it; empty for none.
    """

    def __init__(self, model: Model, prompt: Prompt, stop: str = "") -> None:
        self.prompt = prompt
        self.tokens: list[int] = []
        self.raw = ""  # all of the text, marks of thinking and `stop` too
        self.has_stopped = False  # at `stop`
        self._stop = stop
        self._n_given = 0  # characters of `raw` that cannot be the beginning of `stop` any more
        self._said: dict[Kind, str] = {"thinking": "", "answer": ""}
        self._stream = TextStream(model, mark_tokens(model))
        self._splitter = ThinkingSplitter(prompt.text)

    @property
    def thinking(self) -> str:
        """What was thought so far."""
        return self._said["thinking"]

    @property
    def text(self) -> str:
        """What was answered so far, thinking left out."""
        return self._said["answer"]

    @property
    def kept(self) -> str:
        """`raw` without `stop`, once it is finished."""
        return self.raw[: self._n_given]

    @property
    def has_thought(self) -> bool:
        """Whether there were marks of thinking, even if nothing stood between them."""
        return self._splitter.has_thought

    def feed(self, token: int) -> list[Piece]:
        """The pieces that are sure with this token."""
        self.tokens.append(token)
        return self._take(self._stream.feed(token))

    def finish(self) -> list[Piece]:
        """The rest: an unfinished character, text that might have become a mark."""
        pieces = self._take(self._stream.finish())
        if not self.has_stopped:
            pieces += self._give(len(self.raw))
        return pieces + self._keep(self._splitter.finish())

    def _take(self, text: str) -> list[Piece]:
        self.raw += text
        if self.has_stopped:
            return []
        at = self.raw.find(self._stop, self._n_given) if self._stop else -1
        self.has_stopped = at >= 0
        return self._give(at if self.has_stopped else len(self.raw) - n_begun(self.raw, self._stop))

    def _give(self, end: int) -> list[Piece]:
        text, self._n_given = self.raw[self._n_given : end], max(self._n_given, end)
        return self._keep(self._splitter.feed(text)) if text else []

    def _keep(self, pieces: list[Piece]) -> list[Piece]:
        for piece in pieces:
            self._said[piece.kind] += piece.text
        return pieces


def generate(chat: Conversation, turn: Turn, answer: Answer, watch: Watch | None) -> Iterator[Event]:
    """Evaluates the prompt and one token after another until something ends the answer; `turn` says what."""
    session, speed = chat.session, turn.speed
    native, is_eog = session.native, session.model.native.vocab.is_eog
    sampler = _sampler(chat)
    last = np.empty(1, dtype=np.int32)
    start = time.perf_counter()
    tokens = answer.prompt.tokens

    def is_stopped() -> bool:
        return watch is not None and watch(native.n_past, len(tokens))

    interrupt = None if watch is None else is_stopped
    try:
        logits, reuse = evaluate_prompt(session, tokens, interrupt=interrupt)
        speed.n_prompt, speed.n_reused = len(tokens), reuse.n_reused
        token = sampler.sample(logits)
        speed.prompt_s, start = time.perf_counter() - start, time.perf_counter()
        while not is_eog(token):
            yield from answer.feed(token)
            speed.answer_s = time.perf_counter() - start
            if answer.has_stopped:
                break
            if len(answer.tokens) == chat.max_tokens:
                turn.stopped = "max_tokens"
                return
            if is_stopped():  # between tokens: asking between the nodes of each costs small models a third
                turn.stopped = "interrupted"
                return
            if native.n_past == native.n_ctx:
                yield from chat.drop_while_answering(answer)
                tokens = answer.prompt.tokens + answer.tokens
                if len(tokens) > native.n_ctx:
                    turn.stopped = "context_full"
                    return
                token = sampler.sample(evaluate_prompt(session, tokens, interrupt=interrupt)[0])
            else:
                last[0] = token
                token = native.next_token(last, sampler)
        turn.stopped = "end"
    except EvaluationCancelledError:
        turn.stopped = "interrupted"


def _sampler(chat: Conversation) -> _native.Sampler:
    params = chat.sampling
    if params.seed is not None:
        # The same seed gives the same conversation, but another answer to the same message.
        params = replace(params, seed=(params.seed + chat.n_answers) % (MAX_SEED + 1))
    chat.n_answers += 1
    return params.make(chat.session.model)
