"""Finds tool calls in an answer as it comes: text in, pieces of text and whole calls out. Knows no model.

What may be the beginning of a call waits until it is one or is not; what turns out to be none is given as text.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import TypeAlias

from pysa.llama.call_json import Balance, ToolCall, read_calls
from pysa.llama.function_calling import CALL_MARK, MESSAGE_MARK
from pysa.llama.tool_forms import ToolForm

_THINK, _THINK_END = "<think>", "</think>"
_TAG, _TAG_END = "<tool_call>", "</tool_call>"
_MARKS = (_TAG, "[TOOL_CALLS]", "<|python_tag|>", _THINK)
_CALL_KEYS = ("name", "arguments", "parameters", "type", "function", "id")
_JSON_BEGIN = re.compile(r'\[?\s*(?:\{\s*(?:"([^"]*)("?))?)?')  # up to an object's first key
_NAMED = re.compile(r"([\w.-]+)(?:\[CALL_ID\][\w-]*)?(?:\[ARGS\])?\s*(?=\{)")  # what newer Mistral models write
_NAMED_BEGIN = re.compile(r"([\w.-]+)(\[[\w\]\[-]*)?\s*")
_FUNCTION = re.compile(re.escape(CALL_MARK) + r"([^\s:]+):\s*(?=\{)")
_FUNCTION_BEGIN = re.compile(re.escape(CALL_MARK) + r"[^\s:]*(:\s*)?")


Event: TypeAlias = "str | ToolCall"


class ToolCallParser:
    """Tells calls from text.

    Args:
        names: of the tools there are. Only these are recognised where nothing but JSON marks a call.
        form: how the model was told to write calls.
        thinking: whether the prompt has begun a `<think>` already. Thoughts are text, whatever they quote.
    """

    def __init__(self, names: Collection[str], form: ToolForm = ToolForm.PLAIN, thinking: bool = False) -> None:
        self._names = frozenset(names)
        self._form = form
        self._marks = () if form is ToolForm.FUNCTIONS else _MARKS
        self._thinking = thinking
        self._fresh = True  # no text since the beginning, a thought or a call
        self._between: str | None = None  # characters that may stand before the next call; None: whitespace
        self._mark: str | None = None  # what announced the call that is being read; "": nothing did
        self._held = ""
        self._spaces = ""  # whitespace that is text only if more text follows
        self._value = Balance()
        self._n_calls = 0

    def feed(self, text: str) -> list[Event]:
        """What is certain with this piece."""
        self._held += text
        return self._read(last=False)

    def finish(self) -> list[Event]:
        """What is left when the answer has ended."""
        events = self._read(last=True)
        if self._spaces and not self._n_calls:
            events.append(self._spaces)
        return events

    def _read(self, last: bool) -> list[Event]:
        events: list[Event] = []
        while self._held and self._advance(last, events):
            pass
        return events

    def _advance(self, last: bool, events: list[Event]) -> bool:
        """One step; False when it takes more text."""
        if self._mark is not None:
            return self._read_call(self._mark, last, events)
        if self._thinking:
            if not self._read_text((_THINK_END,), last, events):
                return False
            if self._held.startswith(_THINK_END):
                self._give(len(_THINK_END), events)
                self._thinking, self._fresh = False, True
            return True
        if self._fresh:
            return self._read_beginning(last, events)
        if not self._read_text(self._marks, last, events):
            return False
        mark = next((mark for mark in self._marks if self._held.startswith(mark)), None)
        if mark == _THINK:
            self._give(len(mark), events)
            self._thinking = True
        elif mark is not None:
            self._begin_call(mark, len(mark))
        return True

    def _read_text(self, marks: tuple[str, ...], last: bool, events: list[Event]) -> bool:
        """Gives the text before the first mark; before what may become one, if there is none."""
        found = [at for at in map(self._held.find, marks) if at >= 0]
        n = min(found, default=len(self._held) if last else _n_certain(self._held, marks))
        self._give(n, events)
        return bool(n or found)

    def _give(self, n: int, events: list[Event]) -> None:
        text, self._held = self._spaces + self._held[:n], self._held[n:]
        body = text.rstrip()
        self._spaces = text[len(body) :]
        if body:
            events.append(body)

    def _read_beginning(self, last: bool, events: list[Event]) -> bool:
        """At the beginning a call may come without a mark."""
        text = self._held.lstrip(self._between)
        n_before = len(self._held) - len(text)
        if self._form is ToolForm.FUNCTIONS and text.startswith(MESSAGE_MARK):
            if len(text) == len(MESSAGE_MARK) and not last:
                return False  # a line break may follow
            self._held = text[len(MESSAGE_MARK) :].removeprefix("\n")
            self._fresh = False
            return True
        is_call = self._begins_call(text)
        if is_call is None and not last:
            return False
        self._fresh = False
        if is_call:
            self._begin_call("", n_before)
        return True

    def _begins_call(self, text: str) -> bool | None:
        """Whether a text is the beginning of a call; None: it may become one."""
        if not text:
            return None
        if self._form is ToolForm.FUNCTIONS:
            if _FUNCTION.match(text):
                return True
            begins = any(mark.startswith(text) for mark in (MESSAGE_MARK, CALL_MARK))
            return None if begins or _FUNCTION_BEGIN.fullmatch(text) else False
        if self._form in (ToolForm.MISTRAL, ToolForm.MISTRAL_ARGS) and (named := _NAMED_BEGIN.match(text)):
            if _NAMED.match(text):
                return named[1] in self._names
            begun = named[1] in self._names or (
                named.end(1) == len(text) and any(name.startswith(text) for name in self._names)
            )
            return None if begun and named.end() == len(text) else False
        json_begin = _JSON_BEGIN.match(text)
        if text[0] not in "{[" or json_begin is None:
            return False
        key, closed = json_begin.groups()
        if closed:
            return key in _CALL_KEYS
        if json_begin.end() < len(text):
            return False
        return None if key is None or any(known.startswith(key) for known in _CALL_KEYS) else False

    def _begin_call(self, mark: str, n: int) -> None:
        self._mark, self._held, self._value = mark, self._held[n:], Balance()

    def _read_call(self, mark: str, last: bool, events: list[Event]) -> bool:
        body = self._held.lstrip()
        named = _FUNCTION.match(body) if self._form is ToolForm.FUNCTIONS else _NAMED.match(body)
        begin = named.end() if named and mark != _TAG else 0
        if body and begin == 0 and body[0] not in "{[":
            may_be_named = mark == "[TOOL_CALLS]" and _NAMED_BEGIN.fullmatch(body)
            return self._reject(mark, events) if last or not may_be_named else False
        end = self._value.end(body, begin) if body else None
        if end is None:
            return self._reject(mark, events) if last else False
        calls = read_calls(body[begin:end], named[1] if begin and named else None)
        if not calls or (mark == "" and not all(call.name in self._names for call in calls)):
            return self._reject(mark, events)
        rest = body[end:].lstrip()
        if mark == _TAG:
            if not last and len(rest) < len(_TAG_END) and _TAG_END.startswith(rest):
                return False
            rest = rest.removeprefix(_TAG_END)
        self._between = "; \r\n\t" if mark == "" else None
        events += calls
        self._n_calls += len(calls)
        self._held, self._spaces = rest, ""
        self._mark, self._fresh = None, True
        return True

    def _reject(self, mark: str, events: list[Event]) -> bool:
        """It was no call: text after all."""
        self._mark, self._held = None, mark + self._held
        self._give(max(len(mark), 1), events)
        self._fresh = False
        return True


def _n_certain(text: str, marks: tuple[str, ...]) -> int:
    """Characters at the beginning of a text that no mark can claim any more."""
    for n_held in range(min(max(map(len, marks), default=1) - 1, len(text)), 0, -1):
        if any(mark.startswith(text[-n_held:]) for mark in marks):
            return len(text) - n_held
    return len(text)
