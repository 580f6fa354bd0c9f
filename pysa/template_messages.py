"""Messages as a chat template expects them: parts of texts, arguments of tool calls.

Templates differ: some take a content as text only, some only as a list of parts; some want the arguments of a tool call
as an object, some as the JSON that OpenAI sends. Which it is shows when a small conversation is rendered.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pysa.errors import ArgumentError

if TYPE_CHECKING:
    from pysa.chat_template import ChatTemplate

_TEXT = "needle-text"
_KEY, _VALUE = "needle-key", "needle-value"


def check_messages(messages: object) -> list[dict[str, Any]]:
    """Turns as dicts.

    Raises:
        ArgumentError: no sequence of mappings with a role, or a content that is neither text nor parts of text.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise ArgumentError(f"messages: wrong type: expected a list of messages, got {type(messages).__name__}")
    turns = []
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise ArgumentError(f"messages[{i}]: wrong type: expected a mapping, got {type(message).__name__}")
        role = message.get("role")
        if not isinstance(role, str):
            raise ArgumentError(f"messages[{i}]: role: expected a string such as 'user', got {role!r:.40}")
        _check_content(f"messages[{i}].content", message.get("content"))
        turns.append(dict(message))
    return turns


def fit_messages(template: ChatTemplate, messages: object) -> list[dict[str, Any]]:
    """The turns in the form this template takes.

    Raises:
        ArgumentError: as check_messages(), or arguments of a tool call that are no JSON.
    """
    turns = check_messages(messages)
    for i, turn in enumerate(turns):
        content = turn.get("content")
        if isinstance(content, str) and _wants_parts(template):
            turn["content"] = [{"type": "text", "text": content}]
        elif isinstance(content, list | tuple) and not _takes_parts(template):
            turn["content"] = join_parts(content)
        if turn.get("tool_calls"):
            turn["tool_calls"] = _fit_calls(template, turn["tool_calls"], f"messages[{i}].tool_calls")
    return turns


def join_parts(parts: Sequence[Any]) -> str:
    """The text of a content that is a list of parts, a line for each."""
    return "\n".join(part if isinstance(part, str) else str(part["text"]) for part in parts)


def _check_content(where: str, content: object) -> None:
    if content is None or isinstance(content, str):
        return
    if not isinstance(content, list | tuple):
        raise ArgumentError(f"{where}: wrong type: expected text or a list of parts, got {type(content).__name__}")
    for i, part in enumerate(content):
        if isinstance(part, str):
            continue
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if kind != "text":
            raise ArgumentError(f"{where}[{i}]: not supported: expected a part of type 'text', got {kind!r:.40}")
        if not isinstance(part.get("text"), str):
            raise ArgumentError(f"{where}[{i}].text: expected a string, got {part.get('text')!r:.40}")


def _fit_calls(template: ChatTemplate, calls: object, where: str) -> list[Any]:
    if not isinstance(calls, list | tuple) or not all(isinstance(call, Mapping) for call in calls):
        raise ArgumentError(f"{where}: expected a list of mappings, got {calls!r:.60}")
    fitted = []
    for i, call in enumerate(calls):
        function = call.get("function")
        arguments = function.get("arguments") if isinstance(function, Mapping) else None
        if isinstance(function, Mapping) and isinstance(arguments, str) and _wants_objects(template):
            try:
                arguments = json.loads(arguments, strict=False) if arguments.strip() else {}
            except ValueError as error:
                raise ArgumentError(f"{where}[{i}].function.arguments: expected JSON: {error}") from None
            fitted.append({**call, "function": {**function, "arguments": arguments}})
        else:
            fitted.append(dict(call))
    return fitted


def _try(template: ChatTemplate, messages: list[dict[str, Any]], tools: object = None) -> str | None:
    given = {"messages": messages, "bos_token": "", "eos_token": "", "tools": tools, "documents": None}
    from pysa.template_limits import TemplateLimitError  # noqa: PLC0415  for those who render templates

    try:
        return template.run({**given, "add_generation_prompt": False})
    except TemplateLimitError:
        raise  # it would take as long again and again
    except Exception:  # a template may raise anything: that is an answer too
        return None


@functools.lru_cache(maxsize=32)
def _takes_parts(template: ChatTemplate) -> bool:
    text = _try(template, [{"role": "user", "content": [{"type": "text", "text": _TEXT}]}])
    # A list that is written out as Python or JSON has it in quotes.
    return text is not None and _TEXT in text and f"'{_TEXT}'" not in text and f'"{_TEXT}"' not in text


@functools.lru_cache(maxsize=32)
def _wants_parts(template: ChatTemplate) -> bool:
    text = _try(template, [{"role": "user", "content": _TEXT}])
    return text is not None and _TEXT not in text and _takes_parts(template)


@functools.lru_cache(maxsize=32)
def _wants_objects(template: ChatTemplate) -> bool:
    def answer(arguments: object) -> str | None:
        function = {"name": "needle", "description": "", "parameters": {"type": "object", "properties": {}}}
        call = {"id": "needle0id", "type": "function", "function": {"name": "needle", "arguments": arguments}}
        ask, reply = {"role": "user", "content": _TEXT}, {"role": "assistant", "content": "", "tool_calls": [call]}
        return _try(template, [ask, reply], [{"type": "function", "function": function}])

    as_object = answer({_KEY: _VALUE})
    if as_object is None or _VALUE not in as_object or f"'{_KEY}'" in as_object:
        return False
    # A template that takes both writes both alike.
    return answer(json.dumps({_KEY: _VALUE})) != as_object
