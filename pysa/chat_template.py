"""The chat templates a model carries (`tokenizer.chat_template`, `tokenizer.chat_template.NAME`): messages to text.

The Jinja itself runs in pysa.template_sandbox. Called by pysa.cli, pysa.chat and pysa.llama.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pysa.errors import ArgumentError, ModelFileError
from pysa.template_messages import fit_messages

if TYPE_CHECKING:
    from pysa.model import Model

Message = Mapping[str, Any]

TEMPLATE_KEY = "tokenizer.chat_template"
DEFAULT_NAME = "default"
TOOLS_NAME = "tool_use"  # the template that some models have for conversations with tools


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template.

    Attributes:
        source: the Jinja source.
        where: how errors call it: a metadata key or an argument.
    """

    source: str
    where: str = TEMPLATE_KEY

    def render(
        self,
        messages: Sequence[Message],
        *,
        bos: str = "",
        eos: str = "",
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """The text that a conversation becomes.

        Args:
            messages: turns, oldest first, each with `role` and `content`: a text, or a list of parts
                `{"type": "text", "text": ...}`; assistants' may have `tool_calls` as OpenAI writes them.
            bos: text of the token a text begins with.
            eos: text of the token a text ends with.
            tools: functions the model may call, as OpenAI writes them.
            documents: texts the model may look things up in.
            add_generation_prompt: whether the model's next turn is begun.
            **variables: more that the template may know, e.g. `enable_thinking`.

        Raises:
            ArgumentError: messages are malformed or the template refuses them.
            ModelFileError: the template is faulty, or wants more work, time or room than it gets.
        """
        from pysa.template_sandbox import TemplateRefusalError  # noqa: PLC0415  `import pysa` needs numpy alone

        given = {"bos_token": bos, "eos_token": eos, "tools": tools, "documents": documents, **variables}
        given["add_generation_prompt"] = add_generation_prompt
        try:
            return self.run({**given, "messages": fit_messages(self, messages)})
        except (ArgumentError, ModelFileError):
            raise
        except TemplateRefusalError as error:
            raise ArgumentError(f"messages: the model's chat template refuses them: {error}") from None
        except Exception as error:  # a template is a program: it may raise anything
            raise ModelFileError(f"{self.where}: cannot be rendered: {error}") from error

    def run(self, variables: Mapping[str, Any]) -> str:
        """The output for exactly these variables; raises whatever a faulty template does."""
        text: str = _environment().run(_compile(self.source), variables)
        return text


def render_chat(template: str, messages: Sequence[Message], bos: str = "", eos: str = "", **variables: Any) -> str:
    """The text that a conversation becomes through a template's source; arguments as of ChatTemplate.render()."""
    return ChatTemplate(template).render(messages, bos=bos, eos=eos, **variables)


def template_sources(metadata: Mapping[str, Any]) -> dict[str, str]:
    """The templates of a model's metadata by name; `tokenizer.chat_template` is named `default`."""
    named = {
        key.removeprefix(f"{TEMPLATE_KEY}."): value
        for key, value in metadata.items()
        if key.startswith(f"{TEMPLATE_KEY}.") and isinstance(value, str)
    }
    default = metadata.get(TEMPLATE_KEY)
    return {DEFAULT_NAME: default, **named} if isinstance(default, str) else named


def model_template(model: Model, name: str | None = None, *, with_tools: bool = False) -> ChatTemplate:
    """A template of the model.

    Args:
        model: the model.
        name: which, where it has several; None: its default one.
        with_tools: None stands for the one named `tool_use`, if it has that.

    Raises:
        ModelFileError: it has no template, or a faulty one.
        ArgumentError: it has none of that name.
    """
    sources = template_sources(model.metadata)
    if name is None:
        name = TOOLS_NAME if with_tools and TOOLS_NAME in sources else DEFAULT_NAME
        if name not in sources:
            raise ModelFileError(f"{model.path}: {TEMPLATE_KEY}: expected a template, got none; leave --chat out")
    if name not in sources:
        raise ArgumentError(f"{model.path}: unknown chat template: expected one of {', '.join(sources)}, got {name!r}")
    return ChatTemplate(sources[name], TEMPLATE_KEY if name == DEFAULT_NAME else f"{TEMPLATE_KEY}.{name}")


def chat_tokens(
    model: Model,
    messages: Sequence[Message],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    template: str | None = None,
    **variables: Any,
) -> list[int]:
    """Token ids of a conversation through the model's own template.

    Special tokens written out in a message are read as such, as in the template's own text.

    Args:
        model: whose template and vocabulary it is.
        messages: turns, as ChatTemplate.render() takes them.
        tools: functions the model may call.
        template: the name of the template, where the model has several.
        **variables: more of what ChatTemplate.render() takes.

    Raises:
        ModelFileError: the model has no template, or a faulty one.
        ArgumentError: messages are malformed or the template refuses them.
    """
    bos, eos = special_texts(model)
    chosen = model_template(model, template, with_tools=bool(tools))
    text = chosen.render(messages, bos=bos, eos=eos, tools=tools, **variables)
    # A template that writes BOS itself would otherwise get two.
    return model.tokenize(text, add_special=not (bos and text.startswith(bos)))


def special_texts(model: Model) -> tuple[str, str]:
    """How BOS and EOS are written in a text; "" for one that the model does not have."""
    vocab = model.native.vocab
    bos, eos = (
        "" if token is None else vocab.token_to_piece(token, True).decode("utf-8", "replace")
        for token in (vocab.bos, vocab.eos)
    )
    return bos, eos


@functools.cache
def _environment() -> Any:
    from pysa.template_sandbox import BoundedEnvironment  # noqa: PLC0415  as above

    return BoundedEnvironment()


@functools.lru_cache(maxsize=32)
def _compile(source: str) -> Any:
    return _environment().compile_source(source)
