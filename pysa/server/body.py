"""Request bodies: JSON objects whose fields are taken one by one; what nobody takes is refused by name.

Only what the server itself acts on is checked here. What goes on to AsyncLlama is checked there, and errors name it.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any, NoReturn

from starlette.requests import Request

from pysa.server.errors import ApiError

# Accepted and without effect: they are about accounts, routing or storage, not about the answer.
WITHOUT_EFFECT = {
    "metadata",
    "parallel_tool_calls",
    "prompt_cache_key",
    "prompt_cache_retention",
    "reasoning_effort",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
    "verbosity",
}


class Body:
    """The fields of one request.

    Args:
        fields: as JSON has them; null counts as left out.
    """

    def __init__(self, fields: dict[str, Any]) -> None:
        self._fields = {name: value for name, value in fields.items() if value is not None}

    def __contains__(self, name: object) -> bool:
        return name in self._fields

    def take(self, name: str, default: Any = None) -> Any:
        """A field of any type; it is then gone."""
        return self._fields.pop(name, default)

    def take_bool(self, name: str, default: bool = False) -> bool:
        """A field that is true or false."""
        value = self.take(name, default)
        return value if isinstance(value, bool) else wrong(name, "true or false", value)

    def take_int(self, name: str, default: int, low: int, high: int) -> int:
        """A field that is an integer in low..high."""
        value = self.take(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            wrong(name, f"an integer in {low}..{high}", value)
        return int(value)

    def take_text(self, name: str, default: str = "") -> str:
        """A field that is text."""
        value = self.take(name, default)
        return value if isinstance(value, str) else wrong(name, "text", value)

    def take_object(self, name: str) -> dict[str, Any]:
        """A field that is an object."""
        value = self.take(name, {})
        return value if isinstance(value, dict) else wrong(name, "an object", value)

    def take_some(self, names: Collection[str]) -> dict[str, Any]:
        """Those of some fields that are there."""
        return {name: self._fields.pop(name) for name in names if name in self._fields}

    def finish(self) -> None:
        """Refuses what is left.

        Raises:
            ApiError: a field that nobody has taken.
        """
        for name in self._fields:
            if name not in WITHOUT_EFFECT:
                raise ApiError(400, f"{name}: not supported here; leave it out", param=name, code="unknown_parameter")


def wrong(name: str, expected: str, got: object) -> NoReturn:
    """Refuses a field's value."""
    shown = json.dumps(got)
    shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
    raise ApiError(400, f"{name}: expected {expected}, got {shown}", param=name)


async def read_body(request: Request) -> Body:
    """The body of a request.

    Raises:
        ApiError: it is no JSON object.
        ClientDisconnect: the client left before it was there.
    """
    # A browser asks before it sends this type across origins: no page can have a visitor's browser ask unnoticed.
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, f"Content-Type: expected application/json, got {kind or 'none'!r}")
    raw = await request.body()
    try:
        fields = json.loads(raw, parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise ApiError(400, f"body: not UTF-8 at byte {error.start}: expected JSON") from None
    except ValueError as error:
        raise ApiError(400, f"body: not JSON: {error}") from None
    except RecursionError:
        raise ApiError(400, "body: nested too deeply: expected JSON of a reasonable depth") from None
    if not isinstance(fields, dict):
        raise ApiError(400, f"body: expected a JSON object, got {type(fields).__name__}")
    return Body(fields)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
