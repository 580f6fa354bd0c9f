"""Hostile chat templates: work, time, memory and output are bounded, whichever way a template tries to spend them."""

from __future__ import annotations

import resource
import time

import pytest

from pysa import template_limits
from pysa.chat_template import render_chat
from pysa.errors import ModelFileError

USER = [{"role": "user", "content": "hi"}]
GROW = "{% set ns = namespace(v='xxxxxxxx') %}{% for i in range(60) %}{% set ns.v = EXPR %}{% endfor %}"
BIG = "{% set s = 'a' * 1000000 %}"

WORK = {
    "nested loops": "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
    "calls that double": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "a list in a list, many times": GROW.replace("EXPR", "[ns.v, ns.v]") + "{{ ns.v }}",
    "a dict in a dict, many times": GROW.replace("EXPR", "{'a': ns.v, 'b': ns.v}") + "{{ ns.v | tojson }}",
    "dict() in dict()": GROW.replace("EXPR", "dict(a=ns.v, b=ns.v)") + "{{ ns.v | string }}",
}
SIZE = {
    "a text times a number": "{{ 'a' * (10 ** 10) }}",
    "a number times a text": "{{ (10 ** 10) * 'a' }}",
    "a list times a number": "{{ [0] * (10 ** 10) }}",
    "a power": "{{ 2 ** (10 ** 10) }}",
    "~ of itself": GROW.replace("EXPR", "ns.v ~ ns.v"),
    "+ of itself": GROW.replace("EXPR", "ns.v + ns.v"),
    "output": "{% for a in range(100000) %}LONG{% endfor %}",
    "output of a macro": "{% macro f() %}{% for a in range(100000) %}LONG{% endfor %}{% endmacro %}{{ f() }}",
    "output of a block": "{% set x %}{% for a in range(100000) %}LONG{% endfor %}{% endset %}",
    "replace()": BIG + "{{ s.replace('a', s) }}",
    "| replace": BIG + "{{ s | replace('a', s) }}",
    "| map | join": BIG + "{{ range(100000) | map(attribute='q', default=s) | join }}",
    "| sum of lists": "{{ ([[1] * 100000] * 1000) | sum(start=[]) }}",
}
WIDE = {
    "join()": BIG + "{{ s.join(['', '']) }}",
    "| join": BIG + "{{ ['', ''] | join(s) }}",
    "a width of %": "{{ '%9999999999d' % 1 }}",
    "a width of % as an argument": "{{ '%*d' % (9999999999, 1) }}",
    "| format": "{{ '%9999999999d' | format(1) }}",
    "format()": "{{ '{:>9999999999}'.format(1) }}",
    "format() with a width as an argument": "{{ '{:>{}}'.format(1, 9999999999) }}",
    "| indent": "{{ 'a' | indent(1000000000) }}",
    "| tojson": "{{ [1] | tojson(indent=1000000000) }}",
    "| round": "{{ 1.5 | round(1000000000) }}",
}
OTHER = {
    "a long range": ("{% for a in range(10 ** 9) %}{% endfor %}", "Range too big"),
    "endless recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
    "ljust()": ("{{ 'a'.ljust(10 ** 10) }}", "'ljust' of 'str' object is unsafe"),
    "to_bytes()": ("{{ (1).to_bytes(10 ** 10, 'big') }}", "'to_bytes' of 'int' object is unsafe"),
    "| center": ("{{ 'a' | center(10 ** 10) }}", "No filter named 'center'"),
    "| batch": ("{{ [1] | batch(10 ** 9, 0) | list }}", "No filter named 'batch'"),
    "lipsum()": ("{{ lipsum(n=10 ** 9) }}", "'lipsum' is undefined"),
}
CASES = [
    *((template, "too much work", name) for name, template in WORK.items()),
    *((template.replace("LONG", "y" * 10_000), "too much text", name) for name, template in SIZE.items()),
    *((template, "too wide", name) for name, template in WIDE.items()),
    *((template, fault, name) for name, (template, fault) in OTHER.items()),
]


@pytest.mark.parametrize(("template", "fault"), [case[:2] for case in CASES], ids=[case[2] for case in CASES])
def test_a_template_cannot_spend_more_than_it_gets(template: str, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The bounds themselves make this slow, not less bounded; a tenth of the work does.
    monkeypatch.setattr(template_limits, "MAX_WORK", 400_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.monotonic()
    with pytest.raises(ModelFileError, match=fault):
        render_chat(template, USER)
    assert time.monotonic() - begin < template_limits.MAX_SECONDS
    # A value of MAX_SIZE characters, its copy, and the pieces it was made of; ru_maxrss is in KiB on Linux.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 6 * (template_limits.MAX_SIZE >> 10)


def test_time_is_bounded_where_work_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_limits, "MAX_SECONDS", 0.05)
    monkeypatch.setattr(template_limits, "MAX_WORK", 10**12)
    begin = time.monotonic()
    with pytest.raises(ModelFileError, match=r"too slow: expected at most 0\.05 s"):
        render_chat(WORK["nested loops"], USER)
    assert time.monotonic() - begin < 10  # a busy machine


def test_a_long_conversation_is_within_the_bounds() -> None:
    n = 20_000
    turns = [{"role": ("user", "assistant")[i % 2], "content": f"turn {i} " + "x" * 100} for i in range(n)]
    template = (
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.n = ns.n + 1 %}"
        "{% endif %}{{ '<' ~ m.role ~ '>' ~ m.content | trim ~ '\\n' }}{% endfor %}{{ ns.n }}"
    )
    text = render_chat(template, turns)
    assert text == "".join(f"<{t['role']}>{t['content']}\n" for t in turns) + str(n // 2)
