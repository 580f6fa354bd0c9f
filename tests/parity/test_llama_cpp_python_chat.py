"""create_chat_completion equals the real llama-cpp-python's: prompts of all formats, and results key for key.

Both compute in float32, and texts are greedy; see test_llama_cpp_python.py.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.ascii_gguf import speak_ascii

from pysa.chat_template import ChatTemplate
from pysa.grammar import LlamaGrammar
from pysa.llama import Llama
from pysa.llama.chat_format import default_format
from pysa.llama.chat_handler import Jinja2ChatFormatter, guess_chat_format_from_gguf_metadata
from pysa.llama.function_calling import FUNCTION_CALLING
from pysa.llama.named_formats import NAMED_FORMATS

llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is compiled from source; the test extra has it")

TEMPLATE = (
    "{{ bos_token }}{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CLOSED = "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
TURNS = [
    {"role": "system", "content": "the thing"},
    {"role": "user", "content": "and the ring"},
    {"role": "assistant", "content": "in the string"},
    {"role": "user", "content": "again"},
]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 6}, "kind": {"enum": ["x", "yy"]}},
    "required": ["name", "kind"],
}
TOOLS = [{"type": "function", "function": {"name": "find", "description": "Finds", "parameters": SCHEMA}}]
ONE = {"type": "function", "function": {"name": "find"}}
SHARED: dict[str, Any] = {"n_ctx": 1024, "n_threads": 1, "n_threads_batch": 1, "type_k": 0, "type_v": 0, "seed": 5}


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def pair(request: pytest.FixtureRequest, tiny_gguf: Callable[..., Path], tmp_path_factory: Any) -> Iterator[Any]:
    keys = {"tokenizer.chat_template": TEMPLATE, "tokenizer.chat_template.closed": CLOSED}
    made = tiny_gguf("llama", n_layer=3, vocab=request.param, seed=8, extra_kv=keys)
    path = str(speak_ascii(shutil.copy(made, tmp_path_factory.mktemp("chat") / f"{request.param}.gguf")))
    theirs = llama_cpp.Llama(path, logits_all=True, verbose=False, **SHARED)
    with Llama(path, **SHARED) as ours:
        yield SimpleNamespace(ours=ours, theirs=theirs)
    theirs.close()


def settled(result: Any) -> Any:
    """A result without what differs from call to call, and without what pysa adds."""
    text = json.dumps(result, default=float).replace(result["id"].removeprefix("chat"), "cmpl-x")
    result = {**json.loads(text), "created": 0}
    result.get("usage", {}).pop("prompt_tokens_details", None)
    return result


def ask(pair: Any, **arguments: Any) -> tuple[Any, Any]:
    given = {"messages": TURNS, "temperature": 0, "max_tokens": 24, **arguments}
    return pair.ours.create_chat_completion(**given), pair.theirs.create_chat_completion(**given)


def rounded(value: Any) -> Any:
    """Floats to 4 digits: logarithms of probabilities differ by rounding."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return round(value, 3) if isinstance(value, float) else value


def conversation(seed: int, *, contents: tuple[Any, ...]) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    roles = ("system", "user", "assistant", "user", "assistant", "tool")
    turns = [{"role": draw.choice(roles), "content": draw.choice(contents)} for _ in range(draw.randint(1, 6))]
    return [{**turn, "content": turn["content"] or ""} if turn["role"] == "system" else turn for turn in turns]


@pytest.mark.parametrize("name", sorted({*NAMED_FORMATS} - {FUNCTION_CALLING}))
def test_the_prompts_of_named_formats(name: str) -> None:
    handler = llama_cpp.llama_chat_format.get_chat_completion_handler(name)
    (formatter,) = [cell.cell_contents for cell in handler.__closure__]
    row = NAMED_FORMATS[name]
    for seed in range(200):
        # llama-cpp-python cannot do mistral-instruct without a content.
        empty = () if name == "mistral-instruct" else (None,)
        messages = conversation(seed, contents=("hi", "", "a b\n c ", " x", "{{ 1 }}", "line\n\n", "</s>", *empty))
        theirs = formatter(messages=messages)
        ours = ChatTemplate(row.template).render(messages, **row.variables)
        assert ours == theirs.prompt
        assert (row.stop or None, theirs.added_special) == (theirs.stop or None, False)


def test_the_formats_are_theirs_but_for_those_that_lose_messages() -> None:
    registry = llama_cpp.llama_chat_format.LlamaChatCompletionHandlerRegistry()
    functionary = {"functionary", "functionary-v1", "functionary-v2"}  # they need a tokenizer of Hugging Face besides
    assert {*registry._chat_handlers} - {*NAMED_FORMATS} == functionary | {"openbuddy", "saiga", "open-orca", "intel"}
    assert {*NAMED_FORMATS} <= {*registry._chat_handlers}


def test_known_templates_are_guessed() -> None:
    theirs = llama_cpp.llama_chat_format
    templates = [getattr(theirs, name) for name in dir(theirs) if name.endswith("_CHAT_TEMPLATE")]
    assert len(templates) == 4
    for template in (*templates, TEMPLATE, templates[0] + " "):
        metadata = {"tokenizer.chat_template": template}
        expected = theirs.guess_chat_format_from_gguf_metadata(metadata)
        assert guess_chat_format_from_gguf_metadata(metadata) == expected
        assert default_format(metadata) == (expected or "chat_template.default")
    assert default_format({}) == "llama-2"


def test_the_models_template_and_the_tokens_of_all_formats(pair: Any) -> None:
    assert pair.theirs.chat_format == default_format(pair.ours.model.metadata) == "chat_template.default"
    ours, theirs = ask(pair)
    assert list(ours) == list(theirs)
    assert settled(ours) == settled(theirs)
    for name in [*sorted({*NAMED_FORMATS} - {FUNCTION_CALLING}), "chat_template.default", "chat_template.closed"]:
        try:
            pair.ours.chat_format = pair.theirs.chat_format = name
            ours, theirs = ask(pair, max_tokens=2)
        finally:
            pair.ours.chat_format, pair.theirs.chat_format = None, "chat_template.default"
        assert settled(ours) == settled(theirs), name


def test_a_conversation_that_the_template_has_ended_gets_no_answer(pair: Any) -> None:
    pair.ours.chat_format = pair.theirs.chat_format = "chat_template.closed"
    try:
        ours, theirs = ask(pair)
    finally:
        pair.ours.chat_format, pair.theirs.chat_format = None, "chat_template.default"
    assert settled(ours) == settled(theirs)
    assert ours["choices"][0]["message"]["content"] == ""


def test_without_a_template(tiny_gguf: Callable[..., Path], tmp_path: Path) -> None:
    path = str(speak_ascii(shutil.copy(tiny_gguf("llama", n_layer=3, vocab="llama", seed=8), tmp_path / "m.gguf")))
    theirs = llama_cpp.Llama(path, verbose=False, **SHARED)
    with Llama(path, **SHARED) as ours:
        found = ask(SimpleNamespace(ours=ours, theirs=theirs))
        assert settled(found[0]) == settled(found[1])
    theirs.close()


CASES: dict[str, dict[str, Any]] = {
    "stop": {"stop": ["e", "q"], "max_tokens": 60},
    "one stop": {"stop": "in"},
    "no limit": {"max_tokens": None, "stop": ["a", "e", "i", "1"]},
    "a name": {"model": "a name"},
    "penalties": {"repeat_penalty": 1.3, "presence_penalty": 0.4, "frequency_penalty": 0.2},
    "json": {"response_format": {"type": "json_object"}},
    "json of a schema": {"response_format": {"type": "json_object", "schema": SCHEMA}, "max_tokens": 60},
    "tools for the template": {"tools": TOOLS, "tool_choice": "none"},
    "a tool": {"tools": TOOLS, "tool_choice": ONE, "max_tokens": 60},
}


@pytest.fixture
def same_grammars(monkeypatch: pytest.MonkeyPatch) -> None:
    """Schemas become grammars by their converter, which allows other white space than llama.cpp's own, ours."""

    def convert(schema: Any, verbose: bool = True) -> LlamaGrammar:
        return LlamaGrammar.from_string(llama_cpp.llama_grammar.json_schema_to_gbnf(json.dumps(schema)))

    monkeypatch.setattr(LlamaGrammar, "from_json_schema", convert)


@pytest.mark.usefixtures("same_grammars")
@pytest.mark.parametrize("name", CASES)
def test_results(pair: Any, name: str) -> None:
    ours, theirs = ask(pair, **CASES[name])
    assert settled(ours) == settled(theirs)
    assert list(ours["choices"][0]) == list(theirs["choices"][0])


@pytest.mark.usefixtures("same_grammars")
@pytest.mark.parametrize("call", [{"name": "find"}, "none"], ids=str)
def test_the_older_form_of_tools(pair: Any, call: Any) -> None:
    ours, _ = ask(pair, functions=[TOOLS[0]["function"]], function_call=call, max_tokens=60)
    # Their old form never tells the template of the functions; as tools, they are the same.
    choice = {"type": "function", "function": call} if call != "none" else call
    _, theirs = ask(pair, tools=TOOLS, tool_choice=choice, max_tokens=60)
    assert settled(ours) == settled(theirs)


def test_logprobs(pair: Any) -> None:
    ours, theirs = ask(pair, logprobs=True, top_logprobs=3, max_tokens=8)
    assert rounded(settled(ours)) == rounded(settled(theirs))
    assert len(ours["choices"][0]["logprobs"]["content"]) == 8


@pytest.mark.parametrize("arguments", [{}, {"stop": ["e"]}, {"logprobs": True, "top_logprobs": 2}], ids=str)
def test_streams(pair: Any, arguments: dict[str, Any]) -> None:
    ours, theirs = ask(pair, stream=True, max_tokens=12, **arguments)
    ours, theirs = ([rounded(settled(chunk)) for chunk in chunks] for chunks in (ours, theirs))
    # Tokens without text give a chunk there and none here.
    theirs = [c for c in theirs if c["choices"][0]["delta"].get("content") != "" or "logprobs" in arguments]
    assert ours[0] == theirs[0]
    assert ours[-1] == theirs[-1]
    said = ["".join(c["choices"][0]["delta"].get("content", "") for c in chunks) for chunks in (ours, theirs)]
    assert said[0] == said[1] != ""
    assert ours == theirs


@pytest.mark.usefixtures("same_grammars")
def test_a_stream_of_a_tools_arguments(pair: Any) -> None:
    ours, theirs = ask(pair, tools=TOOLS, tool_choice=ONE, max_tokens=60, stream=True)
    deltas = [[chunk["choices"][0]["delta"] for chunk in chunks] for chunks in (ours, theirs)]

    def joined(all_deltas: list[Any], key: str) -> list[str]:
        calls = [delta["tool_calls"][0] for delta in all_deltas if delta.get("tool_calls")]
        return [call["function"][key] for call in calls if key in call["function"]]

    # Theirs repeats the name with every piece; OpenAI's form, and so ours, has it once.
    assert joined(deltas[0], "name") == ["find"] == sorted(set(joined(deltas[1], "name")))
    assert "".join(joined(deltas[0], "arguments")) == "".join(joined(deltas[1], "arguments"))
    assert deltas[0][0]["role"] == deltas[1][0]["role"] == "assistant"


def test_their_handlers_answer_with_our_llama(pair: Any) -> None:
    given: dict[str, Any] = {"template": TEMPLATE, "eos_token": "<|im_end|>", "bos_token": "<s>", "stop_token_ids": [9]}
    handlers = (
        llama_cpp.llama_chat_format.Jinja2ChatFormatter(**given).to_chat_handler(),
        Jinja2ChatFormatter(**given).to_chat_handler(),
    )
    # Called by itself, their handler has another repeat_penalty than create_chat_completion.
    given = {"messages": TURNS, "temperature": 0, "max_tokens": 9, "repeat_penalty": 1.0}
    expected = settled(handlers[0](llama=pair.theirs, **given))
    for handler in handlers:
        pair.ours.chat_handler = handler
        try:
            assert settled(ask(pair, max_tokens=9)[0]) == expected
            chunks = ask(pair, max_tokens=9, stream=True)[0]
            said = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
            assert said == expected["choices"][0]["message"]["content"]
        finally:
            pair.ours.chat_handler = None


@pytest.mark.usefixtures("same_grammars")
def test_function_calling_for_chatml(pair: Any) -> None:
    # Without the characters that theirs writes as HTML (& < > ' ").
    for arguments in ({}, {"tools": TOOLS}, {"tools": TOOLS, "tool_choice": ONE, "max_tokens": 60}):
        pair.ours.chat_format = pair.theirs.chat_format = FUNCTION_CALLING
        try:
            ours, theirs = ask(pair, **arguments)
        finally:
            pair.ours.chat_format, pair.theirs.chat_format = None, "chat_template.default"
        assert settled(ours) == settled(theirs)
