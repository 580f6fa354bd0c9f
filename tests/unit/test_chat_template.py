"""Chat templates: what they are given, what the sandbox refuses, and how faults are reported."""

from __future__ import annotations

import pytest

from pysa.chat_template import render_chat
from pysa.errors import ArgumentError, ModelFileError

CHATML = """
{%- for m in messages %}
{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
{%- endif %}"""
USER = [{"role": "user", "content": "hi"}]


def test_chatml() -> None:
    assert render_chat(CHATML, USER) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_a_template_sees_tokens_json_and_loop_controls() -> None:
    loop = "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m | tojson }}{% endfor %}"
    template = "{{ bos_token }}" + loop + "{{ eos_token }}"
    assert render_chat(template, [*USER, *USER], "<s>", "</s>") == '<s>{"role": "user", "content": "hi"}</s>'


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
    ],
)
def test_a_faulty_or_hostile_template_is_the_files_fault(template: str) -> None:
    with pytest.raises(ModelFileError, match=r"tokenizer\.chat_template: cannot be rendered"):
        render_chat(template, USER)
