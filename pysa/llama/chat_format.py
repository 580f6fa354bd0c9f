"""Chat formats: by which template messages become a prompt, and which strings end an answer.

A format is a function of messages. Which one a name stands for is decided here, as llama-cpp-python decides it; the
model's own templates are in pysa.chat_template, the named formats in pysa.llama.named_formats.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from pysa.chat_template import DEFAULT_NAME, ChatTemplate, special_texts, template_sources
from pysa.errors import ArgumentError
from pysa.llama.function_calling import FUNCTION_CALLING
from pysa.llama.named_formats import NAMED_FORMATS
from pysa.llama.tool_forms import ToolForm, tool_form

if TYPE_CHECKING:
    from pysa.model import Model

FALLBACK = "llama-2"

# SHA-256 of templates that many files carry, for which a named format is taken.
_KNOWN_TEMPLATES = {
    "153280e3ff55d19da1398bdb3914ee2a51b80429bfaedde11d7d216c39db80f3": "chatml",
    "7e995b379ec01747807246483647cd99030abf331653f1119e16d7ac041a3495": "mistral-instruct",
    "26a59556925c987317ce5291811ba3b7f32ec4c647c400c6cc7e3a9993007ba7": "mistral-instruct",
    "ba03a121d097859c7b5b9cd03af99aafe95275210d2876f642ad9929a150f122": "llama-3",
}


@dataclass
class ChatFormatterResponse:
    """A prompt, and what goes with it.

    Attributes:
        prompt: the text.
        stop: strings that end the answer.
        stopping_criteria: is asked after each token.
        added_special: whether the prompt has the special tokens around it already.
    """

    prompt: str
    stop: str | list[str] | None = None
    stopping_criteria: Any = None
    added_special: bool = False


ChatFormatter: TypeAlias = Callable[..., ChatFormatterResponse]

# What register_chat_format() added, in pysa.llama.chat_handler.
REGISTERED: dict[str, ChatFormatter] = {}


@dataclass(frozen=True)
class TemplateFormatter:
    """A chat format that is a template.

    Attributes:
        template: what writes the prompt.
        form: how tool calls are written in it.
        stop: what ends an answer; None: only the tokens that end any generation.
        added_special: whether the template writes BOS itself.
        bos: text of the token a text begins with.
        eos: text of the token a text ends with.
        variables: what the template is given besides.
    """

    template: ChatTemplate
    form: ToolForm = ToolForm.PLAIN
    stop: str | None = None
    added_special: bool = False
    bos: str = ""
    eos: str = ""
    variables: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, *, messages: Sequence[Mapping[str, Any]], **variables: Any) -> ChatFormatterResponse:
        """The prompt of a conversation; `variables` (tools, tool_choice, ...) reach the template."""
        given = {**variables, **self.variables}
        text = self.template.render(messages, bos=self.bos, eos=self.eos, **given)
        return ChatFormatterResponse(text, self.stop, added_special=self.added_special)


def default_format(metadata: Mapping[str, Any]) -> str:
    """The name of the format of a model for which none is given.

    That is its own template, `chat_template.default`, unless a named format stands for it; `llama-2` if it has none.
    """
    template = template_sources(metadata).get(DEFAULT_NAME)
    if template is None:
        return FALLBACK
    digest = hashlib.sha256(template.encode("utf-8", "surrogatepass")).hexdigest()
    return _KNOWN_TEMPLATES.get(digest, f"chat_template.{DEFAULT_NAME}")


def find_format(model: Model, name: str | None) -> ChatFormatter:
    """The format that `chat_format` names.

    Args:
        model: whose templates are called `chat_template.default` and `chat_template.NAME`.
        name: one of those, of the registered or of the named formats; None takes default_format().

    Raises:
        ArgumentError: an unknown name.
    """
    own = {f"chat_template.{key}": source for key, source in template_sources(model.metadata).items()}
    if name is None:
        name = default_format(model.metadata)
    if not isinstance(name, str) or (name not in own and name not in REGISTERED and name not in NAMED_FORMATS):
        raise ArgumentError(
            f"chat_format: unknown name: expected one of {', '.join([*own, *REGISTERED, *NAMED_FORMATS])}, "
            f"got {name!r:.60}; a template of another form may be given as chat_handler"
        )
    if name in own:
        bos, eos = special_texts(model)
        template = ChatTemplate(own[name], f"tokenizer.{name}".removesuffix(f".{DEFAULT_NAME}"))
        return TemplateFormatter(template, tool_form(own[name]), eos or None, True, bos, eos)
    if name in REGISTERED:
        return REGISTERED[name]
    row = NAMED_FORMATS[name]
    form = ToolForm.FUNCTIONS if name == FUNCTION_CALLING else ToolForm.PLAIN
    template = ChatTemplate(row.template, f"chat_format {name}")
    return TemplateFormatter(template, form, row.stop, variables=row.variables)
