"""The terminal: where output goes, how wide it is, which colours and characters it shows. Only this module writes."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import IO, Any

COLOURS = {"owner": "32", "follower": "36", "local": "33", "mixed": "35"}
GLYPHS = {"owner": "■", "follower": "·", "local": "○", "mixed": "▒", "from": "←"}
ASCII_GLYPHS = {"owner": "#", "follower": ".", "local": "o", "mixed": "%", "from": "<-"}
DEFAULT_WIDTH = 100


@dataclass
class Console:
    """The two streams of a command, and what the first of them can show."""

    out: IO[str]
    err: IO[str]
    width: int = DEFAULT_WIDTH
    colour: bool = False
    unicode: bool = True

    @classmethod
    def of_process(cls) -> Console:
        """The process's own streams. Colour needs a terminal, and no NO_COLOR."""
        is_tty = sys.stdout.isatty()
        colour = is_tty and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        width = shutil.get_terminal_size((DEFAULT_WIDTH, 40)).columns if is_tty else DEFAULT_WIDTH
        glyphs = "".join(GLYPHS.values())
        return cls(sys.stdout, sys.stderr, width, colour, _encodable(sys.stdout, glyphs) == glyphs)

    def write(self, text: str) -> None:
        """Text to stdout as it is, at once."""
        if text:
            self.out.write(_encodable(self.out, text))
            self.out.flush()

    def lines(self, lines: Iterable[str]) -> None:
        """Lines to stdout."""
        self.write("".join(line.rstrip() + "\n" for line in lines))

    def note(self, lines: Iterable[str]) -> None:
        """Lines to stderr."""
        for line in lines:
            print(_encodable(self.err, line), file=self.err)

    def json(self, value: Any) -> None:
        """One JSON object to stdout."""
        self.write(json.dumps(value, indent=2, allow_nan=False) + "\n")

    def paint(self, kind: str, text: str) -> str:
        """`text` in the colour of a kind of head."""
        return f"\x1b[{COLOURS[kind]}m{text}\x1b[0m" if self.colour else text

    def glyph(self, kind: str) -> str:
        """The character of a kind of head."""
        return (GLYPHS if self.unicode else ASCII_GLYPHS)[kind]


def _encodable(stream: IO[str], text: str) -> str:
    """`text` with `?` for what the stream's encoding does not have."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)
