"""Chat completions: what a model says, token by token, as OpenAI's dicts; whole and streamed.

Here the model is told what to say: its logits are made up. Random models that grammars guide come after.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pysa
from pysa.errors import ArgumentError, ContextFullError
from pysa.grammar import LlamaGrammar
from pysa.llama import Llama
from pysa.llama.chat import ChatCompletion, chat_request
from pysa.llama.response_format import response_grammar

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if tools %}{{ tools | tojson }}FORM{% endif %}<|im_start|>assistant\n"
)
HERMES, LLAMA, MISTRAL = "<tool_call>", '<|eot_id|>"parameters"', "[TOOL_CALLS]"
ASK = [{"role": "user", "content": "hi"}]
PARAMETERS = {
    "type": "object",
    "properties": {"n": {"type": "integer"}, "kind": {"enum": ["x", "yy"]}},
    "required": ["n", "kind"],
}
TOOLS = [
    {"type": "function", "function": {"name": "find", "parameters": PARAMETERS}},
    {"type": "function", "function": {"name": "stop"}},
]
CALL = '<tool_call>\n{"name": "find", "arguments": {"n": 5, "kind": "é"}}\n</tool_call>'
ARGUMENTS = '{"n": 5, "kind": "é"}'


@pytest.fixture(scope="module")
def path(tiny_gguf: Callable[..., Path]) -> Callable[[str], Path]:
    def make(form: str = HERMES) -> Path:
        keys = {"tokenizer.chat_template": TEMPLATE.replace("FORM", form)}
        return tiny_gguf("llama", n_layer=2, vocab="gpt2", extra_kv=keys)

    return make


@pytest.fixture(scope="module")
def model(path: Callable[[], Path]) -> Iterator[pysa.Model]:
    with pysa.Model(path(), n_threads=1) as model:
        yield model


def say(model: pysa.Model, text: str, *, end: bool = True, **arguments: Any) -> tuple[Any, list[Any]]:
    """A chat in which the model says this: the result, and the chunks of a stream."""
    completion = ChatCompletion(
        model, chat_request(model, ASK, **{"temperature": 0, **arguments}), n_ctx=2048, model_name="tiny"
    )
    chunks = []
    for token in [*model.tokenize(text, add_special=False), *([model.native.vocab.eos] if end else [])]:
        logits = np.zeros(model.n_vocab, dtype=np.float32)
        logits[token] = 20
        picked = completion.pick(logits)
        chunks += completion.take_chunks()
        if picked is None:
            break
        assert picked == token
    if completion.finish_reason is None:
        completion.finish("length")
        chunks += completion.take_chunks()
    assert completion.take_chunks() == []
    return completion.result(), chunks


def deltas(chunks: list[Any]) -> list[Any]:
    return [chunk["choices"][0]["delta"] for chunk in chunks]


def test_a_text(model: pysa.Model) -> None:
    result, chunks = say(model, "Hé, you")
    assert list(result) == ["id", "object", "created", "model", "choices", "usage"]
    assert result["id"].startswith("chatcmpl-")
    assert (result["object"], result["model"]) == ("chat.completion", "tiny")
    assert result["choices"] == [
        {"index": 0, "message": {"role": "assistant", "content": "Hé, you"}, "logprobs": None, "finish_reason": "stop"}
    ]
    assert {(chunk["id"], chunk["object"], chunk["created"]) for chunk in chunks} == {
        (result["id"], "chat.completion.chunk", result["created"])
    }
    assert deltas(chunks)[0] == {"role": "assistant"}
    assert "".join(delta["content"] for delta in deltas(chunks)[1:-1]) == "Hé, you"
    assert (deltas(chunks)[-1], chunks[-1]["choices"][0]["finish_reason"]) == ({}, "stop")
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in chunks[:-1])


def test_thoughts_stay_in_the_content(model: pysa.Model) -> None:
    text = "<think>\nhm\n</think>\n\nho"
    for tools in (None, TOOLS):
        result, chunks = say(model, text, tools=tools)
        assert result["choices"][0]["message"] == {"role": "assistant", "content": text}
        assert "".join(delta.get("content", "") for delta in deltas(chunks)) == text


def test_calls_in_the_text_become_tool_calls(model: pysa.Model) -> None:
    result, chunks = say(model, f"Well.\n\n{CALL}\n{CALL}", tools=TOOLS)
    n = result["id"].removeprefix("chat")
    calls = [
        {"id": f"call__{i}_find_{n}", "type": "function", "function": {"name": "find", "arguments": ARGUMENTS}}
        for i in range(2)
    ]
    choice = result["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": "Well.", "tool_calls": calls}
    assert choice["finish_reason"] == "tool_calls"
    found = deltas(chunks)
    assert found[0] == {"role": "assistant"}
    assert "".join(delta.get("content", "") for delta in found) == "Well."
    assert [call for delta in found for call in delta.get("tool_calls", [])] == [
        {"index": i, **call} for i, call in enumerate(calls)
    ]
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_an_answer_of_calls_alone_has_no_content(model: pysa.Model) -> None:
    result, chunks = say(model, CALL, tools=TOOLS, tool_choice="auto")
    assert result["choices"][0]["message"]["content"] is None
    assert not any("content" in delta for delta in deltas(chunks))


def test_calls_are_text_where_there_are_no_tools_or_none_are_wanted(model: pysa.Model) -> None:
    for arguments in ({}, {"tools": TOOLS, "tool_choice": "none"}, {"tools": []}):
        choice = say(model, CALL, **arguments)[0]["choices"][0]
        assert choice == {
            "index": 0,
            "message": {"role": "assistant", "content": CALL},
            "logprobs": None,
            "finish_reason": "stop",
        }


def test_a_call_that_is_cut_off_is_text(model: pysa.Model) -> None:
    result, chunks = say(model, CALL[:40], end=False, tools=TOOLS)
    assert result["choices"][0]["message"] == {"role": "assistant", "content": CALL[:40]}
    assert result["choices"][0]["finish_reason"] == "length"
    assert "".join(delta.get("content", "") for delta in deltas(chunks)) == CALL[:40]


def test_the_older_form_gives_a_function_call_too(model: pysa.Model) -> None:
    functions = [tool["function"] for tool in TOOLS]
    result, chunks = say(model, CALL, functions=functions)
    message = result["choices"][0]["message"]
    assert message["function_call"] == {"name": "find", "arguments": ARGUMENTS}
    assert message["tool_calls"][0]["function"] == message["function_call"]
    assert deltas(chunks)[1]["function_call"] == message["function_call"]


def test_functions_reach_the_template_as_tools(model: pysa.Model) -> None:
    functions = [tool["function"] for tool in TOOLS]
    as_tools = chat_request(model, ASK, tools=[{"type": "function", "function": f} for f in functions])
    assert chat_request(model, ASK, functions=functions).completion.prompt_tokens == as_tools.completion.prompt_tokens


def test_a_forced_tools_arguments_are_the_text(model: pysa.Model) -> None:
    text = '{"n": 5, "kind": "yy"}'
    choice = {"type": "function", "function": {"name": "find"}}
    result, chunks = say(model, text, tools=TOOLS, tool_choice=choice)
    message = result["choices"][0]["message"]
    (call,) = message["tool_calls"]
    assert call["function"] == message["function_call"] == {"name": "find", "arguments": text}
    assert (message["content"], result["choices"][0]["finish_reason"]) == (None, "tool_calls")
    found = deltas(chunks)
    assert found[0] == {"role": "assistant", "content": None}
    pieces = [delta["tool_calls"][0] for delta in found[1:-1]]
    # OpenAI's form: what kind of call it is comes once, then arguments alone.
    assert {key: pieces[0][key] for key in ("id", "type")} == {"id": call["id"], "type": "function"}
    assert pieces[0]["function"]["name"] == "find"
    assert all(
        list(piece) == ["index", "function"] and list(piece["function"]) == ["arguments"] for piece in pieces[1:]
    )
    assert "".join(piece["function"]["arguments"] for piece in pieces) == text
    assert len(pieces) > 5


def test_logprobs_cover_what_waited(model: pysa.Model) -> None:
    result, chunks = say(model, f"a <b>{CALL}", tools=TOOLS, logprobs=True, top_logprobs=1)
    whole = result["choices"][0]["logprobs"]["content"]
    streamed = [entry for chunk in chunks for entry in (chunk["choices"][0]["logprobs"] or {"content": []})["content"]]
    assert streamed == whole
    assert whole[0]["token"] == "a"
    assert whole[0]["top_logprobs"] == [{"token": "a", "logprob": whole[0]["logprob"], "bytes": None}]
    # One logit of 20 among zeros: log(e^20 / (e^20 + n - 1)).
    expected = 20 - np.log(np.exp(20) + model.n_vocab - 1)
    assert whole[0]["logprob"] == pytest.approx(expected, abs=1e-5)  # float32


def test_logprobs_without_a_number_are_the_tokens_own(model: pysa.Model) -> None:
    content = say(model, "ab", logprobs=True)[0]["choices"][0]["logprobs"]["content"]
    assert [entry["token"] for entry in content] == ["a", "b"]
    assert say(model, "ab", logprobs=False, top_logprobs=3)[0]["choices"][0]["logprobs"] is None


def test_a_chat_that_does_not_fit(model: pysa.Model) -> None:
    request = chat_request(model, [{"role": "user", "content": "long " * 100}])
    with pytest.raises(ContextFullError, match=r"prompt: .* do not fit"):
        ChatCompletion(model, request, n_ctx=64, model_name="tiny")


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ("json", "response_format: wrong type: expected a mapping with a type, got str"),
        (
            {"type": "xml"},
            r"response_format\.type: unknown value: expected one of text, json_object, json_schema, got 'xml'",
        ),
        ({"type": "json_schema"}, r"response_format\.schema: missing"),
        ({"type": "json_schema", "json_schema": {"name": "n"}}, r"response_format\.json_schema\.schema: missing"),
        (
            {"type": "json_object", "schema": [1]},
            r"response_format\.schema: wrong type: expected a JSON schema, got list",
        ),
        ({"type": "json_object", "schema": {"type": "no"}}, r"response_format\.schema: "),
    ],
)
def test_a_wrong_response_format_is_named(given: Any, fault: str) -> None:
    with pytest.raises(ArgumentError, match=fault):
        response_grammar(given)


def test_response_formats_that_are_the_same() -> None:
    assert response_grammar(None) is response_grammar({"type": "text"}) is None
    schema = {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": PARAMETERS}}
    texts = {
        response_grammar(given).text  # type: ignore[union-attr]
        for given in (
            schema,
            {"type": "json_object", "schema": PARAMETERS},
            {"type": "json_schema", "schema": PARAMETERS},
        )
    }
    assert texts == {LlamaGrammar.from_json_schema(PARAMETERS).text}


@pytest.fixture(scope="module")
def llamas(path: Callable[[str], Path]) -> Iterator[Callable[[str], Llama]]:
    opened: dict[str, Llama] = {}

    def open_one(form: str) -> Llama:
        if form not in opened:
            opened[form] = Llama(path(form), n_ctx=2048, n_threads=1, seed=3)
        return opened[form]

    yield open_one
    for llm in opened.values():
        llm.close()


def check_arguments(call: Any) -> None:
    """The arguments of a call of one of TOOLS fit its schema."""
    arguments = json.loads(call["arguments"])
    if call["name"] == "stop":
        assert arguments == {}
    else:
        assert call["name"] == "find"
        assert sorted(arguments) == ["kind", "n"]
        assert type(arguments["n"]) is int
        assert arguments["kind"] in ("x", "yy")


def test_a_random_model_calls_the_forced_tool(llamas: Callable[[str], Llama]) -> None:
    for seed in range(3):
        choice = {"type": "function", "function": {"name": "find"}}
        message = llamas(HERMES).create_chat_completion(
            ASK, tools=TOOLS, tool_choice=choice, temperature=1.5, seed=seed, max_tokens=200
        )["choices"][0]["message"]
        check_arguments(message["tool_calls"][0]["function"])


@pytest.mark.parametrize("form", [HERMES, LLAMA, MISTRAL, "[TOOL_CALLS][ARGS]", "nothing special"])
def test_a_random_model_calls_some_tool_where_one_is_required(form: str, llamas: Callable[[str], Llama]) -> None:
    names = set()
    for seed in range(4):
        arguments: dict[str, Any] = {"tools": TOOLS, "tool_choice": "required", "temperature": 4.0, "seed": seed}
        arguments |= {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
        result = llamas(form).create_chat_completion(ASK, **arguments, max_tokens=800)
        choice = result["choices"][0]
        assert choice["finish_reason"] == "tool_calls"
        assert choice["message"]["content"] is None
        for call in choice["message"]["tool_calls"]:
            check_arguments(call["function"])
            names.add(call["function"]["name"])
        chunks = list(llamas(form).create_chat_completion(ASK, **arguments, max_tokens=800, stream=True))
        streamed = [call["function"] for delta in deltas(chunks) for call in delta.get("tool_calls", [])]
        assert streamed == [call["function"] for call in choice["message"]["tool_calls"]]
    assert names == {"find", "stop"}


def test_a_random_model_answers_a_schema(llamas: Callable[[str], Llama]) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "n", "schema": PARAMETERS}}
    for seed in range(3):
        given: dict[str, Any] = {"response_format": schema, "temperature": 1.5, "seed": seed, "max_tokens": 200}
        content = llamas(HERMES).create_chat_completion(ASK, **given)["choices"][0]["message"]["content"]
        check_arguments({"name": "find", "arguments": content})


def test_a_random_model_answers_json(llamas: Callable[[str], Llama]) -> None:
    n_whole = 0
    for seed in range(8):
        given: dict[str, Any] = {"response_format": {"type": "json_object"}, "temperature": 1.5, "seed": seed}
        # Strings without end are in the grammar; this keeps a model without sense from them.
        bias = {i: -8.0 for i in range(260) if chr(i) not in '{}":,[] 0123'}
        choice = llamas(HERMES).create_chat_completion(ASK, **given, max_tokens=400, logit_bias=bias)["choices"][0]
        if choice["finish_reason"] == "stop":
            n_whole += 1
            assert isinstance(json.loads(choice["message"]["content"]), dict)
    assert n_whole >= 4


def test_function_calling_for_chatml_says_or_calls(path: Callable[[str], Path]) -> None:
    with Llama(path(HERMES), n_ctx=2048, n_threads=1, chat_format="chatml-function-calling", seed=3) as llm:
        kinds = set()
        for seed in range(6):
            given: dict[str, Any] = {"tools": TOOLS, "tool_choice": "auto", "temperature": 2.0, "seed": seed}
            choice = llm.create_chat_completion(ASK, **given, max_tokens=300)["choices"][0]
            for call in choice["message"].get("tool_calls", []):
                check_arguments(call["function"])
            kinds.add("calls" if "tool_calls" in choice["message"] else "message")
            assert "functions." not in (choice["message"]["content"] or "")[:10]
        assert kinds == {"calls", "message"}


def test_the_wrapper_of_openais_classes(llamas: Callable[[str], Llama]) -> None:
    types = pytest.importorskip("openai.types.chat")
    llm = llamas(HERMES)
    given: dict[str, Any] = {"tools": TOOLS, "tool_choice": "required", "temperature": 0, "max_tokens": 400}
    found = llm.create_chat_completion_openai_v1(ASK, **given)
    assert isinstance(found, types.ChatCompletion)
    expected = llm.create_chat_completion(ASK, **given)["choices"][0]["message"]["tool_calls"][0]["function"]
    assert found.choices[0].message.tool_calls[0].function.arguments == expected["arguments"]
    chunks = list(llm.create_chat_completion_openai_v1(ASK, **given, stream=True))
    assert all(isinstance(chunk, types.ChatCompletionChunk) for chunk in chunks)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[1].choices[0].delta.tool_calls[0].function.arguments == expected["arguments"]


NASTY = {
    "type": "object",
    "$defs": {"tree": {"type": "object", "properties": {"v": {"$ref": "#/$defs/tree"}}, "additionalProperties": False}},
    "properties": {
        'a "b" [c] {1,2}': {"enum": ['"quoted" \\ [x] {3}', "root"]},
        "0root": {"type": "string", "pattern": r"^[\]a-c{}]{1,3}$"},
        "tree": {"$ref": "#/$defs/tree"},
        "n": {"type": "integer", "minimum": -3, "maximum": 42},
    },
    "required": ['a "b" [c] {1,2}', "0root", "tree", "n"],
    "additionalProperties": False,
}


def test_grammars_of_several_tools_do_not_mix(llamas: Callable[[str], Llama]) -> None:
    # Rules of both have the same names; literals, classes and counts look like names or rules.
    tools = [*TOOLS, {"type": "function", "function": {"name": 'na"me\\[x]', "parameters": NASTY}}]
    names = set()
    for seed in range(12):
        given: dict[str, Any] = {"tools": tools, "tool_choice": "required", "temperature": 3.0, "seed": seed}
        bias = {ord("{"): -6.0}  # a tree without end is in the grammar
        choice = llamas("nothing special").create_chat_completion(
            ASK, **given, top_k=0, top_p=1.0, min_p=0.0, max_tokens=600, logit_bias=bias
        )["choices"][0]
        assert choice["finish_reason"] == "tool_calls"
        (call,) = choice["message"]["tool_calls"]
        names.add(call["function"]["name"])
        if call["function"]["name"] != 'na"me\\[x]':
            check_arguments(call["function"])
            continue
        arguments = json.loads(call["function"]["arguments"])
        assert list(arguments) == NASTY["required"]
        assert arguments['a "b" [c] {1,2}'] in ('"quoted" \\ [x] {3}', "root")
        assert 1 <= len(arguments["0root"]) <= 3
        assert set(arguments["0root"]) <= set("]abc{}")
        assert -3 <= arguments["n"] <= 42
    assert 'na"me\\[x]' in names
