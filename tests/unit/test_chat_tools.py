"""Tools: their arguments, the calls that are found in an answer, and the grammars that force one."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from pysa.errors import ArgumentError
from pysa.llama.call_json import ToolCall
from pysa.llama.tool_calls import ToolCallParser
from pysa.llama.tool_forms import ToolForm, calls_grammar, tool_form
from pysa.llama.tools import check_tools

F, G = ToolCall("f", '{"x": 1}'), ToolCall("g", "{}")
F_CALL, G_CALL = '{"name": "f", "arguments": {"x": 1}}', '{"name": "g", "arguments": {}}'
LLAMA_CALL = '{"name": "f", "parameters": {"x": 1}}'

# (form, whether the prompt has begun a thought, the answer, what is found in it)
ANSWERS: dict[str, tuple[ToolForm, bool, str, list[Any]]] = {
    "text": (ToolForm.HERMES, False, " hi\n\nthere \n", [" hi\n\nthere \n"]),
    "nothing": (ToolForm.HERMES, False, "", []),
    "space": (ToolForm.HERMES, False, " \n ", [" \n "]),
    "a call": (ToolForm.HERMES, False, f"<tool_call>\n{F_CALL}\n</tool_call>", [F]),
    "two calls": (
        ToolForm.HERMES,
        False,
        f"<tool_call>\n{F_CALL}\n</tool_call>\n<tool_call>{G_CALL}</tool_call>\n",
        [F, G],
    ),
    "text, then a call": (
        ToolForm.HERMES,
        False,
        f"Let me see.\n\n<tool_call>{F_CALL}</tool_call>",
        ["Let me see.", F],
    ),
    "a call, then text": (ToolForm.HERMES, False, f"<tool_call>{F_CALL}</tool_call>\nDone.", [F, "Done."]),
    "a call without its end": (ToolForm.HERMES, False, f"<tool_call>\n{F_CALL}", [F]),
    "half a call": (ToolForm.HERMES, False, '<tool_call>\n{"name": "f", "arg', ['<tool_call>\n{"name": "f", "arg']),
    "no JSON": (ToolForm.HERMES, False, "<tool_call>f(1)</tool_call>", ["<tool_call>f(1)</tool_call>"]),
    "JSON that is no call": (
        ToolForm.HERMES,
        False,
        '<tool_call>{"a": 1}</tool_call>',
        ['<tool_call>{"a": 1}</tool_call>'],
    ),
    "half a mark": (ToolForm.HERMES, False, "a < b <tool_", ["a < b <tool_"]),
    "braces and quotes in strings": (
        ToolForm.HERMES,
        False,
        '<tool_call>{"name": "f", "arguments": {"s": "}\\"{]\\\\"}}</tool_call>',
        [ToolCall("f", '{"s": "}\\"{]\\\\"}')],
    ),
    "a line break in a string": (
        ToolForm.HERMES,
        False,
        '<tool_call>{"name": "f", "arguments": {"s": "a\nb"}}</tool_call>',
        [ToolCall("f", '{"s": "a\\nb"}')],
    ),
    "arguments as text": (ToolForm.HERMES, False, '<tool_call>{"name": "g", "arguments": "{}"}</tool_call>', [G]),
    "OpenAI's own form": (
        ToolForm.HERMES,
        False,
        f'<tool_call>{{"type": "function", "function": {F_CALL}}}</tool_call>',
        [F],
    ),
    "a thought that quotes a call": (
        ToolForm.HERMES,
        False,
        f"<think>\nwrite <tool_call>{F_CALL}</tool_call>?\n</think>\n\n<tool_call>{G_CALL}</tool_call>",
        [f"<think>\nwrite <tool_call>{F_CALL}</tool_call>?\n</think>", G],
    ),
    "a thought that the prompt began": (
        ToolForm.LLAMA,
        True,
        f"hm {F_CALL}\n</think>\n\n{LLAMA_CALL}",
        [f"hm {F_CALL}\n</think>", F],
    ),
    "Llama": (ToolForm.LLAMA, False, LLAMA_CALL, [F]),
    "Llama with its tag": (ToolForm.LLAMA, False, f"<|python_tag|>{LLAMA_CALL}", [F]),
    "Llama, two": (ToolForm.LLAMA, False, f"{LLAMA_CALL}; {LLAMA_CALL}", [F, F]),
    "Llama's code": (ToolForm.LLAMA, False, "<|python_tag|>f.call(1)", ["<|python_tag|>f.call(1)"]),
    "JSON of a tool that is not there": (
        ToolForm.LLAMA,
        False,
        '{"name": "h", "parameters": {}}',
        ['{"name": "h", "parameters": {}}'],
    ),
    "a JSON answer": (ToolForm.LLAMA, False, '{"answer": {"name": "f"}}', ['{"answer": {"name": "f"}}']),
    "a list as answer": (ToolForm.LLAMA, False, '[1, {"name": 2}]', ['[1, {"name": 2}]']),
    "JSON after text": (ToolForm.LLAMA, False, f"It is {LLAMA_CALL}", [f"It is {LLAMA_CALL}"]),
    "Mistral": (ToolForm.MISTRAL, False, f"[TOOL_CALLS][{F_CALL}, {G_CALL}]", [F, G]),
    "Mistral, its mark not written out": (ToolForm.MISTRAL, False, f" [{F_CALL}]", [F]),
    "newer Mistral": (
        ToolForm.MISTRAL_ARGS,
        False,
        '[TOOL_CALLS]f[ARGS]{"x": 1}[TOOL_CALLS]g[CALL_ID]ab1[ARGS]{}',
        [F, G],
    ),
    "newer Mistral, its marks not written out": (ToolForm.MISTRAL_ARGS, False, 'f{"x": 1}', [F]),
    "a word like a tool's name": (ToolForm.MISTRAL_ARGS, False, "f is a letter", ["f is a letter"]),
    "functions": (ToolForm.FUNCTIONS, False, 'functions.f:\n{"x": 1}\nfunctions.g:\n{}', [F, G]),
    "functions, a message": (ToolForm.FUNCTIONS, False, "message:\nsee functions.f:\n{}", ["see functions.f:\n{}"]),
    "functions, neither": (ToolForm.FUNCTIONS, False, "function f", ["function f"]),
}


def joined(events: list[Any]) -> list[Any]:
    """With neighbouring texts as one."""
    out: list[Any] = []
    for event in events:
        if out and isinstance(event, str) and isinstance(out[-1], str):
            out[-1] += event
        else:
            out.append(event)
    return out


@pytest.mark.parametrize("case", ANSWERS.values(), ids=ANSWERS)
def test_calls_are_told_from_text(case: tuple[ToolForm, bool, str, list[Any]]) -> None:
    form, thinking, answer, expected = case
    for seed in range(60):
        draw = random.Random(seed)
        parser, events, at = ToolCallParser(["f", "g"], form, thinking), [], 0
        while at < len(answer):
            n = draw.randint(1, 7) if seed else len(answer)  # once in one piece
            events += parser.feed(answer[at : at + n])
            at += n
        found = joined([*events, *parser.finish()])
        # What follows a call stands apart from it by white space that belongs to neither.
        stripped = [event.lstrip() if isinstance(event, str) and i else event for i, event in enumerate(found)]
        assert (found if len(expected) == 1 else stripped) == expected


def test_text_comes_at_once_where_nothing_can_become_a_call() -> None:
    parser = ToolCallParser(["f"], ToolForm.HERMES)
    assert parser.feed("It") == ["It"]
    assert parser.feed(" is <b") == [" is <b"]
    assert parser.feed(" <to") == []
    assert parser.feed("day") == [" <today"]


def test_long_arguments_are_read_once() -> None:
    # 20,000 pieces: reading from the beginning for each would take minutes.
    parser = ToolCallParser(["f"], ToolForm.LLAMA)
    begin, pieces = '{"name": "f", "parameters": {"s": "', ["ab"] * 20_000
    events = parser.feed(begin)
    for piece in pieces:
        events += parser.feed(piece)
    events += parser.feed('"}}')
    assert [json.loads(event.arguments) for event in events] == [{"s": "ab" * 20_000}]


@pytest.mark.parametrize(
    ("template", "form"),
    [
        ("write <tool_call>{...}</tool_call>", ToolForm.HERMES),
        ("[AVAILABLE_TOOLS] ... [TOOL_CALLS]", ToolForm.MISTRAL),
        ("[TOOL_CALLS]{{ name }}[ARGS]", ToolForm.MISTRAL_ARGS),
        ('<|eot_id|> {"name": function name, "parameters": dictionary}', ToolForm.LLAMA),
        ("<|im_start|>", ToolForm.PLAIN),
    ],
)
def test_the_form_is_the_templates(template: str, form: ToolForm) -> None:
    assert tool_form(template) is form


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def test_both_forms_come_to_the_same() -> None:
    tools = check_tools([TOOL])
    assert (tools.names, tools.choice, tools.forced, tools.old_form) == (["f"], "auto", None, False)
    old = check_tools(functions=[TOOL["function"]], function_call={"name": "f"})
    assert (old.definitions, old.choice, old.forced, old.old_form) == ([TOOL], "function", 0, True)
    assert old.choice_given == {"type": "function", "function": {"name": "f"}}
    named = check_tools([TOOL], "f")
    assert (named.forced, named.choice_given) == (0, old.choice_given)
    assert check_tools([TOOL], "required").choice == "required"
    assert check_tools([TOOL], "none").choice == "none"
    assert check_tools(functions=[TOOL["function"]], function_call="auto").choice == "auto"
    assert check_tools(None, "auto").choice == check_tools([], "auto").choice == check_tools().choice == "none"


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ({"tools": TOOL}, "tools: wrong type: expected a list, got dict"),
        ({"tools": [3]}, r"tools\[0\]: expected a function's description, got 3"),
        ({"tools": [{"type": "web"}]}, r"tools\[0\]: expected a function's description"),
        ({"tools": [{"function": {"name": ""}}]}, r"tools\[0\]: name: expected a string"),
        (
            {"tools": [{"function": {"name": "f", "parameters": "x"}}]},
            r"tools\[0\]: parameters: expected a JSON schema",
        ),
        ({"functions": [{}]}, r"functions\[0\]: name: expected a string"),
        ({"tools": [TOOL], "tool_choice": "any"}, "tool_choice: unknown value: expected none, auto, required or"),
        (
            {"tools": [TOOL], "tool_choice": {"function": {"name": "g"}}},
            "tool_choice: unknown tool: expected one of f, got 'g'",
        ),
        ({"tool_choice": {"function": {"name": "g"}}}, "tool_choice: unknown tool: expected one of no tools"),
        ({"tools": [TOOL], "tool_choice": {"name": "f"}}, "tool_choice: expected a string or the function to call"),
        ({"tool_choice": "required"}, "tool_choice: there is nothing to call"),
        ({"functions": [TOOL["function"]], "function_call": {"name": "g"}}, "function_call: unknown tool"),
    ],
)
def test_faults_are_named(arguments: dict[str, Any], fault: str) -> None:
    with pytest.raises(ArgumentError, match=fault):
        check_tools(**arguments)


def test_a_schema_that_cannot_be_a_grammar_is_the_callers_fault() -> None:
    broken = {"type": "function", "function": {"name": "f", "parameters": {"type": "nonsense"}}}
    with pytest.raises(ArgumentError, match=r"tools\[0\]\.function\.parameters: "):
        calls_grammar([broken], ToolForm.HERMES)
