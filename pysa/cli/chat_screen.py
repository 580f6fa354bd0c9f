"""The terminal of a chat: text that streams in, notes, progress. What is said in them is chat_view.py's."""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING

from wcwidth import iter_graphemes, wcswidth

if TYPE_CHECKING:
    from pysa.chat.turn import Kind
    from pysa.cli.console import Console

PLAIN, DIM, RED = "", "2", "31"
NARROWEST = 8  # columns; a window below that is treated as this wide
TAB = "    "
# What a terminal would act on. A model's text, a file's or a message's must not move the cursor or set a title.
CONTROLS: dict[int, str | None] = {
    **dict.fromkeys((*range(0x20), *range(0x7F, 0xA0)), "\ufffd"),
    ord("\n"): "\n",
    ord("\r"): None,
    ord("\t"): TAB,
}


def harmless(text: str) -> str:
    """`text` without control characters; a line's end stays one."""
    return text.translate(CONTROLS)


class Screen:
    """A terminal that a chat is shown on."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.is_dumb = os.environ.get("TERM", "dumb") == "dumb"
        self._has_progress = False

    @property
    def width(self) -> int:
        """Columns, as they are now."""
        try:
            columns = os.get_terminal_size(self.console.out.fileno()).columns
        except (OSError, ValueError):
            columns = 0
        return max(columns or self.console.width, NARROWEST)

    def paint(self, style: str, text: str) -> str:
        """`text` in a style, which ends with it; as it is where there are no colours."""
        return f"\x1b[{style}m{text}\x1b[0m" if self.console.colour and style and text else text

    def notes(self, lines: Iterable[str], style: str = DIM) -> None:
        """Lines of the program's own, wrapped between words; a line's indentation is kept."""
        self.end_progress()
        for line in lines:
            indent = " " * (len(line) - len(line.lstrip(" ")))
            wrapped = textwrap.wrap(harmless(line), self.width, subsequent_indent=indent) or [""]
            self.console.write("".join(self.paint(style, one.replace("\u00a0", " ")) + "\n" for one in wrapped))

    def error(self, line: str) -> None:
        """A line that says what went wrong."""
        self.notes([line], RED)

    def progress(self, text: str) -> None:
        """A line that the next one replaces."""
        if not self.is_dumb:
            self.console.write("\r" + self.paint(DIM, text[: self.width - 1]) + "\x1b[K")
            self._has_progress = True

    def end_progress(self) -> None:
        """Takes the line of progress away."""
        if self._has_progress:
            self.console.write("\r\x1b[K")
            self._has_progress = False


class Flow:
    """An answer on a screen, as it streams in: words are not split at the edge, thinking is dim.

    A word is shown when it is complete. Where code stands between fences, lines are left to the terminal, so that they
    can be copied as they are.

    Args:
        screen: where it goes.
        is_wrapped: False leaves all lines to the terminal.
    """

    def __init__(self, screen: Screen, is_wrapped: bool = True) -> None:
        self._screen = screen
        self._is_wrapped = is_wrapped
        self._kind: Kind | None = None
        self._column = 0
        self._space = ""  # before the word, once it is known on which line that goes
        self._word = ""
        self._line = ""  # as far as it tells whether it is a fence
        self._in_code = False

    def write(self, kind: Kind, text: str) -> None:
        """Shows text, all but a word that may go on."""
        self._screen.end_progress()
        if kind != self._kind:
            self._change(kind)
        for part in re.findall(r"\n|[^\S\n]+|\S+", harmless(text)):
            if part == "\n":
                self._break()
            elif part.isspace():
                self._flush()
                self._space += part
            else:
                self._take(part)
            self._line = (self._line + part)[:8] if part != "\n" else ""

    def finish(self) -> None:
        """Shows the rest and ends the line."""
        self._screen.end_progress()
        self._flush()
        if self._column:
            self._break()
        self._kind, self._space = None, ""

    @property
    def _wraps(self) -> bool:
        return self._is_wrapped and not self._in_code

    def _change(self, kind: Kind) -> None:
        was_thinking = self._kind == "thinking"
        if self._kind is not None:
            self.finish()
        self._kind, self._in_code = kind, False
        if not self._screen.console.colour and (kind == "thinking" or was_thinking):
            self._screen.console.write("(thinking)\n" if kind == "thinking" else "(answer)\n")
        elif was_thinking:
            self._screen.console.write("\n")

    def _break(self) -> None:
        self._flush()
        self._screen.console.write("\n")
        self._column, self._space = 0, ""
        if self._line.lstrip().startswith("```"):
            self._in_code = not self._in_code
        self._line = ""

    def _take(self, text: str) -> None:
        self._word += text
        if not self._wraps:
            self._flush()
            return
        *complete, self._word = _units(self._word)
        for unit in complete:
            self._place(unit)

    def _flush(self) -> None:
        self._place(self._word)
        self._word = ""

    def _place(self, unit: str) -> None:
        """Puts a unit that must not be split where there is room for it."""
        if not unit:
            return
        text, width = self._space + unit, self._screen.width
        if self._wraps and self._column and self._column + _width(text) > width >= _width(unit):
            self._screen.console.write("\n")
            self._column, text = 0, unit
        self._space = ""
        self._screen.console.write(self._screen.paint(DIM, text) if self._kind == "thinking" else text)
        self._column += _width(text)
        if self._column > width:
            self._column = (self._column - 1) % width + 1


def _width(text: str) -> int:
    return max(0, wcswidth(text))


def _units(word: str) -> list[str]:
    """What a line may be broken between: a wide character is a unit, and so are the narrow ones between two of them."""
    units: list[str] = []
    was_narrow = False
    for cluster in iter_graphemes(word):
        is_narrow = _width(cluster) < 2
        if is_narrow and was_narrow:
            units[-1] += cluster
        else:
            units.append(cluster)
        was_narrow = is_narrow
    return units
