"""The table of named chat formats: small Jinja templates and what fills them in. pysa.llama.chat_format reads it.

The texts are those of llama-cpp-python's formats of these names, character for character; models were given prompts of
that form for years. Its formats that lose messages (saiga, open-orca, intel) are not here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pysa.llama.function_calling import FUNCTION_CALLING, FUNCTION_CALLING_TEMPLATE, HOW_TO_CALL

# `before` and `after` stand around the first system message, or around `default` where there is none; `opening` in
# place of the three. `roles` has what begins a turn; turns of other roles are left out. `sep`, after every second turn
# `sep2`, ends a turn, and `end` begins the answer.
_OPENING = (
    "{% set system = (messages | selectattr('role', 'equalto', 'system') | map(attribute='content') | first) or '' %}"
    "{% set opening = opening if opening is string else before ~ (system or default) ~ after %}"
)
_TURNS = "{% for turn in messages if turn.role in roles %}{% set role, said = roles[turn.role], turn.content or '' %}"
_PLAIN = f"{_OPENING}{{{{ opening }}}}{_TURNS}" + "{{ role ~ (said ~ sep if said else '') }}{% endfor %}{{ end }}"
_LINES = f"{_OPENING}{{{{ opening ~ sep ~ '\\n' if opening else '' }}}}{_TURNS}" + (
    "{{ role ~ '\\n' ~ (said ~ sep ~ '\\n' if said else '') }}{% endfor %}{{ end ~ '\\n' }}"
)
_COLON = f"{_OPENING}{{{{ opening ~ sep }}}}{_TURNS}" + (
    "{{ role ~ ':' ~ (' ' ~ said ~ (sep if loop.index is odd else sep2) if said else '') }}{% endfor %}{{ end }}"
)
_SPACED = f"{_OPENING}{{{{ opening }}}}{_TURNS}" + ("{{ role ~ ('\\n ' ~ said if said else '') }}{% endfor %}{{ end }}")
# The system message goes into the first turn.
_LLAMA_2 = f"{_OPENING}{{{{ (opening if system else '') ~ ' ' }}}}{_TURNS}" + (
    "{% set close = ' ' if loop.index is odd else '</s>' %}{% if system and loop.first %}{{ said ~ close }}"
    "{% else %}{{ role ~ (said ~ ' ' ~ close if said else ' ') }}{% endif %}{% endfor %}{{ end }}"
)
_MISTRAL = (
    "{% for turn in messages %}{% if turn.role == 'user' and turn.content is string %}{{ '[INST] ' ~ turn.content }}"
    "{% elif turn.role == 'assistant' and turn.content is string %}{{ ' [/INST]' ~ turn.content ~ '</s>' }}"
    "{% endif %}{% endfor %}{{ ' [/INST]' }}"
)
_VICUNA_OPENING = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_SNOOZY_SYSTEM = (
    "The prompt below is a question to answer, a task to complete, or a conversation to respond to; "
    "decide which and write an appropriate response."
)
_LLAMA_3_ROLES = {r: f"<|start_header_id|>{r}<|end_header_id|>\n\n" for r in ("system", "user", "assistant")}


@dataclass(frozen=True)
class NamedFormat:
    """A row.

    Attributes:
        template: the Jinja source.
        stop: what ends an answer; None: only the tokens that end any generation.
        variables: what the template is given besides the messages.
    """

    template: str
    stop: str | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)


def _row(template: str, user: str, assistant: str, stop: str | None = None, **variables: Any) -> NamedFormat:
    filled: dict[str, Any] = {"before": "", "after": "", "default": "", "opening": None, "sep": "", "end": assistant}
    filled |= {"roles": {"user": user, "assistant": assistant}, **variables}
    return NamedFormat(template, stop, {"sep2": filled["sep"], **filled})


_IM_USER, _IM_ASSISTANT, _IM_END = "<|im_start|>user", "<|im_start|>assistant", "<|im_end|>"
_IM_SYSTEM = "<|im_start|>system\n"

NAMED_FORMATS = {
    "alpaca": _row(_COLON, "### Instruction", "### Response", sep="\n\n", sep2="</s>", end=""),
    "baichuan": _row(_PLAIN, "<reserved_102>", "<reserved_103>"),
    "baichuan-2": _row(_PLAIN, "<reserved_106>", "<reserved_107>"),
    "chatglm3": _row(_SPACED, "<|user|>", "<|assistant|>", "</s>", before="<|system|>\n"),
    "chatml": _row(_LINES, _IM_USER, _IM_ASSISTANT, _IM_END, before=_IM_SYSTEM, sep=_IM_END),
    FUNCTION_CALLING: NamedFormat(FUNCTION_CALLING_TEMPLATE, _IM_END, {"how_to_call": HOW_TO_CALL}),
    "gemma": _row(
        _PLAIN,
        "<start_of_turn>user\n",
        "<start_of_turn>model\n",
        "<end_of_turn>\n",
        opening="",
        sep="<end_of_turn>\n",
    ),
    "llama-2": _row(_LLAMA_2, "<s>[INST]", "[/INST]", before="[INST] <<SYS>>\n", after="\n<</SYS>>"),
    "llama-3": _row(
        _PLAIN, "", _LLAMA_3_ROLES["assistant"], "<|eot_id|>", opening="", roles=_LLAMA_3_ROLES, sep="<|eot_id|>"
    ),
    "mistral-instruct": NamedFormat(_MISTRAL, "</s>"),
    "mistrallite": _row(_PLAIN, "<|prompter|>", "</s>\n<|assistant|>", before="<|system|>", after="</s>", sep=" "),
    "oasst_llama": _row(
        _PLAIN, "<|prompter|>", "<|assistant|>", before="[INST] <<SYS>>\n", after="\n<</SYS>>\n\n", sep="</s>"
    ),
    "openchat": _row(
        _LINES,
        "GPT4 Correct User: ",
        "<|end_of_turn|>GPT4 Correct Assistant: ",
        "<|end_of_turn|>",
        after="<|end_of_turn|>",
        sep="<|end_of_turn|>",
    ),
    "phind": _row(
        _COLON,
        "### User Message",
        "### Assistant",
        opening="### System Prompt\nYou are an intelligent programming assistant.",
        sep="\n\n",
        end="### Assistant:",
    ),
    "pygmalion": _row(_LINES, "<|user|>", "<|model|>", "\n", before="<|system|>", sep="\n"),
    "qwen": _row(
        _LINES,
        _IM_USER,
        _IM_ASSISTANT,
        "<|endoftext|>",
        before=_IM_SYSTEM,
        default="You are a helpful assistant.",
        sep=_IM_END,
    ),
    "redpajama-incite": _row(_COLON, "<human>", "<bot>", "<human>", sep="\n", end="<bot>:"),
    "snoozy": _row(_COLON, "### Prompt", "### Response", "###", default=_SNOOZY_SYSTEM, sep="\n", end="### Response:"),
    "vicuna": _row(_COLON, "USER", "ASSISTANT", opening=_VICUNA_OPENING, sep=" ", sep2="</s>", end="ASSISTANT:"),
    "zephyr": _row(_LINES, "<|user|>\n", "<|assistant|>\n", "</s>", before="<|system|>\n", sep="</s>"),
}
