"""The types of chats, under the names they have in llama_cpp.llama_types: OpenAI's objects as dicts."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, TypedDict

from pysa.llama.types import CompletionUsage


class ChatCompletionMessageToolCallFunction(TypedDict):
    """A called function, its arguments as JSON."""

    name: str
    arguments: str


class ChatCompletionMessageToolCall(TypedDict):
    """A call."""

    id: str
    type: Literal["function"]
    function: ChatCompletionMessageToolCallFunction


class _Role(TypedDict):
    role: str


class ChatCompletionRequestMessage(_Role, total=False):
    """A turn of a conversation."""

    content: str | list[dict[str, Any]] | None
    name: str
    tool_calls: list[ChatCompletionMessageToolCall]
    tool_call_id: str
    function_call: ChatCompletionMessageToolCallFunction


class _Function(TypedDict):
    name: str


class ChatCompletionFunction(_Function, total=False):
    """What a function does, and the JSON schema of its arguments."""

    description: str
    parameters: dict[str, Any]


class ChatCompletionTool(TypedDict):
    """A function the model may call."""

    type: Literal["function"]
    function: ChatCompletionFunction


class _Content(TypedDict):
    role: Literal["assistant"]
    content: str | None


class ChatCompletionResponseMessage(_Content, total=False):
    """An answer."""

    tool_calls: list[ChatCompletionMessageToolCall]
    function_call: ChatCompletionMessageToolCallFunction


class ChatCompletionTopLogprobToken(TypedDict):
    """A token and how likely it was."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChatCompletionLogprobToken(ChatCompletionTopLogprobToken):
    """A token of an answer, with the likeliest ones in its place."""

    top_logprobs: list[ChatCompletionTopLogprobToken]


class ChatCompletionLogprobs(TypedDict):
    """How likely each token of an answer was."""

    content: list[ChatCompletionLogprobToken] | None
    refusal: list[ChatCompletionLogprobToken] | None


class ChatCompletionResponseChoice(TypedDict):
    """An answer and why it ended: `stop`, `length` or `tool_calls`."""

    index: int
    message: ChatCompletionResponseMessage
    logprobs: ChatCompletionLogprobs | None
    finish_reason: str | None


class CreateChatCompletionResponse(TypedDict):
    """A whole chat completion."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatCompletionResponseChoice]
    usage: CompletionUsage


class ChatCompletionStreamResponseDelta(TypedDict, total=False):
    """What a chunk adds."""

    role: str
    content: str | None
    tool_calls: list[dict[str, Any]]
    function_call: dict[str, Any]


class ChatCompletionStreamResponseChoice(TypedDict):
    """A chunk's part of an answer."""

    index: int
    delta: ChatCompletionStreamResponseDelta
    logprobs: ChatCompletionLogprobs | None
    finish_reason: str | None


class CreateChatCompletionStreamResponse(TypedDict):
    """A chunk of a chat completion."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatCompletionStreamResponseChoice]


class _Type(TypedDict):
    type: Literal["text", "json_object", "json_schema"]


class ChatCompletionRequestResponseFormat(_Type, total=False):
    """What an answer must be."""

    schema: dict[str, Any]
    json_schema: dict[str, Any]


JsonType: TypeAlias = "int | float | str | bool | list[Any] | dict[str, Any] | None"
ChatCompletionMessageToolCalls: TypeAlias = list[ChatCompletionMessageToolCall]
ChatCompletionToolChoiceOption: TypeAlias = "str | dict[str, Any]"
ChatCompletionRequestFunctionCall: TypeAlias = "str | dict[str, Any]"

# The same under the other names they go by.
ChatCompletionRequestSystemMessage: TypeAlias = ChatCompletionRequestMessage
ChatCompletionRequestUserMessage: TypeAlias = ChatCompletionRequestMessage
ChatCompletionRequestAssistantMessage: TypeAlias = ChatCompletionRequestMessage
ChatCompletionRequestToolMessage: TypeAlias = ChatCompletionRequestMessage
ChatCompletionRequestFunctionMessage: TypeAlias = ChatCompletionRequestMessage
ChatCompletionToolFunction: TypeAlias = ChatCompletionFunction
ChatCompletionMessage: TypeAlias = ChatCompletionResponseMessage
ChatCompletion: TypeAlias = CreateChatCompletionResponse
ChatCompletionChunk: TypeAlias = CreateChatCompletionStreamResponse
