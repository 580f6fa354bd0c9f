"""A chat in the terminal: the loop of messages, commands and answers. What the terminal can do is chat_screen.py's."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, TracebackType

from pysa.chat import Conversation, Piece
from pysa.chat.saved import load_chat
from pysa.chat.turn import Event
from pysa.cli.chat_commands import Leave, completions, run_command, split_command
from pysa.cli.chat_history import history_path
from pysa.cli.chat_input import (
    CommandCompleter,
    EditorReader,
    InterruptedInputError,
    LineReader,
    Reader,
    unquoted,
)
from pysa.cli.chat_screen import Flow, Screen
from pysa.cli.chat_settings import Shown
from pysa.cli.chat_setup import joined, read_text
from pysa.cli.chat_view import count, event_line, status_line, stopped_line
from pysa.cli.errors import EXIT_INTERRUPTED, UsageError, one_line
from pysa.errors import PysaError

PROGRESS_S = 0.5  # a prompt that takes longer shows how far it is
REDRAW_S = 0.1


class Stop:
    """Ctrl-C while the model answers stops the answer, not the program. A context manager, and a Watch."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._n_signals = 0
        self._shown_at = 0.0

    def __enter__(self) -> Stop:
        self._n_signals, self._shown_at = 0, time.monotonic() + PROGRESS_S - REDRAW_S
        self._before = signal.signal(signal.SIGINT, self._count)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGINT, self._before)

    def __call__(self, n_held: int, n_prompt: int) -> bool:
        """Whether to stop; tells how much of a long prompt is read."""
        now = time.monotonic()
        if n_held < n_prompt - 1 and now > self._shown_at + REDRAW_S:
            self._shown_at = now
            self._screen.progress(f"reading: {n_held:,} of {count(n_prompt, 'token')}")
        return self._n_signals > 0

    def _count(self, _signal: int, _frame: FrameType | None) -> None:
        self._n_signals += 1
        if self._n_signals > 2:  # nobody has asked: it hangs
            raise KeyboardInterrupt


class Talk:
    """A chat in the terminal.

    Args:
        chat: the conversation.
        screen: where it is shown.
        reader: where messages are typed.
        shown: how it is shown.
    """

    def __init__(self, chat: Conversation, screen: Screen, reader: Reader, shown: Shown) -> None:
        self.chat, self.screen, self.reader, self.shown = chat, screen, reader, shown
        self.attached: list[str] = []  # files that go before the next message
        self.saved_as: Path | None = None
        self.watch = Stop(screen)

    def run(self) -> int:
        """Talks until somebody leaves; the exit status."""
        n_interrupts = 0
        while True:
            try:
                text = self.reader.read()
                n_interrupts = 0
                self._handle(text)
            except (EOFError, Leave):
                return 0
            except (InterruptedInputError, KeyboardInterrupt) as interrupt:
                if isinstance(interrupt, InterruptedInputError) and interrupt.had_text:
                    continue
                n_interrupts += 1
                if n_interrupts > 1:
                    return EXIT_INTERRUPTED
                self.screen.notes(["Ctrl-C again or Ctrl-D leaves; /help lists the commands"])

    def _handle(self, text: str) -> None:
        if not text.strip():
            return
        try:
            self.take(text)
        except (PysaError, UsageError, OSError) as error:
            self.screen.error(one_line(str(error)))
        self.screen.notes([""])

    def take(self, text: str) -> None:
        """A message or a command.

        Raises:
            Leave: the command leaves.
            PysaError, UsageError, OSError: it cannot be done; nothing has changed.
        """
        block = unquoted(text)
        command = split_command(text) if block is None else None
        if command is not None:
            run_command(self, *command)
            return
        message = text.strip() if block is None else block
        message = message[1:] if message.startswith("//") else message
        if message.strip():
            self.answer(self.chat.say(joined([*self.attached, message]), self.watch))
            self.attached.clear()

    def answer(self, events: Iterator[Event]) -> None:
        """Shows an answer as it comes."""
        flow = Flow(self.screen, self.shown.wrap and not self.screen.is_dumb)
        with self.watch:
            try:
                for event in events:
                    if not isinstance(event, Piece):
                        flow.finish()
                        self.screen.notes([event_line(event)])
                    elif event.kind == "answer" or self.shown.thinking == "show":
                        flow.write(event.kind, event.text)
                    else:
                        self.screen.progress("thinking")
            finally:
                flow.finish()
        if (line := stopped_line(self.chat)) is not None:
            self.screen.notes([line])
        if self.shown.status:
            self.screen.notes([status_line(self.chat, self.screen.console)])

    def attach(self, path: str) -> None:
        """Puts a file before the next message.

        Raises:
            UsageError, OSError: it cannot be read, or is no text.
        """
        text = read_text(path)
        self.attached.append(text)
        n_tokens = len(self.chat.session.model.tokenize(text, add_special=False))
        self.screen.notes([f"{path}: {count(n_tokens, 'token')}, before your next message"])

    def ask_again(self, text: str) -> str:
        """Lets a message be edited; empty if that is given up."""
        try:
            typed = self.reader.read(text)
        except (EOFError, InterruptedInputError):
            return ""
        block = unquoted(typed)
        return typed.strip() if block is None else block

    def load(self, path: Path) -> None:
        """Goes on with a saved chat."""
        plan = self.chat.session.native.plan
        problem = load_chat(self.chat, path)
        self.saved_as = path
        if self.chat.session.native.plan != plan:
            self.screen.notes(["it runs the plan that it was saved with"])
        if problem is not None:
            self.screen.notes([f"the state cannot be used: {one_line(problem)}"])
        held = f", {self.chat.n_used:,} of {count(self.chat.session.n_ctx, 'token')} of context"
        self.screen.notes([f"loaded: {count(len(self.chat.turns), 'turn')}{held}"])


def open_reader(screen: Screen, with_history: bool) -> Reader:
    """The line editor, or plain lines where the terminal has no more."""
    if screen.is_dumb:
        return LineReader(screen)
    return EditorReader(screen, history_path() if with_history else None, CommandCompleter(completions()))
