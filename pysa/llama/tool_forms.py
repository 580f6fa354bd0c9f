"""The forms in which models write tool calls, and grammars that make them write one."""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pysa.grammar import LlamaGrammar
from pysa.llama.function_calling import CALL_MARK, MESSAGE_MARK
from pysa.llama.response_format import schema_grammar

# Literals, character classes and repeat counts are passed over; what is left are names of rules.
_GBNF_WORD = re.compile(r'"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]|\{[0-9, ]*\}|([A-Za-z][A-Za-z0-9-]*)')


class ToolForm(enum.Enum):
    """How a tool call is written in an answer."""

    PLAIN = "arguments"  # {"name": ..., "arguments": {...}} and nothing else
    LLAMA = "parameters"  # {"name": ..., "parameters": {...}}, as Llama 3.1 does
    HERMES = "<tool_call>"  # <tool_call>{"name": ..., "arguments": {...}}</tool_call>, as Hermes and Qwen do
    MISTRAL = "[TOOL_CALLS]"  # [TOOL_CALLS][{"name": ..., "arguments": {...}}]
    MISTRAL_ARGS = "[ARGS]"  # [TOOL_CALLS]NAME[ARGS]{...}, as the newer ones do
    FUNCTIONS = CALL_MARK  # functions.NAME: and the arguments


def tool_form(template: str) -> ToolForm:
    """The form that a chat template tells its model to use."""
    if "<tool_call>" in template:
        return ToolForm.HERMES
    if "[TOOL_CALLS]" in template:
        return ToolForm.MISTRAL_ARGS if "[ARGS]" in template else ToolForm.MISTRAL
    if "<|python_tag|>" in template or ("<|eot_id|>" in template and '"parameters"' in template):
        return ToolForm.LLAMA
    return ToolForm.PLAIN


def arguments_grammar(tool: Mapping[str, Any], where: str) -> LlamaGrammar:
    """What the arguments of a call of this tool may be.

    Raises:
        ArgumentError: its schema cannot become a grammar.
    """
    parameters = tool["function"].get("parameters")
    # OpenAI: no parameters are none at all.
    return schema_grammar(
        {"type": "object", "properties": {}} if parameters is None else parameters, f"{where}.function.parameters"
    )


def calls_grammar(tools: Sequence[Mapping[str, Any]], form: ToolForm, *, or_message: bool = False) -> LlamaGrammar:
    """Calls of any of the tools, in this form.

    Args:
        tools: one at least.
        form: how calls are written.
        or_message: for ToolForm.FUNCTIONS, whether the answer may be a message too.

    Raises:
        ArgumentError: a tool's schema cannot become a grammar.
    """
    rules, calls = [], []
    for i, tool in enumerate(tools):
        rules.append(_renamed(arguments_grammar(tool, f"tools[{i}]").text, f"t{i}-"))
        name = str(tool["function"]["name"])
        if form is ToolForm.FUNCTIONS:
            calls.append(f"{gbnf_text(f'{CALL_MARK}{name}:' + chr(10))} t{i}-root")
        elif form is ToolForm.MISTRAL_ARGS:
            calls.append(f'"[TOOL_CALLS]" {gbnf_text(name)} "[ARGS]" t{i}-root')
        else:
            key = "parameters" if form is ToolForm.LLAMA else "arguments"
            begin = f'{{"name": {json.dumps(name, ensure_ascii=False)}, "{key}": '
            calls.append(f"{gbnf_text(begin)} t{i}-root {gbnf_text('}')}")
    roots = {
        ToolForm.HERMES: r'"<tool_call>\n" call "\n</tool_call>" ("\n<tool_call>\n" call "\n</tool_call>")*',
        ToolForm.MISTRAL: r'"[TOOL_CALLS]" "[" call (", " call)* "]"',
        ToolForm.MISTRAL_ARGS: "call+",
        ToolForm.FUNCTIONS: r'call ("\n" call)*' + (rf' | "{MESSAGE_MARK}\n" .*' if or_message else ""),
    }
    root = roots.get(form, "call")
    return LlamaGrammar.from_string("\n".join([f"root ::= {root}", f"call ::= {' | '.join(calls)}", *rules]))


def gbnf_text(text: str) -> str:
    """A text as a literal of GBNF."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    return f'"{escaped}"'


def _renamed(rules: str, prefix: str) -> str:
    """A grammar's rules under other names, so that several can be put together."""
    return _GBNF_WORD.sub(lambda word: prefix + word[1] if word[1] else word[0], rules)
