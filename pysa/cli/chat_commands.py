"""The commands of a chat: a table of names, what they take and what they do. chat_talk.py runs them."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pysa.chat.saved import chat_path, save_chat
from pysa.cli.chat_screen import PLAIN
from pysa.cli.chat_settings import set_value, setting_names, settings
from pysa.cli.chat_view import count, stats_lines, table_lines
from pysa.errors import ArgumentError

if TYPE_CHECKING:
    from pysa.cli.chat_talk import Talk


@dataclass(frozen=True)
class Command:
    """One command.

    Args:
        name: with its slash.
        takes: what may follow it, as the help shows it.
        help: what it does.
        run: does it; the text behind the name, stripped, is given.
    """

    name: str
    takes: str
    help: str
    run: Callable[[Talk, str], None]


class Leave(Exception):  # noqa: N818  it is no error
    """The chat is over."""


def split_command(text: str) -> tuple[str, str] | None:
    """Name and argument of a command line; None for a message. Several lines are one, unless they name a command."""
    text = text.strip()
    match = re.match(r"(/[A-Za-z?]+)(?=\s|$)(.*)", text, re.S)
    if match is None:
        return None
    name, argument = match[1].lower(), match[2].strip()
    is_known = name in COMMANDS or name in ALIASES
    return (name, argument) if is_known or "\n" not in text else None


def run_command(talk: Talk, name: str, argument: str) -> None:
    """Runs a command.

    Raises:
        ArgumentError: there is no such command, or it cannot take this.
        Leave: it was one that leaves.
    """
    command = COMMANDS.get(ALIASES.get(name, name))
    if command is None:
        begun = [one for one in COMMANDS if one.startswith(name)]
        near = begun or difflib.get_close_matches(name, [*COMMANDS, *ALIASES], n=1)
        hint = f"did you mean {near[0]}?" if near else "/help lists them"
        raise ArgumentError(f"{name}: unknown command: {hint}")
    command.run(talk, argument)


def _help(talk: Talk, _: str) -> None:
    rows = [(f"{command.name} {command.takes}".rstrip(), command.help) for command in COMMANDS.values()]
    talk.screen.notes(table_lines(rows, talk.screen.width), PLAIN)
    talk.screen.notes(
        [
            "",
            '""" begins and ends a message of several lines; Alt-Enter begins a line too. // sends a slash.',
            "Ctrl-C stops an answer, Ctrl-D leaves. Tab completes commands, the arrow keys bring back what was typed.",
        ]
    )


def _regen(talk: Talk, _: str) -> None:
    talk.answer(talk.chat.regenerate(talk.watch))


def _undo(talk: Talk, _: str) -> None:
    turn = talk.chat.undo()
    left = count(len(talk.chat.turns), "turn")
    talk.screen.notes([f"taken back: {_short(turn.user)} ({left} left)"])


def _edit(talk: Talk, argument: str) -> None:
    talk.chat.check_turns()
    text = argument or talk.ask_again(talk.chat.turns[-1].user)
    if text:
        talk.answer(talk.chat.edit(text, talk.watch))
    else:
        talk.screen.notes(["nothing changed"])


def _system(talk: Talk, argument: str) -> None:
    if argument:
        talk.chat.system = "" if argument in ("none", '""') else argument
        talk.screen.notes(["it takes effect with your next message" if talk.chat.turns else "set"])
    else:
        talk.screen.notes((talk.chat.system or "there is no system message; /system TEXT sets one").splitlines(), PLAIN)


def _read(talk: Talk, argument: str) -> None:
    if not argument:
        raise ArgumentError("/read: expected a file, got none")
    talk.attach(_one_path(argument))


def _save(talk: Talk, argument: str) -> None:
    name, _, option = argument.rpartition(" ")
    force = option == "--force"
    path = name if force else argument
    # A chat may replace what it was saved to or loaded from.
    where = chat_path(_one_path(path)) if path else talk.saved_as
    if where is None:
        raise ArgumentError("/save: expected a name, got none")
    talk.saved_as = save_chat(talk.chat, where, force or where == talk.saved_as)
    talk.screen.notes([f"saved: {talk.saved_as} and {talk.saved_as.with_suffix('.state').name}"])


def _load(talk: Talk, argument: str) -> None:
    if not argument:
        raise ArgumentError("/load: expected a name, got none")
    path = chat_path(_one_path(argument))
    talk.load(path)


def _stats(talk: Talk, _: str) -> None:
    talk.screen.notes(stats_lines(talk.chat, talk.screen.width), PLAIN)


def _set(talk: Talk, argument: str) -> None:
    name, _, value = argument.replace("=", " ", 1).partition(" ")
    if value.strip():
        name = set_value(talk.chat, talk.shown, name, value.strip())
        talk.screen.notes([f"{name} {settings(talk.chat, talk.shown)[name]}"])
    else:
        shown = settings(talk.chat, talk.shown)
        rows = [(one, text) for one, text in shown.items() if one.startswith(name.replace("-", "_"))]
        if not rows:
            raise ArgumentError(f"{name}: unknown setting: expected one of {', '.join(setting_names())}")
        talk.screen.notes(table_lines(rows, max(talk.screen.width, 60)), PLAIN)


def _clear(talk: Talk, _: str) -> None:
    n = len(talk.chat.turns)
    talk.chat.clear()
    talk.attached.clear()
    talk.saved_as = None
    talk.screen.notes([f"forgotten: {count(n, 'turn')}"])


def _bye(talk: Talk, _: str) -> None:
    raise Leave


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 40 else f"{line[:37]}..."


def _one_path(argument: str) -> str:
    """A file name; quotes around it are taken off."""
    if argument[:1] in "\"'":
        try:
            parts = shlex.split(argument)
        except ValueError:
            parts = []
        if len(parts) == 1:
            return parts[0]
    return argument


COMMANDS = {
    command.name: command
    for command in (
        Command("/help", "", "lists the commands", _help),
        Command("/regen", "", "answers the last message again", _regen),
        Command("/undo", "", "takes the last message and its answer back", _undo),
        Command("/edit", "[TEXT]", "changes the last message and answers that", _edit),
        Command("/system", "[TEXT]", "shows or sets the system message; none takes it away", _system),
        Command("/read", "FILE", "puts a file before your next message", _read),
        Command("/save", "[NAME]", "saves the chat; --force replaces another one", _save),
        Command("/load", "NAME", "goes on with a saved chat", _load),
        Command("/stats", "", "shows context, cache and speed", _stats),
        Command("/set", "[NAME [VALUE]]", "shows or changes settings, as /set temp 0.7", _set),
        Command("/clear", "", "forgets the conversation, not the system message", _clear),
        Command("/bye", "", "leaves", _bye),
    )
}
ALIASES = {"/exit": "/bye", "/quit": "/bye", "/q": "/bye", "/?": "/help", "/h": "/help", "/reset": "/clear"}


def completions() -> dict[str, list[str] | None]:
    """What may follow each command: words, or None for a file."""
    words: dict[str, list[str] | None] = {name: [] for name in COMMANDS}
    return {**words, "/set": setting_names(), "/read": None, "/save": None, "/load": None}
