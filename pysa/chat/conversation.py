"""`Conversation`: turns over one session. Says, answers, goes back, and drops the oldest turns when it has to.

What is evaluated and what that costs is decided here; how turns become text is the renderer's, how far a session can go
back is pysa.prefix's. Called by pysa.cli.chat, which prints.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING

from pysa._arguments import check_int, check_text
from pysa.chat.answer import Answer, Watch, generate
from pysa.chat.held import Held, Prompt, Segment, fit, n_said_behind
from pysa.chat.turn import Again, Dropped, Event, Reason, Turn
from pysa.errors import ArgumentError, ContextFullError, ModelFileError
from pysa.prefix import common_prefix, rewind
from pysa.sampling import SamplingParams
from pysa.session import Session, return_position

if TYPE_CHECKING:
    from pysa.chat.renderer import Renderer

ROOM = 256  # tokens that an answer of any length should find free
NEXT = Turn("go on")  # stands for whatever is said next


class Conversation:
    """A conversation with a model.

    Args:
        session: where the conversation is held; nobody else may use it from now on.
        renderer: the chat template.
        sampling: how tokens are picked; None takes SamplingParams' defaults. May be replaced at any time.
        system: the system message; empty for none.
        max_tokens: most tokens of an answer; 0 for no limit. May be replaced at any time.
    """

    def __init__(
        self,
        session: Session,
        renderer: Renderer,
        sampling: SamplingParams | None = None,
        *,
        system: str = "",
        max_tokens: int = 0,
    ) -> None:
        self.session = session
        self.renderer = renderer
        self.sampling = sampling or SamplingParams()
        self.max_tokens = check_int("max_tokens", max_tokens, 0, 2**31 - 1)
        self.turns: list[Turn] = []
        self.n_dropped = 0  # of the turns, the oldest, that the context no longer has
        self.n_answers = 0  # those taken back too
        self.held = Held()
        self._system = check_text("system", system)
        self._reason: Reason | None = None  # why the next prompt is not what stood there before

    @property
    def system(self) -> str:
        """The system message; empty for none. A new one takes effect with the next message."""
        return self._system

    @system.setter
    def system(self, text: str) -> None:
        self._system, self._reason = check_text("system", text), "system"

    @property
    def n_used(self) -> int:
        """Tokens of the context that the conversation takes."""
        return self.held.n_evaluated

    def say(self, text: str, watch: Watch | None = None) -> Iterator[Event]:
        """Adds a message and answers it.

        Args:
            text: the message.
            watch: asked while computing; True stops the answer, and what was said stays.

        Yields:
            Pieces of the answer as they come, and what has to be known before: turns dropped, tokens evaluated again.

        Raises:
            ContextFullError: the message does not fit the context even alone; nothing has changed.
            ArgumentError: the template refuses such a conversation; nothing has changed.
            DeviceError: not enough memory.
        """
        turn = Turn(check_text("message", text), start=self.held.n_evaluated, n_segments=len(self.held.segments))
        n_dropped = self.n_dropped
        self.turns.append(turn)
        try:
            prompt = yield from self._prepare()
            turn.start = max(common_prefix(self.session.native.tokens, prompt.tokens[:-1]), prompt.n_known)
            turn.n_segments = prompt.n_kept
            yield from self._answer(turn, prompt, watch)
        finally:
            if not turn.stopped:
                self.turns.pop()
                self.n_dropped = n_dropped
                self.held.cut(turn.n_segments, turn.start)

    def regenerate(self, watch: Watch | None = None) -> Iterator[Event]:
        """Answers the last message again, from exactly the tokens of the first time. Arguments as of say().

        If it is stopped before anything is said, the answer that was there stays.
        """
        self.check_turns()
        before, segments = self.turns[-1], list(self.held.segments)
        turn = self.turns[-1] = Turn(before.user, start=before.start, n_segments=before.n_segments)
        self.held.cut(len(segments) - 1, sum(len(segment.tokens) for segment in segments[:-1]))
        try:
            yield from self._answer(turn, (yield from self._prepare()), watch)
        finally:
            if not turn.stopped or (turn.stopped == "interrupted" and not turn.speed.n_answer):
                self.turns[-1], self.held.segments = before, segments

    def edit(self, text: str, watch: Watch | None = None) -> Iterator[Event]:
        """Says something else in place of the last message. Arguments as of say()."""
        check_text("message", text)
        self.undo()
        yield from self.say(text, watch)

    def undo(self) -> Turn:
        """Takes the last message and its answer back.

        Raises:
            ArgumentError: there is none.
        """
        self.check_turns()
        turn = self.turns.pop()
        self.held.cut(turn.n_segments, turn.start)
        # The session follows at once where that is free; elsewhere when it is known what comes next.
        if self.session.native.rollback_position(turn.start) == turn.start:
            rewind(self.session, self.session.tokens[: turn.start], keep_last=0)
        return turn

    def clear(self) -> None:
        """Forgets all turns; the system message stays."""
        self.session.reset()
        self.restore([], 0, Held(), self.session)

    def restore(self, turns: list[Turn], n_dropped: int, held: Held, session: Session) -> None:
        """Becomes another conversation, held by `session` as far as it has the tokens; the system message stays."""
        if session is not self.session:
            self.session.close()
        self.session, self.turns, self.n_dropped, self.held = session, turns, n_dropped, held
        self._reason = "loaded" if turns else None

    def check_turns(self) -> None:
        """Raises ArgumentError where there is no message to go back to."""
        if len(self.turns) <= self.n_dropped:
            raise ArgumentError("conversation: expected a message to go back to, got none")

    # ---- prompts

    def _prompt(self) -> Prompt:
        return fit(self.held, self.renderer.render(self._system, self.turns[self.n_dropped :]), self.renderer)

    def _prepare(self) -> Generator[Event, None, Prompt]:
        """The prompt of the last turn, once there is room for it and an answer; says what that takes."""
        n_ctx = self.session.n_ctx
        prompt, n_dropped = self._prompt(), self.n_dropped
        n_tokens = len(prompt.tokens)
        if n_ctx - n_tokens < min(self.max_tokens or ROOM, n_ctx // 4):
            prompt = self._drop(prompt, 0)
        if len(prompt.tokens) > n_ctx:
            self.n_dropped = n_dropped
            system = " with the system message" if self._system else ""
            raise ContextFullError(
                f"message: too long for the context: expected at most {n_ctx:,} tokens{system}, "
                f"got {len(prompt.tokens):,}; shorten it, or start with a larger --ctx-size"
            )
        if self.n_dropped > n_dropped:
            yield Dropped(self.n_dropped - n_dropped, n_tokens - len(prompt.tokens))
        if again := self._again(prompt):
            self.turns[-1].speed.n_again = again.n_tokens
            yield again
        self._reason = None
        return prompt

    def _drop(self, prompt: Prompt, n_said: int) -> Prompt:
        """Drops the oldest turns until a quarter of the context is free, or the last one alone is left.

        A quarter, because all that is kept has to be evaluated again: that should not happen with each message.
        """
        n_most = self.session.n_ctx * 3 // 4 - n_said
        while (n_over := len(prompt.tokens) - n_most) > 0 and self.n_dropped < len(self.turns) - 1:
            while n_over > 0 and self.n_dropped < len(self.turns) - 1:
                n_over -= self.turns[self.n_dropped].n_tokens(self.session.model)
                self.n_dropped += 1
            self._reason = "dropped"
            prompt = self._prompt()
        return prompt

    def _n_kept(self, tokens: list[int]) -> int:
        """How many of a prompt's tokens the session holds and can go back to, as pysa.prefix.rewind() has it."""
        native = self.session.native
        return return_position(native, common_prefix(native.tokens, tokens[:-1]))

    def _again(self, prompt: Prompt) -> Again | None:
        """Tokens of the prompt that were evaluated before, and will be again."""
        n_again = max(0, min(prompt.n_known, len(prompt.tokens) - 1) - self._n_kept(prompt.tokens))
        reason: Reason = "loaded" if self._reason == "loaded" else "window"
        if prompt.is_rewritten:
            has_thought = any(turn.thinking for turn in self.turns[self.n_dropped : -1])
            reason = self._reason or ("thinking" if has_thought else "rewritten")
            n_again += n_said_behind(prompt, self.turns[self.n_dropped : -1], self.session.model)
        return Again(n_again, reason) if n_again else None

    # ---- answers

    def _answer(self, turn: Turn, prompt: Prompt, watch: Watch | None) -> Iterator[Event]:
        answer = Answer(self.session.model, prompt, self.renderer.stop)
        try:
            yield from generate(self, turn, answer, watch)
            yield from answer.finish()
        finally:
            answer.finish()
            self.held = Held([*answer.prompt.segments, Segment(answer.raw, answer.tokens)], self.session.n_past)
            turn.thinking, turn.speed.n_answer = answer.thinking, len(answer.tokens)
            turn.answer = self._content(answer)
            if answer.tokens and not turn.stopped:
                turn.stopped = "interrupted"

    def drop_while_answering(self, answer: Answer) -> Iterator[Event]:
        """Makes room in a context that is full in the middle of an answer, if there are older turns to drop."""
        n_dropped, n_tokens = self.n_dropped, len(answer.prompt.tokens)
        answer.prompt = self._drop(answer.prompt, len(answer.tokens))
        self._reason = None
        if self.n_dropped > n_dropped:
            yield Dropped(self.n_dropped - n_dropped, n_tokens - len(answer.prompt.tokens))
            tokens = answer.prompt.tokens + answer.tokens
            n_again = len(tokens) - self._n_kept(tokens)
            self.turns[-1].speed.n_again += n_again
            yield Again(n_again, "dropped")

    def _content(self, answer: Answer) -> str:
        """The answer as the template gets it back: so that it writes again what is held, if that can be."""
        stripped = answer.text.strip()
        for text in () if answer.has_thought else (answer.kept, stripped):
            turns = [*self.turns[self.n_dropped : -1], Turn(self.turns[-1].user, text), NEXT]
            try:
                written = self.renderer.render(self._system, turns)
            except (ArgumentError, ModelFileError):
                break
            if written.startswith(answer.prompt.text + answer.raw):
                return text
        return stripped
