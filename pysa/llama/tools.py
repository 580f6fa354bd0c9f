"""The arguments `tools` and `tool_choice`, and their older form `functions` and `function_call`, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pysa.errors import ArgumentError

_CHOICES = ("none", "auto", "required")


@dataclass(frozen=True)
class Tools:
    """The tools of a request.

    Attributes:
        definitions: the tools as OpenAI describes them; None: there are none.
        choice: `none`, `auto`, `required`, or `function`, where one is to be called.
        forced: the index of that one.
        choice_given: tool_choice as a template gets it.
        old_form: whether they were given as functions; the answer then has a function_call too.
    """

    definitions: list[dict[str, Any]] | None = None
    choice: str = "none"
    forced: int | None = None
    choice_given: Any = None
    old_form: bool = False

    @property
    def names(self) -> list[str]:
        """The names of all."""
        return [tool["function"]["name"] for tool in self.definitions or ()]


def check_tools(
    tools: object = None, tool_choice: object = None, functions: object = None, function_call: object = None
) -> Tools:
    """Both forms as one.

    Args:
        tools: `[{"type": "function", "function": {"name": ..., "parameters": schema}}]`.
        tool_choice: `none`, `auto`, `required`, `{"type": "function", "function": {"name": ...}}` or the name alone;
            None is `auto`.
        functions: what stands in `function` above; takes the place of tools.
        function_call: `none`, `auto` or `{"name": ...}`; takes the place of tool_choice.

    Raises:
        ArgumentError: malformed, or a choice of a tool that is not there.
    """
    old_form = functions is not None
    if functions is not None:
        if isinstance(functions, str) or not isinstance(functions, Sequence):
            raise ArgumentError(f"functions: wrong type: expected a list, got {type(functions).__name__}")
        tools = [{"type": "function", "function": function} for function in functions]
    definitions = None if tools is None else _check_definitions(tools, "functions" if old_form else "tools")
    where = "tool_choice"
    if function_call is not None:
        where = "function_call"
        named = isinstance(function_call, Mapping)
        tool_choice = {"type": "function", "function": function_call} if named else function_call
    names = [tool["function"]["name"] for tool in definitions or ()]
    if isinstance(tool_choice, str) and tool_choice not in _CHOICES and tool_choice in names:
        tool_choice = {"type": "function", "function": {"name": tool_choice}}  # as LangChain's adapter gives it
    if tool_choice is None or isinstance(tool_choice, str):
        choice = "auto" if tool_choice is None else tool_choice
        if choice not in _CHOICES:
            raise ArgumentError(
                f"{where}: unknown value: expected {', '.join(_CHOICES)} or the function to call, got {choice!r:.40}"
            )
        if not definitions:
            if choice == "required":
                raise ArgumentError(f"{where}: there is nothing to call: expected tools, got none")
            choice = "none"
        return Tools(definitions, choice, None, tool_choice, old_form)
    function = tool_choice.get("function") if isinstance(tool_choice, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str):
        raise ArgumentError(f"{where}: expected a string or the function to call, got {tool_choice!r:.60}")
    if name not in names:
        raise ArgumentError(
            f"{where}: unknown tool: expected one of {', '.join(names) or 'no tools'}, got {name!r:.60}"
        )
    return Tools(definitions, "function", names.index(name), tool_choice, old_form)


def _check_definitions(tools: object, where: str) -> list[dict[str, Any]]:
    if isinstance(tools, str | bytes | Mapping) or not isinstance(tools, Sequence):
        raise ArgumentError(f"{where}: wrong type: expected a list, got {type(tools).__name__}")
    definitions = []
    for i, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or tool.get("type", "function") != "function":
            raise ArgumentError(f"{where}[{i}]: expected a function's description, got {tool!r:.60}")
        name, parameters = function.get("name"), function.get("parameters")
        if not isinstance(name, str) or not name:
            raise ArgumentError(f"{where}[{i}]: name: expected a string, got {name!r:.40}")
        if parameters is not None and not isinstance(parameters, Mapping):
            raise ArgumentError(f"{where}[{i}]: parameters: expected a JSON schema, got {parameters!r:.40}")
        definitions.append(dict(tool))
    return definitions
