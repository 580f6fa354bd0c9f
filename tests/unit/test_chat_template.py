"""Chat templates: what they are given, in which form messages reach them, and how faults are reported."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pysa
from pysa.chat_template import chat_tokens, model_template, render_chat, template_sources
from pysa.errors import ArgumentError, ModelFileError

CHATML = """
{%- for m in messages %}
{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
{%- endif %}"""
USER = [{"role": "user", "content": "hi"}]
PARTS = [{"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]}]


def test_chatml() -> None:
    assert render_chat(CHATML, USER) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert render_chat(CHATML, USER, add_generation_prompt=False) == "<|im_start|>user\nhi<|im_end|>\n"


def test_a_template_sees_tokens_json_and_loop_controls() -> None:
    loop = "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m | tojson }}{% endfor %}"
    template = "{{ bos_token }}" + loop + "{{ eos_token }}"
    assert render_chat(template, [*USER, *USER], "<s>", "</s>") == '<s>{"role": "user", "content": "hi"}</s>'


def test_tojson_writes_no_html_and_takes_the_options_of_json_dumps() -> None:
    tools = [{"b": "<é>", "a": [1, 2]}]
    assert render_chat("{{ tools | tojson }}", USER, tools=tools) == json.dumps(tools, ensure_ascii=False)
    spaced = render_chat("{{ tools | tojson(indent=2, sort_keys=true, ensure_ascii=true) }}", USER, tools=tools)
    assert spaced == json.dumps(tools, indent=2, sort_keys=True)
    tight = render_chat("{{ tools | tojson(separators=(',', ':')) }}", USER, tools=tools)
    assert tight == json.dumps(tools, ensure_ascii=False, separators=(",", ":"))


def test_tools_documents_and_other_variables_reach_the_template() -> None:
    template = "{{ tools is none }} {{ documents is none }} {{ enable_thinking is defined }}"
    assert render_chat(template, USER) == "True True False"
    assert render_chat(template, USER, tools=[], documents=[], enable_thinking=False) == "False False True"


def test_what_marks_text_for_training_is_text() -> None:
    assert render_chat("a{% generation %}b{{ 1 }}{% endgeneration %}c", USER) == "ab1c"


def test_strftime_now_is_the_date_of_today() -> None:
    import datetime

    before = datetime.datetime.now().strftime("%d %b %Y")
    assert render_chat("{{ strftime_now('%d %b %Y') }}", USER) in (
        before,
        datetime.datetime.now().strftime("%d %b %Y"),
    )


def test_a_loop_knows_its_length_and_neighbours() -> None:
    loop = "{% for m in messages %}{{ loop.length }}{{ loop.last }}{{ loop.nextitem is defined }} {% endfor %}"
    assert render_chat(loop, [*USER, {"role": "assistant", "content": ""}]) == "2FalseTrue 2TrueFalse "
    picked = "{% for m in messages if m.role == 'user' %}{{ loop.index }}/{{ loop.length }} {% endfor %}"
    assert render_chat(picked, [*USER, {"role": "assistant", "content": ""}, *USER]) == "1/2 2/2 "


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ messages[0].content + '!' }}", "one\ntwo!"),  # takes text alone
        ("{% for p in messages[0].content %}{{ p.text }};{% endfor %}", "one;two;"),
        (
            "{% set c = messages[0].content %}{{ c if c is string else c[0].text ~ (c | length) }}",
            "one2",
        ),
        ("{{ messages[0].content }}", "one\ntwo"),  # would write a list out as Python
        ("{{ messages[0].content | tojson }}", '"one\\ntwo"'),
    ],
)
def test_a_content_in_parts_comes_as_the_template_takes_it(template: str, expected: str) -> None:
    assert render_chat(template, PARTS) == expected


def test_a_template_that_wants_parts_gets_text_as_a_part() -> None:
    template = "{% for p in messages[0].content if p.type == 'text' %}<{{ p.text }}>{% endfor %}"
    assert render_chat(template, USER) == "<hi>"


CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": "é", "n": [1]}'}}
CALLS = [*USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}]
ARGUMENTS = "{% for c in messages[-1].tool_calls %}{{ c.function.arguments EXPR }}{% endfor %}"


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("| tojson", '{"x": "é", "n": [1]}'),  # of text it would be JSON in JSON
        ("", '{"x": "é", "n": [1]}'),  # of an object it would be Python
        ("| items | map('join', ':') | join(' ')", "x:é n:[1]"),
    ],
)
def test_arguments_of_calls_come_as_the_template_takes_them(expression: str, expected: str) -> None:
    assert render_chat(ARGUMENTS.replace("EXPR", expression), CALLS) == expected


def test_a_template_that_takes_arguments_in_either_form_gets_them_as_they_were() -> None:
    tight = [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": '{"x":1}'}}]}]
    either = "if c.function.arguments is string else c.function.arguments | tojson"
    assert render_chat(ARGUMENTS.replace("EXPR", either), tight) == '{"x":1}'
    assert render_chat(ARGUMENTS.replace("EXPR", "| tojson"), tight) == '{"x": 1}'


def test_messages_are_left_as_they_were() -> None:
    before = json.dumps([*PARTS, *CALLS])
    messages = json.loads(before)
    render_chat("{{ messages[0].content + (messages[-1].tool_calls | tojson) }}", messages)
    assert json.dumps(messages) == before


@pytest.mark.parametrize(
    ("messages", "fault"),
    [
        ("hi", r"messages: wrong type: expected a list of messages, got str"),
        ({"role": "user"}, r"messages: wrong type: .* got dict"),
        (["hi"], r"messages\[0\]: wrong type: expected a mapping, got str"),
        ([*USER, {"content": "x"}], r"messages\[1\]: role: expected a string"),
        ([{"role": "user", "content": 3}], r"messages\[0\]\.content: wrong type: .* got int"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], r"content\[0\]: not supported: .* got 'image_url'"),
        ([{"role": "user", "content": [{"type": "text"}]}], r"content\[0\]\.text: expected a string, got None"),
    ],
)
def test_malformed_messages_are_named(messages: Any, fault: str) -> None:
    with pytest.raises(ArgumentError, match=fault):
        render_chat(CHATML, messages)


def test_arguments_that_are_no_json_are_named() -> None:
    broken = {"function": {"name": "f", "arguments": "{x}"}}
    with pytest.raises(ArgumentError, match=r"messages\[0\]\.tool_calls\[0\]\.function\.arguments: expected JSON"):
        render_chat(ARGUMENTS.replace("EXPR", "| tojson"), [{"role": "assistant", "tool_calls": [broken]}])


def test_a_refusal_is_the_callers_fault() -> None:
    with pytest.raises(ArgumentError, match="refuses them: only pairs"):
        render_chat("{{ raise_exception('only pairs') }}", USER)


@pytest.mark.parametrize(
    "template",
    [
        "{% for %}",
        "{{ messages[0].content + 1 }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ nothing.at.all }}",
        "{% include '/etc/hostname' %}",
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    ],
)
def test_a_faulty_or_hostile_template_is_the_files_fault(template: str) -> None:
    with pytest.raises(ModelFileError, match=r"tokenizer\.chat_template: cannot be rendered"):
        render_chat(template, USER)


def test_templates_of_a_model_by_name(tiny_gguf: Callable[..., Path]) -> None:
    keys = {"tokenizer.chat_template": "{{ 'plain' }}", "tokenizer.chat_template.tool_use": "{{ 'with tools' }}"}
    with pysa.Model(tiny_gguf("llama", vocab="llama", extra_kv=keys)) as model:
        assert template_sources(model.metadata) == {"default": "{{ 'plain' }}", "tool_use": "{{ 'with tools' }}"}
        assert model_template(model).source == "{{ 'plain' }}"
        assert model_template(model, with_tools=True).source == "{{ 'with tools' }}"
        plain, tools = model.tokenize("plain"), model.tokenize("with tools")
        assert chat_tokens(model, USER) == plain
        assert chat_tokens(model, USER, tools=[{}]) == chat_tokens(model, USER, template="tool_use") == tools
        with pytest.raises(ArgumentError, match="unknown chat template: expected one of default, tool_use, got 'rag'"):
            model_template(model, "rag")


def test_bos_comes_once(tiny_gguf: Callable[..., Path]) -> None:
    for template in ("{{ messages[0].content }}", "{{ bos_token + messages[0].content }}"):
        path = tiny_gguf("llama", vocab="llama", extra_kv={"tokenizer.chat_template": template})
        with pysa.Model(path) as model:
            assert chat_tokens(model, USER) == model.tokenize("hi")
            assert chat_tokens(model, USER).count(1) == 1
