"""Chats: from messages to a completion's request, and from its logits to OpenAI's chat completions.

request = chat_request(model, messages, tools=tools)
completion = ChatCompletion(model, request, n_ctx=4096, model_name="m")     # driven as a Completion is
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pysa.errors import ArgumentError
from pysa.grammar import LlamaGrammar
from pysa.llama.chat_format import ChatFormatter, TemplateFormatter, find_format
from pysa.llama.chat_shape import AnswerForm, ChunkShaper, chat_result
from pysa.llama.completion import Completion
from pysa.llama.request import CompletionRequest, StoppingCriteria, StoppingCriteriaList, check_stop
from pysa.llama.response_format import response_grammar
from pysa.llama.tool_calls import ToolCallParser
from pysa.llama.tool_forms import ToolForm, arguments_grammar, calls_grammar
from pysa.llama.tools import Tools, check_tools

if TYPE_CHECKING:
    from pysa.model import Model
    from pysa.prefix import Reuse

# What the template is given anyway.
_TAKEN = ("messages", "tools", "tool_choice", "functions", "function_call", "bos", "eos")
# What create_chat_completion takes where create_completion takes something else.
_DEFAULTS: dict[str, Any] = {"temperature": 0.2, "max_tokens": None}


@dataclass(frozen=True)
class ChatRequest:
    """One answer's settings: what the text completion is asked for, and what its text is made into."""

    completion: CompletionRequest
    form: AnswerForm


def chat_request(model: Model, /, messages: Sequence[Mapping[str, Any]], **arguments: Any) -> ChatRequest:
    """A request from the arguments of Llama.create_chat_completion; see chat_arguments() for them and for errors."""
    given, form = chat_arguments(model, messages, **arguments)
    return ChatRequest(CompletionRequest.from_arguments(model, **given), form)


def chat_arguments(
    model: Model,
    /,
    messages: Sequence[Mapping[str, Any]],
    *,
    chat_format: str | ChatFormatter | None = None,
    functions: Sequence[Mapping[str, Any]] | None = None,
    function_call: str | Mapping[str, Any] | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    tool_choice: str | Mapping[str, Any] | None = None,
    response_format: Mapping[str, Any] | None = None,
    stop: str | Sequence[str] | None = None,
    logprobs: bool | None = None,
    top_logprobs: int | None = None,
    grammar: LlamaGrammar | None = None,
    stopping_criteria: StoppingCriteria | None = None,
    template_variables: Mapping[str, Any] | None = None,
    **arguments: Any,
) -> tuple[dict[str, Any], AnswerForm]:
    """What create_completion is to be asked for, and what its text is to be made into.

    Args:
        model: the model that answers.
        messages: turns, oldest first, each with `role` and `content`.
        chat_format: a name as find_format() takes it, None for the model's default, or a function of messages.
        functions: the older form of tools.
        function_call: the older form of tool_choice.
        tools: functions that the model may call, as OpenAI describes them.
        tool_choice: `none`, `auto`, `required` or the one to be called; None is `auto`.
        response_format: see response_grammar(); it takes the place of `grammar`.
        stop: strings that end the answer, besides the format's own.
        logprobs: whether log-probabilities are wanted.
        top_logprobs: likeliest tokens to list for each.
        grammar: what the answer must follow.
        stopping_criteria: is asked after each token.
        template_variables: what the template is given besides, e.g. `enable_thinking`.
        **arguments: the others of create_completion; the temperature is 0.2 and there is no limit of tokens by default.

    Raises:
        ArgumentError: an argument is wrong, or the template refuses the messages.
        ModelFileError: the model's template is faulty.
    """
    variables = _check_variables(template_variables)
    chosen = check_tools(tools, tool_choice, functions, function_call)
    formatter = chat_format if callable(chat_format) else find_format(model, chat_format)
    form = formatter.form if isinstance(formatter, TemplateFormatter) else ToolForm.PLAIN
    if form is ToolForm.FUNCTIONS and chosen.choice_given is None:
        chosen = Tools()  # that format calls only when asked to
    formatted = formatter(
        messages=messages,
        functions=functions,
        function_call=function_call,
        tools=chosen.definitions,
        tool_choice=chosen.choice_given,
        **variables,
    )
    tokens = model.tokenize(formatted.prompt, add_special=not formatted.added_special)
    criteria = [asked for asked in (stopping_criteria, formatted.stopping_criteria) if asked is not None]
    eos = model.native.vocab.eos
    if formatted.added_special and tokens and tokens[-1] == eos:
        criteria.append(lambda ids, _logits: bool(ids[-1] == eos))  # the template has ended the conversation
    ends = [formatted.stop] if isinstance(formatted.stop, str) else formatted.stop or []
    given = {
        "prompt": tokens,
        "stop": [*check_stop(stop), *(end for end in ends if end)],
        "logprobs": (top_logprobs or 0) if logprobs else None,
        "grammar": _grammar(chosen, form, response_format, grammar),
        "stopping_criteria": StoppingCriteriaList(criteria) if criteria else None,
    }
    return {**_DEFAULTS, **arguments, **given}, _answer_form(chosen, form, formatted.prompt)


class ChatCompletion:
    """A chat's answer under way: a Completion that gives chat.completion dicts, and is driven in the same way.

    Args:
        model: whose logits come.
        request: what is asked for.
        n_ctx: tokens the session has room for.
        model_name: name in the results, where the request has none.

    Raises:
        PromptTooLongError: the conversation leaves no room for an answer.
        ArgumentError: the grammar cannot be read.
    """

    def __init__(self, model: Model, request: ChatRequest, *, n_ctx: int, model_name: str) -> None:
        self._inner = Completion(model, request.completion, n_ctx=n_ctx, model_name=model_name)
        self._form = request.form
        self._chunks = ChunkShaper(request.form)
        self.request = request.completion

    @property
    def prompt_tokens(self) -> list[int]:
        """What is to be evaluated first."""
        return self._inner.prompt_tokens

    @property
    def tokens(self) -> list[int]:
        """The answer's tokens so far."""
        return self._inner.tokens

    @property
    def text(self) -> str:
        """The answer's text so far, calls of tools written out."""
        return self._inner.text

    @property
    def finish_reason(self) -> str | None:
        """None while it goes on; then `stop`, `length` or what finish() was given."""
        return self._inner.finish_reason

    @property
    def wants_prompt_logits(self) -> bool:
        """Whether add_prompt_logits() is needed before the first pick()."""
        return self._inner.wants_prompt_logits

    def add_prompt_logits(self, rows: npt.NDArray[np.float32]) -> None:
        """As Completion.add_prompt_logits()."""
        self._inner.add_prompt_logits(rows)

    def set_reuse(self, reuse: Reuse) -> None:
        """What the session held of the prompt already, for `usage`."""
        self._inner.set_reuse(reuse)

    def pick(self, logits: npt.NDArray[np.float32]) -> int | None:
        """Takes the next token, as Completion.pick()."""
        return self._inner.pick(logits)

    def take_chunks(self) -> list[dict[str, Any]]:
        """The chat chunks that are ready; each is given once. What may still become a call or a stop string waits."""
        return [shaped for chunk in self._inner.take_chunks() for shaped in self._chunks.feed(chunk)]

    def finish(self, reason: str) -> None:
        """Ends the answer, if it has not ended."""
        self._inner.finish(reason)

    def usage(self) -> Any:
        """Tokens of the prompt and the answer."""
        return self._inner.usage()

    def result(self) -> dict[str, Any]:
        """The whole chat completion."""
        return chat_result(self._inner.result(), self._form)


def _check_variables(variables: object) -> dict[str, Any]:
    if variables is None:
        return {}
    if not isinstance(variables, Mapping):
        raise ArgumentError(f"template_variables: wrong type: expected a mapping, got {type(variables).__name__}")
    for name in variables:
        if not isinstance(name, str) or not name.isidentifier() or name in _TAKEN:
            raise ArgumentError(f"template_variables: expected names of the template's own variables, got {name!r:.40}")
    return dict(variables)


def _grammar(
    tools: Tools, form: ToolForm, response_format: object, grammar: LlamaGrammar | None
) -> LlamaGrammar | None:
    definitions = tools.definitions or []
    wanted = response_grammar(response_format)
    if tools.forced is not None:
        return arguments_grammar(definitions[tools.forced], f"tools[{tools.forced}]")
    if tools.choice == "required":
        return calls_grammar(definitions, form)
    if tools.choice == "auto" and form is ToolForm.FUNCTIONS:
        if wanted is not None:
            raise ArgumentError(
                "response_format: cannot be had with tools in this chat_format: expected one of the two"
            )
        return calls_grammar(definitions, form, or_message=True)
    return grammar if wanted is None else wanted


def _answer_form(tools: Tools, form: ToolForm, prompt: str) -> AnswerForm:
    if tools.forced is not None:
        return AnswerForm(forced=tools.names[tools.forced], old_form=tools.old_form)
    if tools.choice == "none":
        return AnswerForm(old_form=tools.old_form)
    names, thinking = tools.names, prompt.rstrip().endswith("<think>")
    return AnswerForm(parser=lambda: ToolCallParser(names, form, thinking), old_form=tools.old_form)
