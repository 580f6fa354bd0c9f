"""The Jinja environment that chat templates run in: sandboxed, and bounded in work, time, memory and output.

A template comes with a model file, so it is a stranger's program. Jinja's own sandbox keeps it away from Python and
from long ranges; what loops, recurses or grows is bounded here. Called by pysa.chat_template only.
"""

from __future__ import annotations

import datetime
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from pysa.template_limits import (
    REFUSED_FILTERS,
    REFUSED_METHODS,
    BoundedBuffer,
    Budget,
    check_growth,
    check_operator,
    check_size,
    to_json,
)


class TemplateRefusalError(Exception):
    """A template called raise_exception()."""


class _GenerationTag(Extension):
    """`{% generation %} ... {% endgeneration %}`, which marks text for training: what is inside counts."""

    tags = {"generation"}  # noqa: RUF012  as Extension declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _OpaqueNamespace(Namespace):
    """A namespace that is written out without what it holds, which may hold itself many times over."""

    def __repr__(self) -> str:
        return "<namespace>"


class _CountingCompiler(CodeGenerator):
    """Compiles loops, literals, `~` and buffers so that the environment sees what they come to."""

    def visit_For(self, node: nodes.For, frame: Frame) -> None:  # noqa: N802  named after the node
        node.iter = nodes.Call(nodes.EnvironmentAttribute("counted"), [node.iter], [], None, None, lineno=node.lineno)
        super().visit_For(node, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802
        self.write("environment.tied((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def visit_List(self, node: nodes.List, frame: Frame) -> None:  # noqa: N802
        self._weighed(super().visit_List, node, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:  # noqa: N802
        self._weighed(super().visit_Dict, node, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:  # noqa: N802
        if node.ctx == "load":
            self._weighed(super().visit_Tuple, node, frame)
        else:
            super().visit_Tuple(node, frame)

    def buffer(self, frame: Frame) -> None:
        super().buffer(frame)
        self.writeline(f"{frame.buffer} = environment.new_buffer()")

    def _weighed(self, visit: Callable[[Any, Frame], None], node: nodes.Node, frame: Frame) -> None:
        self.write("environment.weighed(")
        visit(node, frame)
        self.write(")")


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Compiles and renders templates that nobody here wrote. Threads may share it and its templates."""

    code_generator_class = _CountingCompiler
    intercepted_binops = frozenset(("+", "*", "**", "%"))
    new_buffer = BoundedBuffer

    def __init__(self) -> None:
        # Chat templates are written for these settings, filters and functions.
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols])
        self._budget = Budget()
        filters = {**self.filters, "tojson": to_json}
        self.filters = {name: self._guarded(name, f) for name, f in filters.items() if name not in REFUSED_FILTERS}
        del self.globals["lipsum"]
        self.globals |= {"raise_exception": _refuse, "strftime_now": _strftime_now, "namespace": _OpaqueNamespace}

    def compile_source(self, source: str) -> jinja2.Template:
        """A template; its constant expressions are computed here, within the same bounds."""
        self._budget.start()
        return self.from_string(source)

    def run(self, template: jinja2.Template, variables: Mapping[str, Any]) -> str:
        """A template's whole output.

        Raises:
            TemplateLimitError: it passed a bound.
            TemplateRefusalError: it called raise_exception().
            Exception: whatever else a faulty template may raise.
        """
        self._budget.start()
        text = BoundedBuffer()
        for piece in template.generate(variables):
            self._budget.step()
            text.append(piece)
        return "".join(text)

    def counted(self, values: Iterable[Any]) -> Iterable[Any]:
        """What a loop goes over, each item a step. What has a length keeps it, since loops ask for it."""
        return _CountedValues(values, self._budget)

    def weighed(self, value: Any) -> Any:
        """The value, if it is not too large; of an iterator, one that ends where it would be."""
        self._budget.step()
        if isinstance(value, Iterator):
            return self._weighed_items(value)
        self._budget.weigh(value)
        return value

    def tied(self, parts: tuple[Any, ...]) -> str:
        """`a ~ b`."""
        self._budget.step()
        texts = [str(part) for part in parts]
        check_size(sum(map(len, texts)))
        return "".join(texts)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """A call by the template. The names are mangled, as jinja2's are, so that keyword arguments stay free."""
        if __obj == __self.counted:
            return __self.counted(args[0])
        method = getattr(__obj, "__wrapped__", __obj)  # str.format comes wrapped
        name, value = getattr(method, "__name__", ""), getattr(method, "__self__", None)
        given = (*args, *(value for key, value in kwargs.items() if not key.startswith("_")))
        if name == "join":  # ", ".join(values) where the filter is values | join(", ")
            value, given = given, (value,)
        check_growth(name, value, given)
        return __self.weighed(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """An intercepted operator."""
        check_operator(self._budget, operator, left, right)
        return self.weighed(super().call_binop(context, operator, left, right))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Whether a template may have it."""
        return attr not in REFUSED_METHODS and super().is_safe_attribute(obj, attr, value)

    def _guarded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        # wraps() also keeps jinja2's mark of functions that take the context first.
        first = 1 if hasattr(function, "jinja_pass_arg") else 0

        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            check_growth(name, args[first] if len(args) > first else None, (*args[first + 1 :], *kwargs.values()))
            return self.weighed(function(*args, **kwargs))

        return guarded

    def _weighed_items(self, values: Iterator[Any]) -> Iterator[Any]:
        size = 0
        for value in values:
            self._budget.step()
            size += self._budget.weigh(value)
            check_size(size)
            yield value


class _CountedValues:
    def __init__(self, values: Iterable[Any], budget: Budget) -> None:
        self._values, self._budget = values, budget

    def __len__(self) -> int:
        return len(self._values)  # type: ignore[arg-type]  # the TypeError tells a loop to count them itself

    def __iter__(self) -> Iterator[Any]:
        for value in self._values:
            self._budget.step()
            yield value


def _strftime_now(pattern: str) -> str:
    return datetime.datetime.now().strftime(pattern)


def _refuse(message: str) -> NoReturn:
    raise TemplateRefusalError(message)
