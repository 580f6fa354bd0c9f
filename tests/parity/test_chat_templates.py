"""Chat templates of real models, rendered as transformers renders them.

The templates come with llama.cpp's source, where the build has kept that: in the cache folder of cmake/llama_cpp.cmake.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from pysa.chat_template import ChatTemplate
from pysa.errors import ArgumentError, ModelFileError
from pysa.template_messages import fit_messages

CACHE = Path(os.environ.get("PYSA_CACHE_DIR") or Path.home() / ".cache" / "pysa")
TEMPLATES = sorted(CACHE.glob("llama-cpp-*/*/vendor/llama.cpp/models/templates/*.jinja"))
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather <now> & 'later'",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "description": "Where"}, "n": {"type": "integer"}},
                "required": ["city"],
            },
        },
    }
]
CALL = {
    "id": "call00001",
    "type": "function",
    "function": {"name": "get_weather", "arguments": {"city": "Zürich", "n": 2}},
}
ASK = {"role": "user", "content": "hi <b> 'x' \"y\" é"}
CONVERSATIONS: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]] | None]] = {
    "one turn": ([ASK], None),
    "system": (
        [
            {"role": "system", "content": "be brief"},
            ASK,
            {"role": "assistant", "content": "<think>\nhm\n</think>\n\nho"},
            {"role": "user", "content": "and\n\nnow"},
        ],
        None,
    ),
    "tools": ([{"role": "system", "content": "be brief"}, ASK], TOOLS),
    "calls": (
        [
            ASK,
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "content": '{"t": 5}', "tool_call_id": "call00001", "name": "get_weather"},
        ],
        TOOLS,
    ),
}


@pytest.mark.skipif(not TEMPLATES, reason=f"no llama.cpp source under {CACHE}: its templates are not at hand")
@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_a_template_gives_what_transformers_gives(path: Path) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    source = path.read_text(encoding="utf-8")
    template = ChatTemplate(source)
    n_same = 0
    for messages, tools in CONVERSATIONS.values():
        fitted = fit_messages(template, messages)
        given = {"bos_token": "<s>", "eos_token": "</s>", "tools": tools}
        try:
            (expected,), _ = render_jinja_template([fitted], chat_template=source, add_generation_prompt=True, **given)
        except Exception:  # it refuses the conversation, or wants variables of its own
            with pytest.raises((ArgumentError, ModelFileError)):
                template.render(messages, bos="<s>", eos="</s>", tools=tools)
            continue
        assert template.render(messages, bos="<s>", eos="</s>", tools=tools) == expected
        n_same += 1
    # Two of the seventy want variables that only their own software has.
    assert n_same > 0 or path.stem.startswith(("CohereForAI-c4ai-command-r-plus", "fireworks-ai"))
