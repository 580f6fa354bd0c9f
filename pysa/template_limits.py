"""What a chat template may use: the bounds, and the checks that find what would pass them before it is computed.

Nothing here knows Jinja; pysa.template_sandbox asks.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any

MAX_WORK = 4_000_000  # of one rendering: an iteration or a call counts CALL_WORK, an item looked at 1
CALL_WORK = 4
MAX_SIZE = 32 << 20  # characters and items of one value, and characters of the whole output
MAX_SECONDS = 10.0

# What makes much of little and what no chat template uses.
REFUSED_FILTERS = ("batch", "center", "filesizeformat", "pprint", "random", "slice", "urlize", "wordwrap", "xmlattr")
REFUSED_METHODS = frozenset(("center", "encode", "expandtabs", "ljust", "rjust", "to_bytes", "translate", "zfill"))
MAX_WIDTH = 64  # of an indent or a separator; decimal places
# A width or precision of four digits, or one that comes from an argument.
_WIDE_PERCENT = re.compile(r"%(?:\([^)]*\))?[-+ #0-9.]*?(?:\*|\d{4})")
_WIDE_FORMAT = re.compile(r"\{[^{}]*:[^{}]*(?:\d{4}|\{)")


class TemplateLimitError(Exception):
    """A template wants more steps, time or room than it gets."""


class Budget(threading.local):
    """The work and the time of the rendering that this thread is at."""

    work = 0
    deadline = float("inf")

    def start(self) -> None:
        """Begins a rendering."""
        self.work, self.deadline = 0, time.monotonic() + MAX_SECONDS

    def step(self, work: int = CALL_WORK) -> None:
        """Counts an iteration or a call."""
        self.work += work
        if self.work > MAX_WORK:
            raise TemplateLimitError(f"too much work: expected at most {MAX_WORK // CALL_WORK:,} iterations and calls")
        if time.monotonic() > self.deadline:
            raise TemplateLimitError(f"too slow: expected at most {MAX_SECONDS:g} s")

    def weigh(self, value: Any) -> int:
        """Characters and items of a value, each counted as often as it would be written out; MAX_SIZE at most.

        A list that holds one other many times, and so on down, has few objects and a text without end.
        """
        size, n_seen, rest = 0, 0, [value]
        while rest:
            value = rest.pop()
            size += 1
            n_seen += 1
            if n_seen % 1024 == 0:
                self.step(1024)
            if isinstance(value, str | bytes):
                size += len(value)
            elif isinstance(value, int):
                size += value.bit_length() >> 3
            elif isinstance(value, Mapping | list | tuple | set | frozenset):
                check_size(size + len(value))
                rest.extend(value)
                rest.extend(value.values() if isinstance(value, Mapping) else ())
            check_size(size)
        self.work += n_seen % 1024
        return size


class BoundedBuffer(list[str]):
    """Pieces of text, MAX_SIZE characters at most."""

    def __init__(self) -> None:
        super().__init__()
        self._size = 0

    def append(self, piece: str) -> None:
        """Adds a piece."""
        self._size += len(piece)
        check_size(self._size)
        super().append(piece)

    def extend(self, pieces: Iterable[str]) -> None:
        """Adds pieces."""
        for piece in pieces:
            self.append(piece)


def check_size(size: int) -> None:
    """Refuses a value or an output of more than MAX_SIZE characters and items."""
    if size > MAX_SIZE:
        raise TemplateLimitError(f"too much text: expected at most {MAX_SIZE:,} characters and items")


def check_operator(budget: Budget, operator: str, left: Any, right: Any) -> None:
    """Refuses `+`, `*`, `**` or `%` whose result would be too large."""
    if operator == "*" and isinstance(left, int) != isinstance(right, int):
        n, value = (left, right) if isinstance(left, int) else (right, left)
        check_size(budget.weigh(value) * abs(n))
    elif operator == "**" and isinstance(right, int):
        check_size(budget.weigh(left) * abs(right))
    elif operator == "%" and isinstance(left, str):
        _check_widths(left, _WIDE_PERCENT)
    else:
        check_size(budget.weigh(left) + budget.weigh(right))


def check_growth(name: str, value: Any, args: tuple[Any, ...]) -> None:
    """Refuses the filter or method `name` of `value` where its result would be far larger than what goes in."""
    if name in ("indent", "round", "tojson"):
        _check_numbers(name, args)
    if name == "indent":
        check_size(str(value).count("\n") * MAX_WIDTH)
    elif name == "replace" and len(args) > 1:
        text = str(value)
        check_size(text.count(str(args[0])) * len(str(args[1])) + len(text))
    elif name == "join":
        _check_numbers(name, args[:1])
    elif name == "format" and isinstance(value, str):
        _check_widths(value, _WIDE_FORMAT)
        _check_widths(value, _WIDE_PERCENT)


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """The `tojson` filter of chat templates: no HTML escapes."""
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    if indent is None:
        return encoder.encode(value)
    text = BoundedBuffer()
    text.extend(encoder.iterencode(value))  # what is deeply nested grows with its indents
    return "".join(text)


def _check_numbers(name: str, args: tuple[Any, ...]) -> None:
    for width in args:
        if (width if isinstance(width, int) else len(width) if isinstance(width, str) else 0) > MAX_WIDTH:
            raise TemplateLimitError(f"{name}: too wide: expected at most {MAX_WIDTH}, got {width!r:.20}")


def _check_widths(text: str, pattern: re.Pattern[str]) -> None:
    if pattern.search(text):
        raise TemplateLimitError(f"a format is too wide: expected numbers below 1000, got {text!r:.40}")
