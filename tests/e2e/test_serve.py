"""`pysa serve` as a process, asked by the official openai client; raw HTTP for what that client never sends."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.gpus import emulated_gpu

from pysa.llama import Llama
from pysa.llama.embedding import normalized, pool

openai = pytest.importorskip("openai")
pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}<assistant>"
PROMPT = "the thing and the "
N_CTX = 512
ENGINE: dict[str, Any] = {"n_ctx": N_CTX, "n_threads": 1, "type_k": "f32", "type_v": "f32", "verbose": False}
GREEDY: dict[str, Any] = {"model": "tiny", "temperature": 0}
ENDLESS: dict[str, Any] = {"max_tokens": 480, "logit_bias": {"2": -1e9}}  # without the token that ends a text
WAIT_S = 60.0


class Server:
    """A running `pysa serve`."""

    def __init__(self, model: Path, *options: object, env: dict[str, str] | None = None) -> None:
        command = [sys.executable, "-m", "pysa.cli.main", "serve", model, "--port", 0, "--json", "--alias", "tiny"]
        command += ["--type-k", "f32", "--type-v", "f32", "--ctx-size", N_CTX, "--threads", 1, *options]
        self.process = subprocess.Popen(
            [str(part) for part in command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(env or {})},
        )
        assert self.process.stdout is not None
        lines = ""
        while not lines.endswith("}\n"):
            line = self.process.stdout.readline()
            assert line, f"it did not start: {self.process.stderr and self.process.stderr.read()}"
            lines += line
        self.facts = json.loads(lines)
        self.url = self.facts["url"]
        self.port = int(self.url.rpartition(":")[2])

    def client(self, key: str = "none", **options: Any) -> Any:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=WAIT_S, **options)

    def raw(
        self, method: str, path: str, body: bytes | str | None = None, **headers: str
    ) -> tuple[int, dict[str, str], str]:
        """A plain HTTP request: status, headers, body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT_S)
        given = {"Content-Type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}
        with contextlib.closing(connection):
            connection.request(method, path, body.encode() if isinstance(body, str) else body, given)
            response = connection.getresponse()
            return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read().decode()

    def post(self, path: str, **fields: Any) -> tuple[int, Any]:
        """A JSON body: status and JSON."""
        status, _, text = self.raw("POST", path, json.dumps(fields))
        return status, json.loads(text)

    def figures(self) -> dict[str, float]:
        """What /metrics says."""
        _, headers, text = self.raw("GET", "/metrics")
        assert headers["content-type"].startswith("text/plain; version=0.0.4")
        lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in lines}

    def until(self, condition: Callable[[dict[str, float]], object]) -> None:
        end = time.monotonic() + WAIT_S
        while not condition(self.figures()):
            assert time.monotonic() < end, self.figures()
            time.sleep(0.01)

    def end(self) -> tuple[int, str]:
        """Waits for the end: the exit status and what was said on stderr."""
        _, err = self.process.communicate(timeout=WAIT_S)
        return self.process.returncode, err


@pytest.fixture(scope="module")
def model(tiny_gguf: Callable[..., Path]) -> Path:
    return tiny_gguf("llama", n_layer=4, vocab="llama", extra_kv={"tokenizer.chat_template": CHAT})


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[Server]:
    running = Server(model, "--parallel", 8)
    yield running
    running.process.send_signal(signal.SIGTERM)
    status, said = running.end()
    assert status == 0
    # The grammar parser of libllama writes to stderr by itself.
    assert [line for line in said.splitlines() if line and "grammar" not in line and "root ::=" not in line] == []


@pytest.fixture(scope="module")
def client(server: Server) -> Any:
    return server.client()


@pytest.fixture(scope="module")
def llama(model: Path) -> Iterator[Llama]:
    with Llama(model, **ENGINE) as opened:
        yield opened


@pytest.fixture
def start(model: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers that end with the test."""
    with contextlib.ExitStack() as stack:

        def make(*options: object, **more: Any) -> Server:
            running = Server(model, *options, **more)
            stack.callback(running.process.communicate)
            stack.callback(running.process.kill)
            return running

        yield make


# ---- models and health


def test_models_and_health(server: Server, client: Any) -> None:
    listed = client.models.list().data
    assert [(card.id, card.object, card.owned_by) for card in listed] == [("tiny", "model", "pysa")]
    assert listed[0].meta == {"n_ctx": N_CTX, "n_ctx_train": 2048}
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="'gpt-9' is not served: expected tiny"):
        client.models.retrieve("gpt-9")
    assert server.raw("GET", "/health")[::2] == (200, '{"status":"ok"}')
    assert server.facts["model"] == "tiny"


# ---- completions


def test_a_completion_is_llamas(client: Any, llama: Llama) -> None:
    expected = llama.create_completion(PROMPT, max_tokens=20, temperature=0.0, logprobs=2, echo=True)
    found = client.completions.create(prompt=PROMPT, max_tokens=20, logprobs=2, echo=True, **GREEDY)
    theirs, mine = expected["choices"][0], found.choices[0]
    assert (mine.text, mine.finish_reason) == (theirs["text"], theirs["finish_reason"])
    assert mine.logprobs.tokens == theirs["logprobs"]["tokens"]
    np.testing.assert_allclose(mine.logprobs.token_logprobs[1:], theirs["logprobs"]["token_logprobs"][1:], atol=1e-4)
    assert found.usage.total_tokens == expected["usage"]["total_tokens"]
    assert (found.model, found.object) == ("tiny", "text_completion")


def test_a_stream_is_the_whole_in_pieces(client: Any, llama: Llama) -> None:
    expected = llama.create_completion(PROMPT, max_tokens=20, temperature=0.0)
    options = {"prompt": PROMPT, "max_tokens": 20, "stream": True, **GREEDY}
    chunks = list(client.completions.create(stream_options={"include_usage": True}, **options))
    *parts, last = chunks
    assert "".join(chunk.choices[0].text for chunk in parts) == expected["choices"][0]["text"]
    assert [chunk.choices[0].finish_reason for chunk in parts] == [None] * (len(parts) - 1) + [
        expected["choices"][0]["finish_reason"]
    ]
    assert last.choices == []
    assert last.usage.completion_tokens == expected["usage"]["completion_tokens"]
    assert last.usage.prompt_tokens == expected["usage"]["prompt_tokens"]
    assert all(chunk.usage is None for chunk in parts)
    assert len({chunk.id for chunk in chunks}) == 1
    without = list(client.completions.create(**options))
    assert [chunk.choices[0].text for chunk in without] == [chunk.choices[0].text for chunk in parts]


def test_stop_strings_and_logit_bias(client: Any, llama: Llama) -> None:
    whole = llama.create_completion(PROMPT, max_tokens=20, temperature=0.0)["choices"][0]["text"]
    stop = whole[3:5]
    cut = client.completions.create(prompt=PROMPT, max_tokens=20, stop=stop, **GREEDY).choices[0]
    assert (cut.text, cut.finish_reason) == (whole[: whole.index(stop)], "stop")
    token = llama.tokenize(b"the", add_bos=False)[-1]
    forced = client.completions.create(prompt=PROMPT, max_tokens=3, logit_bias={str(token): 100}, **GREEDY)
    assert forced.choices[0].text == llama.detokenize([token] * 3).decode()


def test_several_prompts_and_choices(client: Any, llama: Llama) -> None:
    prompts = ["the thing", "and in the end", "a thing"]
    tokens = [llama.tokenize(prompt.encode()) for prompt in prompts]
    alone = [llama.create_completion(prompt, max_tokens=8, temperature=0.0) for prompt in prompts]
    texts = [answer["choices"][0]["text"] for answer in alone]
    for given in (prompts, tokens):
        found = client.completions.create(prompt=given, max_tokens=8, n=2, **GREEDY)
        assert [choice.index for choice in found.choices] == list(range(6))
        assert [choice.text for choice in found.choices] == [text for text in texts for _ in range(2)]
        assert found.usage.prompt_tokens == sum(answer["usage"]["prompt_tokens"] for answer in alone)
        assert found.usage.completion_tokens == 2 * sum(answer["usage"]["completion_tokens"] for answer in alone)
    one = client.completions.create(prompt=tokens[0], max_tokens=8, **GREEDY)
    assert one.choices[0].text == texts[0]
    streamed = ["", "", ""]
    ids = set()
    for chunk in client.completions.create(prompt=prompts, max_tokens=8, stream=True, **GREEDY):
        ids.add(chunk.id)
        for choice in chunk.choices:
            streamed[choice.index] += choice.text
    assert streamed == texts
    assert len(ids) == 1
    warm = {"model": "tiny", "prompt": PROMPT, "max_tokens": 12, "temperature": 1.5, "n": 3}
    first, again = (client.completions.create(seed=7, **warm).choices for _ in range(2))
    assert [choice.text for choice in first] == [choice.text for choice in again]  # a seed repeats
    assert len({choice.text for choice in first}) == 3  # and choices differ all the same


def test_eight_at_once_are_eight_one_after_another(client: Any) -> None:
    prompts = [f"{'thing ' * i}and in {i}" for i in range(8)]

    def ask(prompt: str) -> str:
        return str(client.completions.create(prompt=prompt, max_tokens=16, **GREEDY).choices[0].text)

    alone = [ask(prompt) for prompt in prompts]
    with ThreadPoolExecutor(8) as pool_:
        assert list(pool_.map(ask, prompts)) == alone


# ---- chats


def test_a_chat_is_llamas(client: Any, llama: Llama) -> None:
    messages = [{"role": "system", "content": "be the thing"}, {"role": "user", "content": "and the thing"}]
    expected = llama.create_chat_completion(messages, max_tokens=16, temperature=0.0)
    content = expected["choices"][0]["message"]["content"]
    for name in ("max_tokens", "max_completion_tokens"):
        found = client.chat.completions.create(messages=messages, **{name: 16}, **GREEDY)
        assert found.choices[0].message.content == content
        assert found.choices[0].message.role == "assistant"
        assert found.usage.prompt_tokens == expected["usage"]["prompt_tokens"]
        assert found.object == "chat.completion"
    *parts, last = client.chat.completions.create(
        messages=messages, max_tokens=16, stream=True, stream_options={"include_usage": True}, **GREEDY
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in parts) == content
    assert parts[0].choices[0].delta.role == "assistant"
    assert last.usage.total_tokens == expected["usage"]["total_tokens"]
    asked = client.chat.completions.create(messages=messages, max_tokens=4, logprobs=True, top_logprobs=2, **GREEDY)
    entries = asked.choices[0].logprobs.content
    assert len(entries) == asked.usage.completion_tokens
    assert all(entry.logprob == max(top.logprob for top in entry.top_logprobs) for entry in entries)
    two = client.chat.completions.create(messages=messages, max_tokens=4, n=2, **GREEDY)
    assert [choice.index for choice in two.choices] == [0, 1]


def test_the_form_of_an_answer(client: Any) -> None:
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}, "kind": {"enum": ["a", "b"]}},
        "required": ["ok", "kind"],
        "additionalProperties": False,
    }
    messages = [{"role": "user", "content": "is it?"}]
    found = client.chat.completions.create(
        messages=messages,
        max_tokens=200,
        response_format={"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}},
        **GREEDY,
    )
    answer = json.loads(found.choices[0].message.content)
    assert isinstance(answer["ok"], bool)
    assert answer["kind"] in ("a", "b")
    assert answer.keys() == {"ok", "kind"}
    tools = [{"type": "function", "function": {"name": "switch", "description": "on or off", "parameters": schema}}]
    choice = {"type": "function", "function": {"name": "switch"}}
    called = client.chat.completions.create(
        messages=messages, max_tokens=200, tools=tools, tool_choice=choice, **GREEDY
    ).choices[0]
    (call,) = called.message.tool_calls
    assert call.function.name == "switch"
    assert json.loads(call.function.arguments).keys() == {"ok", "kind"}
    chunks = list(
        client.chat.completions.create(
            messages=messages, max_tokens=200, tools=tools, tool_choice=choice, stream=True, **GREEDY
        )
    )
    deltas = [part for chunk in chunks for part in chunk.choices[0].delta.tool_calls or []]
    assert "".join(part.function.arguments or "" for part in deltas) == call.function.arguments
    assert deltas[0].function.name == "switch"


# ---- embeddings


def test_embeddings(client: Any, llama: Llama) -> None:
    texts = ["the thing", "and in the end"]
    rows = [np.array(llama.embed(text), np.float32) for text in texts]  # without pooling: a row a token
    expected = [normalized(pool(row, 1)) for row in rows]
    for given in (texts, [llama.tokenize(text.encode()) for text in texts]):
        found = client.embeddings.create(model="tiny", input=given)  # the client asks for base64
        np.testing.assert_allclose([item.embedding for item in found.data], expected, atol=1e-5)
        assert [item.index for item in found.data] == [0, 1]
        assert found.usage.prompt_tokens == sum(map(len, rows))
    plain = client.embeddings.create(model="tiny", input=texts[1], encoding_format="float")
    np.testing.assert_allclose(plain.data[0].embedding, expected[1], atol=1e-5)


def test_base64_is_little_endian_float32(server: Server) -> None:
    _, coded = server.post("/v1/embeddings", input="the", encoding_format="base64")
    _, plain = server.post("/v1/embeddings", input="the")
    raw = base64.b64decode(coded["data"][0]["embedding"])
    assert np.frombuffer(raw, "<f4").tolist() == plain["data"][0]["embedding"]


# ---- what is refused

COMPLETIONS, CHATS, EMBEDDINGS = "/v1/completions", "/v1/chat/completions", "/v1/embeddings"
USER = [{"role": "user", "content": "x"}]
WRONG: list[tuple[str, dict[str, Any], int, str, str | None]] = [
    (COMPLETIONS, {"prompt": "x", "model": "gpt-9"}, 404, "model: 'gpt-9' is not served: expected tiny", "model"),
    (COMPLETIONS, {"prompt": "x", "model": 3}, 400, "model: expected text, got 3", "model"),
    (COMPLETIONS, {"prompt": "x", "temperature": "hot"}, 400, "temperature: wrong type", "temperature"),
    (COMPLETIONS, {"prompt": "x", "top_p": 7}, 400, "top_p: out of range", "top_p"),
    (COMPLETIONS, {"prompt": "x", "max_tokens": 0}, 400, "max_tokens: expected an integer in 1..", "max_tokens"),
    (COMPLETIONS, {"prompt": "x", "max_tokens": 1.5}, 400, "max_tokens: expected an integer", "max_tokens"),
    (COMPLETIONS, {"prompt": "x", "logprobs": 101}, 400, "logprobs: expected an integer in 0..100", "logprobs"),
    (CHATS, {"messages": USER, "logprobs": True, "top_logprobs": -1}, 400, "top_logprobs: expected", "top_logprobs"),
    (COMPLETIONS, {"prompt": "x", "n": 99}, 400, "n: expected an integer in 1..16, got 99", "n"),
    (
        COMPLETIONS,
        {"prompt": ["x"] * 9, "n": 2},
        400,
        "prompt: too many answers: expected at most 16, got 18",
        "prompt",
    ),
    (COMPLETIONS, {"prompt": "x", "best_of": 2}, 400, "best_of: not supported: expected n (1), got 2", "best_of"),
    (COMPLETIONS, {"prompt": "x", "stream": 1}, 400, "stream: expected true or false, got 1", "stream"),
    (COMPLETIONS, {"prompt": "x", "stream_options": []}, 400, "stream_options: expected an object", "stream_options"),
    (COMPLETIONS, {"prompt": "x", "stop": [1]}, 400, "stop[0]: wrong type", "stop"),
    (COMPLETIONS, {"prompt": "x", "logit_bias": {"9999": 1}}, 400, "logit_bias: out of range", "logit_bias"),
    (COMPLETIONS, {"prompt": "x", "grammar": "root ::= ("}, 400, "grammar", "grammar"),
    (COMPLETIONS, {"prompt": {"a": 1}}, 400, "prompt: expected a text, a list of texts", "prompt"),
    (COMPLETIONS, {"prompt": []}, 400, "prompt: expected a text, a list of texts", "prompt"),
    (COMPLETIONS, {"prompt": [1, "x"]}, 400, "prompt: expected a text, a list of texts", "prompt"),
    (COMPLETIONS, {"prompt": [99999]}, 400, "prompt[0]: out of range", "prompt"),
    (COMPLETIONS, {"prompt": "\ud800"}, 400, "prompt: lone surrogate", "prompt"),
    (COMPLETIONS, {"prompt": [5] * N_CTX}, 400, f"at most {N_CTX - 1}", "prompt"),
    (COMPLETIONS, {"prompt": [5] * N_CTX, "stream": True}, 400, f"at most {N_CTX - 1}", "prompt"),
    (COMPLETIONS, {"prompt": "x", "tempperature": 1}, 400, "tempperature: not supported here", "tempperature"),
    (CHATS, {}, 400, "messages: expected a list of at least one message, got null", "messages"),
    (CHATS, {"messages": []}, 400, "messages: expected a list of at least one message", "messages"),
    (CHATS, {"messages": USER, "audio": {}}, 400, "audio: not supported here", "audio"),
    (CHATS, {"messages": USER, "max_tokens": -1}, 400, "max_tokens: expected", "max_tokens"),
    (CHATS, {"messages": [{"role": "user", "content": "thing " * 600}]}, 400, f"at most {N_CTX - 1}", None),
    (EMBEDDINGS, {}, 400, "input: expected a text", "input"),
    (EMBEDDINGS, {"input": "x", "encoding_format": "int8"}, 400, "encoding_format: expected", "encoding_format"),
    (EMBEDDINGS, {"input": "x", "dimensions": 8}, 400, "dimensions: not supported here", "dimensions"),
    (EMBEDDINGS, {"input": [[5] * 600]}, 400, "input[0]: does not fit the context", "input"),
]


@pytest.mark.parametrize(("path", "fields", "status", "message", "param"), WRONG)
def test_wrong_requests_say_what_is_wrong(
    server: Server, path: str, fields: dict[str, Any], status: int, message: str, param: str | None
) -> None:
    found, body = server.post(path, **fields)
    assert found == status, body
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"message", "type", "param", "code"}
    assert message in body["error"]["message"]
    assert body["error"]["type"] == "invalid_request_error"
    if param is not None:
        assert body["error"]["param"] == param
    if f"at most {N_CTX - 1}" in message:
        assert body["error"]["code"] == "context_length_exceeded"


def test_bodies_that_are_no_requests(server: Server) -> None:
    cases: list[tuple[bytes, dict[str, str], int, str]] = [
        (b"", {}, 400, "body: not JSON"),
        (b"{", {}, 400, "body: not JSON"),
        (b"[1]", {}, 400, "body: expected a JSON object, got list"),
        (b'{"prompt": "x", "temperature": NaN}', {}, 400, "NaN is no JSON"),
        (b'{"prompt": "\xff"}', {}, 400, "body: not UTF-8 at byte 12"),
        (b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", {}, 400, "body: nested too deeply"),
        (b'{"prompt": "x"}', {"Content_Type": "text/plain"}, 415, "expected application/json, got 'text/plain'"),
        (b"x" * (17 << 20), {}, 413, "body: too large: expected at most 16777216 bytes"),
    ]
    for body, headers, status, message in cases:
        found, _, text = server.raw("POST", COMPLETIONS, body, **headers)
        assert found == status, text
        assert message in json.loads(text)["error"]["message"]
    chunked = http.client.HTTPConnection("127.0.0.1", server.port, timeout=WAIT_S)
    with contextlib.closing(chunked):  # a body that does not say how long it is
        with contextlib.suppress(ConnectionError):
            pieces = iter([b"x" * (1 << 20)] * 20)
            chunked.request("POST", COMPLETIONS, pieces, {"Content-Type": "application/json"}, encode_chunked=True)
        assert chunked.getresponse().status == 413


def test_routes_methods_and_hosts(server: Server) -> None:
    for method, path, status, code in [
        ("GET", "/", 404, "unknown_route"),
        ("GET", "/v1/nothing", 404, "unknown_route"),
        ("POST", "/v1/models", 405, "method_not_allowed"),
        ("GET", COMPLETIONS, 405, "method_not_allowed"),
    ]:
        found, headers, text = server.raw(method, path)
        assert (found, json.loads(text)["error"]["code"]) == (status, code)
        assert re.fullmatch("[0-9a-f]{32}", headers["x-request-id"])
        assert (headers.get("allow") is not None) == (status == 405)
    # Without a key, a web page must not reach it under another name, and no page of another origin at all.
    found, headers, text = server.raw("GET", "/v1/models", Host="evil.example:80", Origin="http://evil.example")
    assert found == 403
    assert "'evil.example'" in json.loads(text)["error"]["message"]
    assert not [name for name in headers if name.startswith("access-control")]
    assert server.raw("GET", "/v1/models", Host="LocalHost:1")[0] == 200
    assert server.raw("GET", "/v1/models", Host="[::1]:80")[0] == 200


# ---- leaving, limits


def test_who_leaves_frees_the_lane(server: Server, client: Any) -> None:
    before = server.figures()['pysa_answers_total{outcome="cancelled"}']
    stream = client.completions.create(prompt=PROMPT, stream=True, **ENDLESS, **GREEDY)
    next(iter(stream))
    server.until(lambda now: now["pysa_lanes_busy"] == 1)
    stream.close()
    server.until(lambda now: now["pysa_lanes_busy"] == 0)
    body = json.dumps({"prompt": [PROMPT, "and"], "temperature": 0, **ENDLESS}).encode()
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as plain:
        plain.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        server.until(lambda now: now["pysa_lanes_busy"] == 2)
    server.until(lambda now: now["pysa_lanes_busy"] == 0)
    assert server.figures()['pysa_answers_total{outcome="cancelled"}'] == before + 3
    assert client.completions.create(prompt=PROMPT, max_tokens=3, **GREEDY).usage.completion_tokens == 3


def test_limits_key_and_cors(start: Callable[..., Server]) -> None:
    server = start(
        "--parallel", 1, "--queue", 0, "--max-tokens", 400, "--cors-origin", "https://app.example", "--max-body", 0.01,
        env={"PYSA_API_KEY": "s3cret"},
    )  # fmt: skip
    for key in ("wrong", "s3cre", "s3cret "):
        status, headers, text = server.raw("GET", "/v1/models", Authorization=f"Bearer {key}")
        assert status == (200 if key.strip() == "s3cret" else 401), key
    assert server.raw("GET", "/v1/models")[0] == 401
    assert server.raw("GET", "/metrics")[0] == 401
    assert server.raw("GET", "/health")[0] == 200
    status, headers, text = server.raw("GET", "/v1/models", Authorization="Basic s3cret")
    assert (status, headers["www-authenticate"]) == (401, "Bearer")
    assert json.loads(text)["error"]["code"] == "invalid_api_key"
    with pytest.raises(openai.AuthenticationError, match="wrong API key"):
        server.client("no").models.list()
    client = server.client("s3cret")

    endless: dict[str, Any] = {**ENDLESS, "max_tokens": 400}
    with pytest.raises(openai.BadRequestError, match=r"max_tokens: expected an integer in 1\.\.400, got 401"):
        client.completions.create(prompt=PROMPT, max_tokens=401, **GREEDY)
    with pytest.raises(openai.APIStatusError, match="body: too large") as too_large:
        client.completions.create(prompt="x" * 20_000, **GREEDY)
    assert too_large.value.status_code == 413
    with client.completions.create(prompt=PROMPT, stream=True, **endless, **GREEDY) as stream:
        next(iter(stream))
        with pytest.raises(openai.RateLimitError) as full:
            client.completions.create(prompt=PROMPT, max_tokens=3, **GREEDY)
        assert 1 <= int(full.value.response.headers["retry-after"]) <= 30
        assert full.value.body["code"] == "queue_full"
    patient = openai.OpenAI(base_url=f"{server.url}/v1", api_key="s3cret", max_retries=5)
    assert patient.completions.create(prompt=PROMPT, max_tokens=3, **GREEDY).usage.completion_tokens == 3
    for given, n in ({}, 400), ({"max_tokens": 5}, 5), ({"max_completion_tokens": 6, "max_tokens": 9}, 6):
        found = client.chat.completions.create(messages=USER, logit_bias={"2": -1e9}, **given, **GREEDY)
        assert found.usage.completion_tokens == n  # the limit is also the default

    asking = {"Origin": "https://app.example", "Access_Control_Request_Method": "POST"}
    allowed = server.raw("OPTIONS", COMPLETIONS, Access_Control_Request_Headers="authorization,content-type", **asking)
    assert allowed[0] == 200
    assert allowed[1]["access-control-allow-origin"] == "https://app.example"
    refused = server.raw("OPTIONS", COMPLETIONS, **{**asking, "Origin": "https://evil.example"})
    assert refused[0] == 400
    assert "access-control-allow-origin" not in refused[1]


def test_time_runs_out(start: Callable[..., Server]) -> None:
    server = start("--timeout", 1, "--parallel", 1)
    client = server.client()
    slow: dict[str, Any] = {"prompt": [PROMPT] * 16, **ENDLESS, **GREEDY}
    with pytest.raises(openai.APIStatusError, match="longer than 1 s") as late:
        client.completions.create(**slow)
    assert late.value.status_code == 504
    assert late.value.response.headers["x-should-retry"] == "false"
    with pytest.raises(openai.APIError, match="longer than 1 s"):
        list(client.completions.create(stream=True, **slow))
    server.until(lambda now: now["pysa_lanes_busy"] + now["pysa_queue_length"] == 0)
    assert client.completions.create(prompt=PROMPT, max_tokens=2, **GREEDY).usage.completion_tokens == 2


# ---- the end


def test_a_signal_lets_requests_come_to_their_end(start: Callable[..., Server]) -> None:
    server = start("--drain", 300)
    stream = iter(server.client().completions.create(prompt=PROMPT, stream=True, **ENDLESS, **GREEDY))
    next(stream)
    server.process.send_signal(signal.SIGTERM)
    assert list(stream)[-1].choices[0].finish_reason == "length"
    assert server.end() == (0, "")


def test_the_drain_is_bounded_and_a_second_signal_ends_it(start: Callable[..., Server]) -> None:
    slow: dict[str, Any] = {"prompt": [PROMPT] * 16, **ENDLESS, **GREEDY}
    server = start("--drain", 0.2, "--parallel", 1)
    stream = iter(server.client().completions.create(stream=True, **slow))
    next(stream)
    server.process.send_signal(signal.SIGINT)
    with pytest.raises(openai.APIError, match="the server has stopped"):
        list(stream)
    assert server.end() == (130, "")
    server = start("--drain", 600, "--parallel", 1)
    stream = iter(server.client().completions.create(stream=True, **slow))
    next(stream)
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    server.process.send_signal(signal.SIGTERM)
    with pytest.raises(openai.APIError, match="the server has stopped"):
        list(stream)
    assert server.end() == (0, "")


# ---- the command

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def test_the_command_says_what_is_wrong_in_one_line(run_pysa: Run, model: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        cases: list[tuple[list[Any], int, str]] = [
            ([model, "--port", port], 1, f"--port {port}: not to be had at 127.0.0.1: Address already in use"),
            ([model, "--host", "no.such.host.invalid"], 1, "--host no.such.host.invalid: no such address"),
            ([model, "--host", "192.0.2.1", "--port", 0], 1, "not to be had at 192.0.2.1"),
            ([tmp_path / "absent.gguf", "--port", 0], 1, "absent.gguf"),
            ([model, "--port", 70000], 2, "--port: expected an integer in 0..65535, got '70000'"),
            ([model, "--parallel", 0], 2, "expected an integer in 1..256, got '0'"),
            ([model, "--api-key", ""], 2, "--api-key: empty"),
        ]
        for arguments, status, message in cases:
            done = run_pysa("serve", *arguments)
            assert (done.returncode, done.stdout) == (status, ""), done.stderr
            assert message in done.stderr
            assert re.fullmatch(r"pysa: error: [^\n]+\n", done.stderr)


def test_a_missing_extra_says_which(model: Path) -> None:
    for name in ("starlette", "uvicorn"):
        program = f"import sys; sys.modules[{name!r}] = None; from pysa.cli.main import main; sys.exit(main())"
        command = [sys.executable, "-c", program, "serve", str(model)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
        assert done.returncode == 2
        assert done.stderr == f"pysa: error: serve: {name} is missing; pip install 'pysa[serve]'; see pysa --help\n"


def test_an_open_server_is_warned_of(model: Path) -> None:
    command = [sys.executable, "-m", "pysa.cli.main", "serve", str(model), "--port", "0", "--threads", "1"]
    for options, lines in ((["--host", "0.0.0.0"], 2), (["--host", "0.0.0.0", "--api-key", "k"], 1), ([], 1)):
        process = subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        said = [process.stderr.readline() for _ in range(lines)]
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_S) == 0
        process.stderr.close()
        assert re.match(
            r"pysa: serving \S+ at http://[0-9.]+:\d+/v1 \(4 requests at once, 2,048 tokens each\)", said[-1]
        )
        if lines == 2:
            assert "is open to whoever reaches it" in said[0]


# ---- on a GPU


def test_on_a_gpu_answers_are_the_same(start: Callable[..., Server], llama: Llama) -> None:
    gpu = emulated_gpu()
    running = start("--device", gpu, "-ngl", "all", "--attention", "composed", "--parallel", 2)
    assert (running.facts["device"], running.facts["n_gpu_layers"]) == (gpu, 5)
    with Llama(llama.model_path, **ENGINE, attention="composed") as plain:
        expected = plain.create_completion(PROMPT, max_tokens=5, temperature=0)["choices"][0]["text"]
    _, answer = running.post("/v1/completions", prompt=PROMPT, max_tokens=5, **GREEDY)
    assert answer["choices"][0]["text"] == expected
