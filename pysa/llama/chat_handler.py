"""Chat formats and handlers of the caller's own, under the names they have in llama_cpp.llama_chat_format.

A formatter makes a prompt of messages; a handler answers messages, with the Llama it is given. Both may be registered
under a name for `chat_format`, or be given as `chat_handler`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

from pysa._arguments import check_text
from pysa.chat_template import ChatTemplate
from pysa.errors import ArgumentError
from pysa.llama.chat import chat_arguments
from pysa.llama.chat_format import REGISTERED, ChatFormatter, ChatFormatterResponse, default_format
from pysa.llama.chat_shape import AnswerForm, ChunkShaper, chat_result
from pysa.llama.named_formats import NAMED_FORMATS

__all__ = [
    "ChatFormatter",
    "ChatFormatterResponse",
    "Jinja2ChatFormatter",
    "LlamaChatCompletionHandler",
    "chat_formatter_to_chat_completion_handler",
    "get_chat_completion_handler",
    "guess_chat_format_from_gguf_metadata",
    "hf_autotokenizer_to_chat_completion_handler",
    "hf_autotokenizer_to_chat_formatter",
    "hf_tokenizer_config_to_chat_completion_handler",
    "hf_tokenizer_config_to_chat_formatter",
    "register_chat_completion_handler",
    "register_chat_format",
]

LlamaChatCompletionHandler: TypeAlias = Callable[..., Any]
_F = TypeVar("_F", bound=Callable[..., Any])

_HANDLERS: dict[str, LlamaChatCompletionHandler] = {}


class Jinja2ChatFormatter:
    """A formatter that renders a template, in the sandbox of the models' own.

    Args:
        template: the Jinja source.
        eos_token: text of the token a text ends with; it also ends answers.
        bos_token: text of the token a text begins with.
        add_generation_prompt: whether the model's next turn is begun.
        stop_token_ids: tokens that end an answer.
    """

    def __init__(
        self,
        template: str,
        eos_token: str,
        bos_token: str,
        add_generation_prompt: bool = True,
        stop_token_ids: Sequence[int] | None = None,
    ) -> None:
        self.template = check_text("template", template)
        self.eos_token, self.bos_token = check_text("eos_token", eos_token), check_text("bos_token", bos_token)
        self.add_generation_prompt = add_generation_prompt
        self.stop_token_ids = None if stop_token_ids is None else frozenset(stop_token_ids)
        self._template = ChatTemplate(template, "template")

    def __call__(self, *, messages: Sequence[Mapping[str, Any]], **variables: Any) -> ChatFormatterResponse:
        """The prompt of a conversation; `variables` reach the template."""
        given = {"add_generation_prompt": self.add_generation_prompt, **variables}
        prompt = self._template.render(messages, bos=self.bos_token, eos=self.eos_token, **given)
        ends = self.stop_token_ids
        criterion = None if ends is None else (lambda ids, _logits: int(ids[-1]) in ends)
        return ChatFormatterResponse(prompt, [self.eos_token], criterion, added_special=True)

    def to_chat_handler(self) -> LlamaChatCompletionHandler:
        """A handler for `Llama(chat_handler=...)`."""
        return chat_formatter_to_chat_completion_handler(self)


def chat_formatter_to_chat_completion_handler(chat_formatter: ChatFormatter | str) -> LlamaChatCompletionHandler:
    """A handler that asks for the completion of a formatter's prompt. A name stands for a chat format."""

    def handler(*, llama: Any, messages: Sequence[Mapping[str, Any]], stream: bool = False, **arguments: Any) -> Any:
        given, form = chat_arguments(llama.model, messages, chat_format=chat_formatter, **arguments)
        found = llama.create_completion(stream=stream, **given)
        return _shaped(found, form) if stream else chat_result(found, form)

    return handler


def register_chat_format(name: str) -> Callable[[_F], _F]:
    """A decorator of formatters: `chat_format=name` then means this one."""

    def register(formatter: _F) -> _F:
        _check_free(name)
        REGISTERED[name] = formatter
        return formatter

    return register


def register_chat_completion_handler(name: str) -> Callable[[_F], _F]:
    """A decorator of handlers: `chat_format=name` then means this one, for pysa.Llama."""

    def register(handler: _F) -> _F:
        _check_free(name)
        _HANDLERS[name] = handler
        return handler

    return register


def registered_handler(name: str | None) -> LlamaChatCompletionHandler | None:
    """The handler that was registered under a name, if one was."""
    return None if name is None else _HANDLERS.get(name)


def get_chat_completion_handler(name: str) -> LlamaChatCompletionHandler:
    """The handler of a registered or named chat format.

    Raises:
        ArgumentError: an unknown name.
    """
    known = (*_HANDLERS, *REGISTERED, *NAMED_FORMATS)
    if name not in known:
        raise ArgumentError(f"chat_format: unknown name: expected one of {', '.join(known)}, got {name!r:.60}")
    return _HANDLERS.get(name) or chat_formatter_to_chat_completion_handler(name)


def guess_chat_format_from_gguf_metadata(metadata: Mapping[str, str]) -> str | None:
    """The named format that stands for the metadata's template; None if none does."""
    name = default_format(metadata)
    return name if "tokenizer.chat_template" in metadata and name in NAMED_FORMATS else None


def hf_tokenizer_config_to_chat_formatter(
    tokenizer_config: Mapping[str, Any], add_generation_prompt: bool = True
) -> ChatFormatter:
    """The formatter of a tokenizer_config.json's `chat_template`, `bos_token` and `eos_token`."""
    source, bos, eos = (
        check_text(f"tokenizer_config: {key}", tokenizer_config.get(key))
        for key in ("chat_template", "bos_token", "eos_token")
    )
    template = ChatTemplate(source, "tokenizer_config: chat_template")

    def formatter(*, messages: Sequence[Mapping[str, Any]], **variables: Any) -> ChatFormatterResponse:
        # An empty turn begins the answer, as llama-cpp-python does it.
        turns = [*messages, {"role": "assistant", "content": ""}] if add_generation_prompt else messages
        prompt = template.render(turns, bos=bos, eos=eos, add_generation_prompt=False, **variables)
        return ChatFormatterResponse(prompt, [eos, bos], added_special=True)

    return formatter


def hf_tokenizer_config_to_chat_completion_handler(
    tokenizer_config: Mapping[str, Any], add_generation_prompt: bool = True
) -> LlamaChatCompletionHandler:
    """hf_tokenizer_config_to_chat_formatter() as a handler."""
    formatter = hf_tokenizer_config_to_chat_formatter(tokenizer_config, add_generation_prompt)
    return chat_formatter_to_chat_completion_handler(formatter)


def hf_autotokenizer_to_chat_formatter(pretrained_model_name_or_path: Any) -> ChatFormatter:
    """The formatter of a tokenizer that transformers loads."""
    from transformers import AutoTokenizer  # noqa: PLC0415

    tokenizer = AutoTokenizer.from_pretrained(pretrained_model_name_or_path)

    def formatter(*, messages: Sequence[Mapping[str, Any]], **variables: Any) -> ChatFormatterResponse:
        prompt = tokenizer.apply_chat_template([dict(turn) for turn in messages], tokenize=False, **variables)
        return ChatFormatterResponse(str(prompt), tokenizer.eos_token, added_special=True)

    return formatter


def hf_autotokenizer_to_chat_completion_handler(pretrained_model_name_or_path: Any) -> LlamaChatCompletionHandler:
    """hf_autotokenizer_to_chat_formatter() as a handler."""
    return chat_formatter_to_chat_completion_handler(hf_autotokenizer_to_chat_formatter(pretrained_model_name_or_path))


def _shaped(chunks: Iterator[dict[str, Any]], form: AnswerForm) -> Iterator[dict[str, Any]]:
    shaper = ChunkShaper(form)
    for chunk in chunks:
        yield from shaper.feed(chunk)


def _check_free(name: str) -> None:
    if name in _HANDLERS or name in REGISTERED or name in NAMED_FORMATS:
        raise ArgumentError(f"chat_format: {name!r} is taken: expected a name that no format has")
