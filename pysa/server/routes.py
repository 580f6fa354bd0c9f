"""The routes: each reads a body, asks AsyncLlama, and gives its answer OpenAI's form."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from pysa.llama.async_llama import AsyncLlama
from pysa.llama.async_stream import ChunkStream
from pysa.llama.embedding import MEAN, normalized, pool
from pysa.server.answers import interleaved, merged, total_usage
from pysa.server.body import Body, read_body, wrong
from pysa.server.errors import ApiError, api_error
from pysa.server.events import ClientLeftError, EventStream, while_connected
from pysa.server.fields import Fields, prompts_of, seed_of
from pysa.server.metrics import Metrics
from pysa.server.settings import ServerSettings

JSON = dict[str, Any]
Ask = Callable[[int], Awaitable[Any]]  # the i-th answer, or its stream

MAX_LOGPROBS = 100
COMPLETION = ("suffix", "echo")
CHAT = ("tools", "tool_choice", "functions", "function_call", "response_format", "logprobs")


class Routes:
    """The handlers, by path.

    Args:
        llama: answers.
        settings: names and limits.
        metrics: is shown.
    """

    def __init__(self, llama: AsyncLlama, settings: ServerSettings, metrics: Metrics) -> None:
        self._llama, self._settings, self._metrics = llama, settings, metrics
        self._fields, self._created = Fields(settings), int(time.time())

    # ---- what is asked for

    async def completions(self, request: Request) -> Response:
        """POST /v1/completions."""
        body = await read_body(request)
        model, prompts = self._fields.model(body), prompts_of(body.take("prompt", ""))
        arguments = {**self._fields.sampling(body), **body.take_some(COMPLETION)}
        if "logprobs" in body:
            arguments["logprobs"] = body.take_int("logprobs", 0, 0, MAX_LOGPROBS)
        arguments["max_tokens"] = self._fields.max_tokens(body, ("max_tokens",), 16)
        n, best_of = self._fields.n_choices(body, len(prompts)), body.take("best_of")
        if best_of not in (None, n):
            raise ApiError(400, f"best_of: not supported: expected n ({n}), got {best_of!r}", param="best_of")

        async def ask(i: int) -> Any:
            return await self._llama.create_completion(
                prompts[i // n], model=model, **{**arguments, **seed_of(arguments, i % n)}
            )

        return await self._answer(request, body, ask, len(prompts), n, arguments)

    async def chat_completions(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        body = await read_body(request)
        model, messages = self._fields.model(body), body.take("messages")
        if not isinstance(messages, list) or not messages:
            wrong("messages", "a list of at least one message", messages)
        arguments = {**self._fields.sampling(body), **body.take_some(CHAT)}
        if "top_logprobs" in body:
            arguments["top_logprobs"] = body.take_int("top_logprobs", 0, 0, MAX_LOGPROBS)
        arguments["max_tokens"] = self._fields.max_tokens(body, ("max_completion_tokens", "max_tokens"), 0)
        n = self._fields.n_choices(body, 1)

        async def ask(i: int) -> Any:
            return await self._llama.create_chat_completion(
                messages, model=model, **{**arguments, **seed_of(arguments, i)}
            )

        return await self._answer(request, body, ask, 1, n, arguments)

    async def embeddings(self, request: Request) -> Response:
        """POST /v1/embeddings."""
        body = await read_body(request)
        model, inputs = self._fields.model(body), prompts_of(body.take("input"), "input")
        form = body.take("encoding_format", "float")
        in_base64 = form == "base64"
        if form not in ("float", "base64"):
            wrong("encoding_format", "float or base64", form)
        body.finish()
        if len(inputs) > self._settings.max_inputs:
            wrong("input", f"at most {self._settings.max_inputs} texts", len(inputs))
        llama, kind = self._llama, self._llama.pooling_type() or MEAN  # an embedding is one row here
        prompts = [llama.tokenize(item.encode()) if isinstance(item, str) else item for item in inputs]
        rows = await while_connected(
            request, llama.pooled(prompts, lambda rows: normalized(pool(rows, kind))), self._settings.timeout_s
        )
        n_tokens = sum(map(len, prompts))
        written = [
            base64.b64encode(row.astype("<f4").tobytes()).decode() if in_base64 else row.tolist() for row in rows
        ]
        return JSONResponse(
            {
                "object": "list",
                "model": model,
                "data": [{"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(written)],
                "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
            }
        )

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        return JSONResponse({"object": "list", "data": [self._card(name) for name in self._settings.names]})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/NAME."""
        return JSONResponse(self._card(self._fields.known(request.path_params["name"])))

    async def health(self, request: Request) -> Response:
        """GET /health."""
        if self._llama.closed:
            return JSONResponse({"status": "stopped"}, 503)
        return JSONResponse({"status": "ok"})

    async def metrics(self, request: Request) -> Response:
        """GET /metrics."""
        text = self._metrics.text(self._llama.stats())
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    # ---- how it is answered

    def guarded(self, handler: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """A handler whose every error becomes a response."""

        async def handle(request: Request) -> Response:
            try:
                return await handler(request)
            except (ClientDisconnect, ClientLeftError):
                return Response(status_code=499)  # nobody reads it; web servers write it down so
            except Exception as error:
                return self._as_error(error).response()

        return handle

    def _as_error(self, error: BaseException) -> ApiError:
        return api_error(error, self._metrics.retry_after_s(self._llama.stats()))

    async def _answer(
        self, request: Request, body: Body, ask: Ask, n_prompts: int, n: int, arguments: JSON
    ) -> Response:
        """Asks for all choices at once and puts them together, whole or as a stream."""
        stream, options = body.take_bool("stream"), Body(body.take_object("stream_options"))
        with_usage = options.take_bool("include_usage")
        options.take_bool("include_obfuscation")
        options.finish()
        body.finish()
        arguments["stream"] = stream
        if not stream:
            work = together([ask(i) for i in range(n_prompts * n)])
            answers = await while_connected(request, work, self._settings.timeout_s)
            return JSONResponse(merged(answers, n))
        streams = await while_connected(
            request, together([ask(i) for i in range(n_prompts * n)]), self._settings.timeout_s
        )
        chunks = self._chunks(streams, n, with_usage)
        return EventStream(chunks, self._as_error, self._settings.timeout_s, self._settings.ping_s)

    async def _chunks(self, streams: Sequence[ChunkStream], n: int, with_usage: bool) -> AsyncGenerator[JSON, None]:
        last: JSON = {}
        usage: JSON = {"usage": None} if with_usage else {}
        async with contextlib.aclosing(interleaved(streams)) as chunks:
            async for chunk in chunks:
                last = chunk
                yield {**chunk, **usage}
        if with_usage:
            usages = [stream.result()["usage"] for stream in streams]
            yield {**last, "choices": [], "usage": total_usage(usages, n)}

    def _card(self, name: str) -> JSON:
        return {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "pysa",
            "meta": {"n_ctx": self._llama.n_ctx(), "n_ctx_train": self._llama.model.n_ctx_train},
        }


async def together(answers: Sequence[Awaitable[Any]]) -> list[Any]:
    """All answers; if one fails, the others are given up."""
    tasks = [asyncio.ensure_future(answer) for answer in answers]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, ChunkStream):
                await result.aclose()
        raise
