"""What /set shows and changes: sampling, length of answers, how they are shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from pysa._arguments import check_int
from pysa.errors import ArgumentError
from pysa.sampling import SamplingParams

if TYPE_CHECKING:
    from pysa.chat.conversation import Conversation

THINKING = ("show", "hide", "off")
SWITCH = ("on", "off")
ALIASES = {"temp": "temperature", "n": "max_tokens"}


@dataclass
class Shown:
    """How a chat is shown.

    Args:
        thinking: `show`, `hide`; `off` also asks the template not to have the model think.
        status: a line about context, cache and speed after each answer.
        wrap: words are not split at the edge of the window.
    """

    thinking: str = "show"
    status: bool = False
    wrap: bool = True


def setting_names() -> list[str]:
    """What /set can change."""
    return [*(field.name for field in fields(SamplingParams)), "max_tokens", "thinking", "status", "wrap"]


def settings(chat: Conversation, shown: Shown) -> dict[str, str]:
    """All settings and their values, as they are typed."""
    values = {field.name: getattr(chat.sampling, field.name) for field in fields(SamplingParams)}
    values |= {"max_tokens": chat.max_tokens, "thinking": shown.thinking}
    values |= {name: SWITCH[not getattr(shown, name)] for name in ("status", "wrap")}
    return {name: "random" if value is None else f"{value}" for name, value in values.items()}


def set_value(chat: Conversation, shown: Shown, name: str, text: str) -> str:
    """Changes one setting.

    Args:
        chat: whose sampling and length of answers it may be.
        shown: whose appearance it may be.
        name: as in setting_names(), or the beginning of one only one has; `-` stands for `_`.
        text: the value as it is typed.

    Returns:
        The setting's whole name.

    Raises:
        ArgumentError: there is no such setting, or it cannot have this value.
    """
    name = _whole_name(name)
    if name == "max_tokens":
        chat.max_tokens = check_int(name, _number(name, text, int), 0, 2**31 - 1)
    elif name == "thinking":
        shown.thinking = _choice(name, text, THINKING)
        chat.renderer.options = thinking_variables(shown.thinking)
    elif name in ("status", "wrap"):
        setattr(shown, name, _choice(name, text, SWITCH) == "on")
    elif name == "seed" and text in ("random", "none"):
        chat.sampling = replace(chat.sampling, seed=None)
    else:
        is_float = isinstance(getattr(SamplingParams(seed=0), name), float)
        value: Any = _number(name, text, float if is_float else int)
        chat.sampling = replace(chat.sampling, **{name: value})
    return name


def thinking_variables(thinking: str) -> dict[str, bool]:
    """What templates look at to have a model answer without thinking: Qwen3's name for it, and DeepSeek's."""
    return {"enable_thinking": False, "thinking": False} if thinking == "off" else {}


def _whole_name(name: str) -> str:
    name = name.lower().replace("-", "_")
    name, names = ALIASES.get(name, name), setting_names()
    if name not in names:
        begun = [one for one in names if one.startswith(name)]
        if len(begun) != 1:
            raise ArgumentError(f"{name}: unknown setting: expected one of {', '.join(begun or names)}")
        name = begun[0]
    return name


def _number(name: str, text: str, kind: Callable[[str], Any]) -> Any:
    try:
        return kind(text)
    except ValueError:
        what = "a number" if kind is float else "an integer"
        raise ArgumentError(f"{name}: expected {what}, got {text!r}") from None


def _choice(name: str, text: str, choices: tuple[str, ...]) -> str:
    if text.lower() not in choices:
        raise ArgumentError(f"{name}: expected {' or '.join(choices)}, got {text!r}")
    return text.lower()
