"""How a fact and a question about it are written: text with ` {key}` and ` {value}` in it. tasks.py fills them in."""

from __future__ import annotations

import re

from pysa._arguments import check_text
from pysa.errors import ArgumentError

FACT = "# note: {key} is {value}.\n"
QUESTION = "# recall: {key} is {value}.\n"


def check_template(name: str, template: object) -> str:
    """Returns `template` if it has the key and then the value, each once and after a space, which belongs to its word.

    Raises:
        ArgumentError: naming what is expected.
    """
    text = check_text(name, template)
    places = [text.find(" {key}"), text.find(" {value}")]
    if not 0 <= places[0] < places[1] or re.findall("[{}]", text) != ["{", "}"] * 2:
        expected = "` {key}` and then ` {value}`, each once after a space, and no other braces"
        raise ArgumentError(f"{name}: not a template: expected {expected}, got {text!r}")
    return text
