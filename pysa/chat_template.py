"""Renders the chat template a model carries (`tokenizer.chat_template`): Jinja, in a sandbox. Called by pysa.cli."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from pysa.errors import ArgumentError, ModelFileError

if TYPE_CHECKING:
    from pysa.model import Model


def render_chat(template: str, messages: Sequence[Mapping[str, str]], bos: str = "", eos: str = "") -> str:
    """The text that a conversation becomes, up to where the model's next turn begins.

    Args:
        template: the Jinja source.
        messages: turns, oldest first, each with `role` (`system`, `user`, `assistant`) and `content`.
        bos: text of the token a text begins with.
        eos: text of the token a text ends with.

    Raises:
        ModelFileError: the template is faulty.
        ArgumentError: the template refuses these messages.
    """
    import jinja2  # noqa: PLC0415  imported late: `import pysa` needs numpy alone
    from jinja2.sandbox import ImmutableSandboxedEnvironment  # noqa: PLC0415

    class RefusedError(Exception):
        """What a template's raise_exception() raises."""

    def refuse(message: str) -> NoReturn:
        raise RefusedError(message)

    def to_json(value: Any, indent: int | None = None, **_: Any) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    # Chat templates are written for these settings and functions.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda pattern: datetime.datetime.now().strftime(pattern)
    turns = [dict(message) for message in messages]
    try:
        return environment.from_string(template).render(
            messages=turns, add_generation_prompt=True, bos_token=bos, eos_token=eos
        )
    except RefusedError as error:
        raise ArgumentError(f"messages: the model's chat template refuses them: {error}") from None
    except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        raise ModelFileError(f"tokenizer.chat_template: cannot be rendered: {error}") from error


def chat_tokens(model: Model, messages: Sequence[Mapping[str, str]]) -> list[int]:
    """Token ids of a conversation through the model's own template.

    Special tokens written out in a message are read as such, as in the template's own text.

    Raises:
        ModelFileError: the model has no template, or a faulty one.
    """
    metadata = model.metadata
    template = metadata.get("tokenizer.chat_template")
    if not isinstance(template, str):
        raise ModelFileError(f"{model.path}: tokenizer.chat_template: expected a template, got none; leave --chat out")
    bos, eos = (_token_text(model, metadata.get(f"tokenizer.ggml.{name}_token_id")) for name in ("bos", "eos"))
    text = render_chat(template, messages, bos, eos)
    # A template that writes BOS itself would otherwise get two.
    return model.tokenize(text, add_special=not (bos and text.startswith(bos)))


def _token_text(model: Model, token: object) -> str:
    if not isinstance(token, int) or not 0 <= token < model.n_vocab:
        return ""
    return model.token_to_piece(token, special=True).decode("utf-8", "replace")
