"""Chat formats: which one a name stands for, the text it gives, and the tokens and stop strings that come of it.

tests/parity/test_llama_cpp_python_chat.py holds the texts against llama-cpp-python's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import pysa
from pysa.errors import ArgumentError
from pysa.llama.chat import chat_arguments, chat_request
from pysa.llama.chat_format import REGISTERED, ChatFormatterResponse, default_format, find_format
from pysa.llama.chat_handler import Jinja2ChatFormatter, register_chat_format
from pysa.llama.named_formats import NAMED_FORMATS

TURNS = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "ho"},
    {"role": "user", "content": "why"},
]
# Written by hand from what the models' makers say of their formats.
EXPECTED = {
    "chatml": (
        "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
        "<|im_start|>assistant\nho<|im_end|>\n<|im_start|>user\nwhy<|im_end|>\n<|im_start|>assistant\n",
        "<|im_end|>",
    ),
    "llama-2": (
        "[INST] <<SYS>>\nbe brief\n<</SYS>> hi [/INST]ho </s><s>[INST]why  [/INST]",
        None,
    ),
    "llama-3": (
        "<|start_header_id|>system<|end_header_id|>\n\nbe brief<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nho<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nwhy<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|eot_id|>",
    ),
    "mistral-instruct": ("[INST] hi [/INST]ho</s>[INST] why [/INST]", "</s>"),
    "gemma": (
        "<start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\nho<end_of_turn>\n"
        "<start_of_turn>user\nwhy<end_of_turn>\n<start_of_turn>model\n",
        "<end_of_turn>\n",
    ),
    "zephyr": (
        "<|system|>\nbe brief</s>\n<|user|>\n\nhi</s>\n<|assistant|>\n\nho</s>\n<|user|>\n\nwhy</s>\n<|assistant|>\n\n",
        "</s>",
    ),
    "vicuna": (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. USER: hi ASSISTANT: ho</s>USER: why ASSISTANT:",
        None,
    ),
}


@pytest.fixture
def model(tiny_gguf: Callable[..., Path]) -> Iterator[pysa.Model]:
    keys = {"tokenizer.chat_template": "{{ bos_token }}{{ messages[-1].content }}", "tokenizer.chat_template.rag": "R"}
    with pysa.Model(tiny_gguf("llama", vocab="llama", extra_kv=keys)) as model:
        yield model


@pytest.mark.parametrize("name", EXPECTED)
def test_the_text_of_a_named_format(name: str, model: pysa.Model) -> None:
    found = find_format(model, name)(messages=TURNS, tools=None)
    assert (found.prompt, found.stop) == EXPECTED[name]
    assert not found.added_special


def test_texts_in_parts_are_a_text_to_named_formats(model: pysa.Model) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    for name in NAMED_FORMATS:
        as_parts = find_format(model, name)(messages=[{"role": "user", "content": parts}], tools=None)
        as_text = find_format(model, name)(messages=[{"role": "user", "content": "a\nb"}], tools=None)
        assert as_parts.prompt == as_text.prompt
        assert "a\nb" in as_text.prompt


def test_the_models_own_templates_are_formats_too(model: pysa.Model) -> None:
    assert default_format(model.metadata) == "chat_template.default"
    for name in (None, "chat_template.default"):
        found = find_format(model, name)(messages=TURNS)
        assert (found.prompt, found.stop, found.added_special) == ("<s>why", "</s>", True)
    assert find_format(model, "chat_template.rag")(messages=TURNS).prompt == "R"


def test_a_model_without_a_template_gets_llama_2(dense_gguf: Path) -> None:
    with pysa.Model(dense_gguf) as model:
        assert default_format(model.metadata) == "llama-2"
        assert find_format(model, None)(messages=TURNS).prompt == EXPECTED["llama-2"][0]


@pytest.mark.parametrize("name", ["chatlm", "chat_template.tools", "", 3])
def test_an_unknown_name_raises_with_all_there_are(name: Any, model: pysa.Model) -> None:
    with pytest.raises(
        ArgumentError, match=r"chat_format: unknown name: expected one of chat_template\.default"
    ) as caught:
        find_format(model, name)
    assert all(known in str(caught.value) for known in (*NAMED_FORMATS, "chat_template.rag"))


def test_bos_and_stop_strings(model: pysa.Model) -> None:
    # A model's own template writes BOS itself; a named format leaves it to the tokenizer.
    own = chat_request(model, TURNS, stop="END").completion
    assert own.prompt_tokens == [1, *model.tokenize("why", add_special=False)]
    assert own.stop == ("END", "</s>")
    named = chat_request(model, TURNS, chat_format="chatml", stop=["A", "B"]).completion
    assert named.prompt_tokens == model.tokenize(EXPECTED["chatml"][0], add_special=True)
    assert named.prompt_tokens[0] == 1
    assert named.stop == ("A", "B", "<|im_end|>")
    assert chat_request(model, TURNS, chat_format="llama-2").completion.stop == ()


def test_the_defaults_are_those_of_a_chat(model: pysa.Model) -> None:
    request = chat_request(model, TURNS).completion
    assert (request.sampling.temperature, request.max_tokens) == (0.2, None)
    request = chat_request(model, TURNS, temperature=0.5, max_tokens=7, top_k=3, model="name").completion
    assert (request.sampling.temperature, request.max_tokens, request.sampling.top_k) == (0.5, 7, 3)
    assert request.model == "name"
    with pytest.raises(TypeError, match="top_kk"):
        chat_request(model, TURNS, top_kk=3)


def test_variables_for_the_template(tiny_gguf: Callable[..., Path]) -> None:
    keys = {"tokenizer.chat_template": "{{ 'on' if enable_thinking else 'off' }}"}
    with pysa.Model(tiny_gguf("llama", vocab="llama", extra_kv=keys)) as model:
        on = chat_request(model, TURNS, template_variables={"enable_thinking": True}).completion
        off = chat_request(model, TURNS).completion
        for wrong in ("enable_thinking", {"messages": []}, {"bos": "x"}, {3: 4}, {"a b": 1}):
            with pytest.raises(ArgumentError, match="template_variables: "):
                chat_request(model, TURNS, template_variables=wrong)
        assert on.prompt_tokens == model.tokenize("on", add_special=False)
        assert off.prompt_tokens == model.tokenize("off", add_special=False)


def test_a_format_may_be_a_function(model: pysa.Model) -> None:
    def shout(*, messages: Any, **_: Any) -> ChatFormatterResponse:
        return ChatFormatterResponse(messages[-1]["content"].upper(), stop=["!", ""])

    given, _ = chat_arguments(model, TURNS, chat_format=shout)
    assert given["prompt"] == model.tokenize("WHY", add_special=True)
    assert given["stop"] == ["!"]


def test_a_registered_format_has_a_name(model: pysa.Model) -> None:
    @register_chat_format("echo-test")
    def echo(*, messages: Any, **_: Any) -> ChatFormatterResponse:
        return ChatFormatterResponse(messages[0]["content"], added_special=True)

    try:
        given, _ = chat_arguments(model, TURNS, chat_format="echo-test")
        assert given["prompt"] == model.tokenize("be brief", add_special=False)
        with pytest.raises(ArgumentError, match="'echo-test' is taken"):
            register_chat_format("echo-test")(echo)
        with pytest.raises(ArgumentError, match="'chatml' is taken"):
            register_chat_format("chatml")(echo)
    finally:
        del REGISTERED["echo-test"]


def test_a_template_of_the_callers_own() -> None:
    formatter = Jinja2ChatFormatter(
        "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}", "</e>", "<b>", stop_token_ids=[7]
    )
    found = formatter(messages=TURNS, tools=None)
    assert (found.prompt, found.stop, found.added_special) == ("<b>be brief</e>", ["</e>"], True)
    assert [found.stopping_criteria([3, token], None) for token in (7, 3)] == [True, False]
