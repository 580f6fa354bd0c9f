"""The JSON of tool calls: where a value ends in a text that grows, and what calls it makes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_STRUCTURE = re.compile(r'["\\{}\[\]]')


@dataclass(frozen=True)
class ToolCall:
    """A call: the function's name, and its arguments as JSON."""

    name: str
    arguments: str


class Balance:
    """Finds where a JSON object or list ends, in a text that grows."""

    def __init__(self) -> None:
        self._at: int | None = None
        self._depth = 0
        self._in_string = False
        self._end: int | None = None

    def end(self, text: str, begin: int) -> int | None:
        """The position after the value that begins at `begin`; None as long as it is not there."""
        if self._end is not None:
            return self._end
        at = begin if self._at is None else self._at
        while found := _STRUCTURE.search(text, at):
            at = found.end()
            if self._in_string and found[0] == "\\":
                if at == len(text):
                    self._at = found.start()  # what is escaped is not there yet
                    return None
                at += 1
            elif found[0] == '"':
                self._in_string = not self._in_string
            elif not self._in_string and found[0] != "\\":
                self._depth += 1 if found[0] in "{[" else -1
                if self._depth == 0:
                    self._end = at
                    return at
        self._at = max(at, len(text))
        return None


def read_calls(text: str, name: str | None) -> list[ToolCall]:
    """The calls a JSON value makes, all or none; with a name, the value has the arguments alone."""
    try:
        value = json.loads(text, strict=False)  # models write line breaks into strings
    except ValueError:
        return []
    if name is not None:
        return [ToolCall(name, text)]
    calls = [_read_one(item) for item in (value if isinstance(value, list) else [value])]
    return [call for call in calls if call is not None] if None not in calls else []


def _read_one(item: Any) -> ToolCall | None:
    if not isinstance(item, Mapping):
        return None
    inner = item.get("function")
    if isinstance(inner, Mapping):
        item = inner
    name = item.get("name", inner)
    if not isinstance(name, str) or not name or not ("arguments" in item or "parameters" in item):
        return None
    arguments = item.get("arguments", item.get("parameters"))
    if arguments is None:
        arguments = {}
    return ToolCall(name, arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False))
