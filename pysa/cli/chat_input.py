"""Where messages and commands are typed: a line editor with history and completion, or plain lines on a dumb terminal.

Only this module and chat_history.py know prompt_toolkit.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import has_focus
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output.vt100 import Vt100_Output
from prompt_toolkit.shortcuts import CompleteStyle
from wcwidth import iter_graphemes

from pysa.cli.chat_history import open_history

if TYPE_CHECKING:
    from prompt_toolkit.output.color_depth import ColorDepth
    from prompt_toolkit.styles import Attrs

    from pysa.cli.chat_screen import Screen

PROMPT, MORE = "> ", ". "
QUOTES = '"""'


class InterruptedInputError(Exception):
    """Ctrl-C at the prompt.

    Args:
        had_text: something was typed, and is discarded.
    """

    def __init__(self, had_text: bool = False) -> None:
        super().__init__()
        self.had_text = had_text


class Reader(Protocol):
    """What the chat reads from."""

    def read(self, default: str = "") -> str:
        """What is typed, as it is; `default` is there to be edited.

        Raises:
            InterruptedInputError: Ctrl-C.
            EOFError: Ctrl-D.
        """


def is_open(text: str) -> bool:
    '''Whether a block that `"""` began goes on.'''
    text = text.strip()
    return text.startswith(QUOTES) and not (len(text) >= 2 * len(QUOTES) and text.endswith(QUOTES))


def unquoted(text: str) -> str | None:
    '''The lines of a block between two `"""`; None for any other text.'''
    text = text.strip()
    if not text.startswith(QUOTES):
        return None
    return text.removeprefix(QUOTES).removesuffix(QUOTES).removeprefix("\n").removesuffix("\n")


class LineReader:
    """Plain lines, for a terminal that cannot move its cursor."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen

    def read(self, default: str = "") -> str:
        """As Reader has it; `default` is shown, and taken where nothing is typed."""
        if default:
            self._screen.notes(default.splitlines())
        text = ""
        try:
            while not text or is_open(text):
                self._screen.console.write(MORE if text else PROMPT)
                line = sys.stdin.readline()
                if not line:
                    raise EOFError
                text += line
        except KeyboardInterrupt:
            self._screen.console.write("\n")
            raise InterruptedInputError(bool(text)) from None
        return text.rstrip("\n") or default


class EditorReader:
    """A line editor.

    Args:
        screen: whose colours are used.
        history: a file for what was typed; None keeps it for this run only.
        complete: what may follow the beginning of a command line.
    """

    def __init__(self, screen: Screen, history: Path | None, completer: Completer | None = None) -> None:
        output = _Output if screen.console.colour else _PlainOutput
        self._session: PromptSession[str] = PromptSession(
            FormattedText([("bold fg:ansicyan", PROMPT)]),
            multiline=True,  # Enter is bound below
            prompt_continuation=lambda _width, _line, n_wrapped: "  " if n_wrapped else MORE,
            key_bindings=_bindings(),
            history=open_history(history),
            completer=completer,
            complete_while_typing=False,
            complete_style=CompleteStyle.READLINE_LIKE,
            reserve_space_for_menu=0,
            enable_open_in_editor=True,
            enable_suspend=True,
            output=output.from_pty(sys.stdout, term=os.environ.get("TERM")),
        )

    def read(self, default: str = "") -> str:
        """As Reader has it."""
        return self._session.prompt(default=default)


class _Output(Vt100_Output):
    """A terminal that is not asked where its cursor is: one that does not tell would get a warning printed."""

    @property
    def responds_to_cpr(self) -> bool:
        return False


class _PlainOutput(_Output):
    """The same without colours, bold and their ends."""

    def reset_attributes(self) -> None:
        pass

    def set_attributes(self, attrs: Attrs, color_depth: ColorDepth) -> None:
        pass


def _bindings() -> KeyBindings:
    bindings = KeyBindings()
    in_text = has_focus(DEFAULT_BUFFER)  # and not in a search through the history

    @bindings.add("enter", filter=in_text)
    def _enter(event: KeyPressEvent) -> None:
        if is_open(event.current_buffer.text):
            event.current_buffer.insert_text("\n")
        else:
            event.current_buffer.validate_and_handle()

    @bindings.add("escape", "enter", filter=in_text)
    def _new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @bindings.add("c-h", filter=in_text)
    def _backspace(event: KeyPressEvent) -> None:
        before = event.current_buffer.document.current_line_before_cursor[-64:]
        # An emoji of several code points goes as one.
        clusters = list(iter_graphemes(before))
        event.current_buffer.delete_before_cursor(len(clusters[-1]) if clusters else 1)

    @bindings.add("c-c")
    @bindings.add("<sigint>")
    def _interrupt(event: KeyPressEvent) -> None:
        event.app.exit(exception=InterruptedInputError(bool(event.current_buffer.text)))

    return bindings


class CommandCompleter(Completer):
    """Completes commands, their settings and file names.

    Args:
        commands: names with their slash, and what may follow: words, or None for a file.
    """

    def __init__(self, commands: Mapping[str, Iterable[str] | None]) -> None:
        self._commands = commands
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """What may stand at the cursor."""
        text = document.text_before_cursor
        if not text.startswith("/") or "\n" in text:
            return
        name, space, rest = text.partition(" ")
        if not space:
            yield from (Completion(one, -len(text)) for one in self._commands if one.startswith(text))
            return
        words = self._commands.get(name, ())
        if words is None:
            rest = rest.lstrip()
            yield from self._paths.get_completions(Document(rest, len(rest)), complete_event)
        else:
            last = rest.rpartition(" ")[2]
            if rest.lstrip() == last:
                yield from (Completion(one, -len(last)) for one in words if one.startswith(last))
