"""Text completions as OpenAI's chat completions: dicts in, dicts out, whole or chunk by chunk. Knows no model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pysa.llama.call_json import ToolCall
from pysa.llama.tool_calls import ToolCallParser

Result = dict[str, Any]


@dataclass(frozen=True)
class AnswerForm:
    """What an answer is made into.

    Attributes:
        forced: the tool whose arguments the text is.
        parser: makes what finds calls in the text; None: the text is text.
        old_form: whether calls are given as function_call too.
    """

    forced: str | None = None
    parser: Callable[[], ToolCallParser] | None = None
    old_form: bool = False


def chat_result(completion: Result, form: AnswerForm) -> Result:
    """A whole text completion as a chat completion."""
    choice = completion["choices"][0]
    text, reason = choice["text"], choice["finish_reason"]
    message: dict[str, Any] = {"role": "assistant", "content": text}
    calls: list[ToolCall] = []
    if form.forced is not None:
        calls, message["content"] = [ToolCall(form.forced, text)], None
    elif form.parser is not None:
        parser = form.parser()
        events = [*parser.feed(text), *parser.finish()]
        calls = [event for event in events if isinstance(event, ToolCall)]
        # An answer of calls alone has no content, as OpenAI has it.
        said = "".join(event for event in events if isinstance(event, str))
        message["content"] = said or (None if calls else "")
    if calls:
        if form.forced is not None or (form.old_form and len(calls) == 1):
            message["function_call"] = {"name": calls[0].name, "arguments": calls[0].arguments}
        message["tool_calls"] = [_call(completion["id"], i, call) for i, call in enumerate(calls)]
        reason = "tool_calls" if form.forced is not None or reason == "stop" else reason
    shaped = {
        "index": 0,
        "message": message,
        "logprobs": chat_logprobs(choice["logprobs"]),
        "finish_reason": reason,
    }
    return {**_head(completion, "chat.completion"), "choices": [shaped], "usage": completion["usage"]}


class ChunkShaper:
    """The chunks of a text completion as those of a chat completion: the role first, then what is said or called."""

    def __init__(self, form: AnswerForm) -> None:
        self._form = form
        self._parser = form.parser() if form.parser is not None else None
        self._begun = False
        self._n_calls = 0
        self._logprobs: list[Any] = []  # of text that waits

    def feed(self, chunk: Result) -> list[Result]:
        """The chat chunks that a text chunk becomes; none, while its text may become a call."""
        choice = chunk["choices"][0]
        text, reason = choice["text"], choice["finish_reason"]
        logprobs = chat_logprobs(choice["logprobs"])
        out: list[Result] = []
        if not self._begun:
            self._begun = True
            out.append(_chunk(chunk, self._first_delta()))
        if reason is None and self._parser is None:
            return [*out, _chunk(chunk, self._delta(chunk, text), logprobs)]
        if logprobs is not None:
            self._logprobs += logprobs["content"]
        if self._parser is not None:
            events = self._parser.feed(text) if reason is None else [*self._parser.feed(text), *self._parser.finish()]
            out += [_chunk(chunk, self._event_delta(chunk, event), self._take_logprobs()) for event in events]
        if reason is not None:
            called = self._form.forced is not None or (self._n_calls and reason == "stop")
            out.append(_chunk(chunk, {}, self._take_logprobs(), "tool_calls" if called else reason))
        return out

    def _first_delta(self) -> Result:
        return {"role": "assistant"} if self._form.forced is None else {"role": "assistant", "content": None}

    def _delta(self, chunk: Result, text: str) -> Result:
        if self._form.forced is None:
            return {"content": text}
        # The name comes with the first piece of the arguments, once.
        first = self._n_calls == 0
        self._n_calls = 1
        function = {"name": self._form.forced, "arguments": text} if first else {"arguments": text}
        call = {"index": 0, "function": function}
        if first:
            call = {"index": 0, **_call(chunk["id"], 0, ToolCall(self._form.forced, text))}
        return {"function_call": function, "tool_calls": [call]} if self._form.old_form else {"tool_calls": [call]}

    def _event_delta(self, chunk: Result, event: str | ToolCall) -> Result:
        if isinstance(event, str):
            return {"content": event}
        call = {"index": self._n_calls, **_call(chunk["id"], self._n_calls, event)}
        self._n_calls += 1
        delta: Result = {"tool_calls": [call]}
        if self._form.old_form and self._n_calls == 1:
            delta["function_call"] = {"name": event.name, "arguments": event.arguments}
        return delta

    def _take_logprobs(self) -> Result | None:
        taken, self._logprobs = self._logprobs, []
        return {"content": taken, "refusal": None} if taken else None


def chat_logprobs(logprobs: Any) -> Result | None:
    """A text completion's logprobs in the form of a chat's."""
    if logprobs is None:
        return None
    entries = zip(logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True)
    content = [
        {
            "token": token,
            "bytes": None,
            "logprob": logprob,
            "top_logprobs": [{"token": t, "logprob": p, "bytes": None} for t, p in (top or {}).items()],
        }
        for token, logprob, top in entries
    ]
    return {"content": content, "refusal": None}


def _head(completion: Result, kind: str) -> Result:
    return {
        "id": "chat" + completion["id"],
        "object": kind,
        "created": completion["created"],
        "model": completion["model"],
    }


def _chunk(chunk: Result, delta: Result, logprobs: Result | None = None, reason: str | None = None) -> Result:
    choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
    return {**_head(chunk, "chat.completion.chunk"), "choices": [choice]}


def _call(completion_id: str, i: int, call: ToolCall) -> Result:
    return {
        "id": f"call__{i}_{call.name}_{completion_id}",
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }
