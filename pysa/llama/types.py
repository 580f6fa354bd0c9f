"""What pysa.Llama gives: OpenAI's objects as dicts, and the error of a prompt that is too long."""

from __future__ import annotations

from typing import TypedDict

from pysa.errors import ContextFullError


class PromptTooLongError(ContextFullError, ValueError):
    """A prompt leaves no room for an answer. A ValueError too, as llama-cpp-python raises there."""


class CompletionLogprobs(TypedDict):
    """How likely each token was."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class CompletionChoice(TypedDict):
    """The text and why it ended: `stop`, `length`, or None in a chunk that is not the last."""

    text: str
    index: int
    logprobs: CompletionLogprobs | None
    finish_reason: str | None


class PromptTokensDetails(TypedDict):
    """Tokens of the prompt that were held already, and that were held but had to be evaluated again."""

    cached_tokens: int
    reevaluated_tokens: int


class CompletionUsage(TypedDict):
    """Tokens by kind."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class CreateCompletionStreamResponse(TypedDict):
    """A chunk of a completion."""

    id: str
    object: str
    created: int
    model: str
    choices: list[CompletionChoice]


class CreateCompletionResponse(CreateCompletionStreamResponse):
    """A whole completion."""

    usage: CompletionUsage


class Embedding(TypedDict):
    """One input's embedding: a row, or a row for each token."""

    index: int
    object: str
    embedding: list[float] | list[list[float]]


class EmbeddingUsage(TypedDict):
    """Tokens evaluated."""

    prompt_tokens: int
    total_tokens: int


class CreateEmbeddingResponse(TypedDict):
    """The embeddings of several inputs."""

    object: str
    model: str
    data: list[Embedding]
    usage: EmbeddingUsage
