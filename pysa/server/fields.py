"""Fields that several routes have, as AsyncLlama takes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pysa.grammar import LlamaGrammar
from pysa.server.body import Body, wrong
from pysa.server.errors import ApiError
from pysa.server.settings import ServerSettings

JSON = dict[str, Any]

INT32_MAX = 2**31 - 1
SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "typical_p",
    "presence_penalty",
    "frequency_penalty",
    "repeat_penalty",
    "mirostat_mode",
    "mirostat_tau",
    "mirostat_eta",
    "logit_bias",
    "stop",
)


class Fields:
    """Reads them.

    Args:
        settings: names and limits.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings

    def model(self, body: Body) -> str:
        """The model's name; the served one where none is given."""
        return self.known(body.take_text("model", self._settings.names[0]))

    def known(self, name: str) -> str:
        """A name, if the model has it.

        Raises:
            ApiError: 404, another one.
        """
        names = self._settings.names
        if name not in names:
            message = f"model: {name!r} is not served: expected {' or '.join(names)}"
            raise ApiError(404, message, param="model", code="model_not_found")
        return name

    def sampling(self, body: Body) -> JSON:
        """How tokens are picked."""
        arguments = body.take_some(SAMPLING)
        if (grammar := body.take_text("grammar")) != "":
            arguments["grammar"] = LlamaGrammar.from_string(grammar)
        if (seed := body.take("seed")) is not None:
            arguments["seed"] = seed
        return arguments

    def max_tokens(self, body: Body, names: Sequence[str], default: int) -> int | None:
        """Most tokens of an answer, the first of some fields that is there; None: what the context holds."""
        most = self._settings.max_tokens or INT32_MAX
        given = [body.take_int(name, 0, 1, most) for name in names if name in body]
        return given[0] if given else min(default, most) or self._settings.max_tokens or None

    def n_choices(self, body: Body, n_prompts: int) -> int:
        """Answers to each prompt."""
        n = body.take_int("n", 1, 1, self._settings.max_choices)
        if n * n_prompts > self._settings.max_choices:
            message = f"prompt: too many answers: expected at most {self._settings.max_choices}, got {n * n_prompts}"
            raise ApiError(400, message, param="prompt")
        return n


def prompts_of(value: Any, name: str = "prompt") -> list[str | list[int]]:
    """Prompts from one text, several texts, one list of tokens or several."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if all(isinstance(item, int) and not isinstance(item, bool) for item in value):
            return [value]
        if all(isinstance(item, str) for item in value) or all(isinstance(item, list) for item in value):
            return value
    return wrong(name, "a text, a list of texts, a list of token ids or a list of such lists", value)


def seed_of(arguments: JSON, i: int) -> JSON:
    """Each choice of one prompt gets a seed of its own."""
    seed = arguments.get("seed")
    return {"seed": seed + i} if isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0 else {}
