"""Parts of the server that a client does not see easily: silence in a stream, leaving, figures, error forms."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest

pytest.importorskip("starlette")

from pysa.errors import ArgumentError, ContextFullError, DeviceError, EvaluationCancelledError, PlanError
from pysa.scheduler import QueueFullError, Stats
from pysa.server.answers import total_usage
from pysa.server.errors import ApiError, api_error, param_of
from pysa.server.events import DONE, PING, ClientLeftError, EventStream, event, while_connected
from pysa.server.metrics import Metrics

WAIT_S = 20.0


class Client:
    """The other end of an ASGI call."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.left = asyncio.Event()

    async def receive(self) -> dict[str, Any]:
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(dict(message))

    @property
    def body(self) -> list[bytes]:
        return [message["body"] for message in self.sent if message["type"] == "http.response.body"]


class Chunks:
    """A generator of chunks that notes its own end."""

    def __init__(self, *steps: Any) -> None:
        self.steps, self.closed = steps, False

    async def make(self) -> AsyncGenerator[Any, None]:
        try:
            for step in self.steps:
                if isinstance(step, float):
                    await asyncio.sleep(step)
                elif isinstance(step, Exception):
                    raise step
                else:
                    yield step
        finally:
            self.closed = True


def stream(chunks: Chunks, client: Client, timeout_s: float = 0.0, ping_s: float = 10.0) -> Any:
    response = EventStream(chunks.make(), api_error, timeout_s, ping_s)
    return asyncio.wait_for(response({"type": "http"}, client.receive, client.send), WAIT_S)  # type: ignore[arg-type]


def test_a_stream_is_events_and_done() -> None:
    async def main() -> None:
        client, chunks = Client(), Chunks({"a": "ü\n"}, {"b": 1})
        await stream(chunks, client)
        assert client.sent[0]["status"] == 200
        headers = dict(client.sent[0]["headers"])
        assert headers[b"content-type"].startswith(b"text/event-stream")
        assert b"content-length" not in headers
        assert client.body == ['data: {"a":"ü\\n"}\n\n'.encode(), b'data: {"b":1}\n\n', DONE, b""]
        assert client.sent[-1]["more_body"] is False
        assert chunks.closed

    asyncio.run(main())


def test_silence_is_filled_with_comments() -> None:
    async def main() -> None:
        client = Client()
        await stream(Chunks(0.25, {"a": 1}), client, ping_s=0.1)
        assert 1 <= client.body.count(PING) <= 2
        assert PING.startswith(b":")  # a comment, by the event stream's own format
        assert client.body[-3:] == [event({"a": 1}), DONE, b""]

    asyncio.run(main())


def test_faults_and_time_in_a_stream_become_an_event() -> None:
    async def main() -> None:
        for timeout_s, last, message, code in [
            (0.0, ArgumentError("seed: bad"), "seed: bad", None),
            (0.1, 5.0, "the answer took longer than 0.1 s", "timeout"),
        ]:
            client, chunks = Client(), Chunks({"a": 1}, last, {"b": 1})
            await stream(chunks, client, timeout_s=timeout_s)
            first, error, end = client.body
            assert (first, end) == (event({"a": 1}), b"")
            found = json.loads(error.removeprefix(b"data: "))["error"]
            assert (found["message"], found["code"]) == (message, code)
            assert chunks.closed

    asyncio.run(main())


def test_a_client_that_leaves_closes_the_stream() -> None:
    async def main() -> None:
        client, chunks = Client(), Chunks({"a": 1}, 15.0, {"b": 1})
        sending = asyncio.create_task(stream(chunks, client))
        while not client.body:
            await asyncio.sleep(0.001)
        client.left.set()
        await sending
        assert client.body == [event({"a": 1})]
        assert chunks.closed

    asyncio.run(main())


def test_an_answer_ends_with_its_client() -> None:
    async def main() -> None:
        ended = []

        async def answer(seconds: float) -> int:
            try:
                await asyncio.sleep(seconds)
                return 7
            finally:
                ended.append(seconds)

        client: Any = Client()
        assert await while_connected(client, answer(0.0), 0.0) == 7
        with pytest.raises(ApiError, match=r"longer than 0\.05 s") as late:
            await while_connected(client, answer(30.0), 0.05)
        assert late.value.status == 504
        client.left.set()
        with pytest.raises(ClientLeftError):
            await while_connected(client, answer(31.0), 0.0)
        assert ended == [0.0, 30.0, 31.0]

    asyncio.run(asyncio.wait_for(main(), WAIT_S))


def test_errors_have_their_status() -> None:
    cases: list[tuple[BaseException, int, str | None, str | None]] = [
        (ArgumentError("top_k: out of range"), 400, "top_k", None),
        (ContextFullError("prompt: 9 tokens do not fit"), 400, "prompt", "context_length_exceeded"),
        (QueueFullError("queue: full"), 429, None, "queue_full"),
        (EvaluationCancelledError("closed"), 503, None, "stopped"),
        (DeviceError("cache: out of memory"), 503, None, "out_of_memory"),
        (PlanError("plan: x"), 500, None, None),
        (ZeroDivisionError("secret"), 500, None, None),
    ]
    for error, status, param, code in cases:
        found = api_error(error, retry_after_s=9)
        assert (found.status, found.param, found.code) == (status, param, code), error
        assert (found.headers.get("Retry-After") == "9") == (status == 429)
        assert "secret" not in json.dumps(found.body())
    given = ApiError(418, "mine")
    assert api_error(given) is given


def test_what_an_error_is_about() -> None:
    assert param_of("stop[3]: empty") == "stop"
    assert param_of("messages[0].content: expected text") == "messages"
    assert param_of("logit_bias: out of range: x") == "logit_bias"
    assert param_of("Something else happened") is None
    assert param_of("/a/path.gguf: broken: x") is None


def test_figures_add_up() -> None:
    metrics = Metrics(("/a", "/b"), 'na"me\\')
    for path, status, seconds in [("/a", 200, 0.01), ("/a", 200, 0.3), ("/a", 429, 1000.0), ("/evil", 404, 0.01)]:
        metrics.request(path, status, seconds)
    text = metrics.text(Stats(n_finished=3, n_prompt_tokens=50, n_lanes=4, cache_bytes=9, busy_s=1.5))
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert lines['pysa_requests_total{path="/a",status="200"}'] == "2"
    assert lines['pysa_requests_total{path="/a",status="429"}'] == "1"
    assert lines['pysa_requests_total{path="other",status="404"}'] == "1"
    buckets = [
        lines[f'pysa_request_seconds_bucket{{path="/a",le="{bound}"}}'] for bound in ("0.05", "1", "300", "+Inf")
    ]
    assert buckets == ["1", "2", "2", "3"]
    assert lines['pysa_request_seconds_sum{path="/a"}'] == "1000.310000"
    assert lines['pysa_answers_total{outcome="finished"}'] == "3"
    assert lines["pysa_prompt_tokens_total"] == "50"
    assert lines["pysa_busy_seconds_total"] == "1.5"
    assert (lines["pysa_lanes"], lines["pysa_cache_bytes"]) == ("4", "9")
    assert 'model="na\\"me\\\\"' in text
    named = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    assert all(any(name.startswith(known) for known in named) for name in lines)
    assert metrics.retry_after_s(Stats()) == 1
    assert metrics.retry_after_s(Stats(n_finished=2, busy_s=9.0)) == 5
    assert metrics.retry_after_s(Stats(n_finished=1, busy_s=900.0)) == 30


def test_a_prompt_counts_once_whatever_n() -> None:
    def usage(n_prompt: int, n_completion: int, n_cached: int) -> dict[str, Any]:
        details = {"cached_tokens": n_cached, "reevaluated_tokens": 1}
        return {"prompt_tokens": n_prompt, "completion_tokens": n_completion, "prompt_tokens_details": details}

    usages = [usage(5, 2, 1), usage(5, 3, 4), usage(7, 1, 2), usage(7, 4, 6)]
    assert total_usage(usages, 2) == {
        "prompt_tokens": 12,
        "completion_tokens": 10,
        "total_tokens": 22,
        "prompt_tokens_details": {"cached_tokens": 3, "reevaluated_tokens": 2},
    }
