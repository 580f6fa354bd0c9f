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

from pysa.grammar import LlamaGrammar
from pysa.llama.async_llama import AsyncLlama
from pysa.llama.async_stream import ChunkStream
from pysa.llama.embedding import MEAN, normalized, pool
from pysa.server.answers import interleaved, merged, total_usage
from pysa.server.body import Body, read_body, wrong
from pysa.server.errors import ApiError, api_error
from pysa.server.events import ClientLeftError, EventStream, while_connected
from pysa.server.metrics import Metrics
from pysa.server.settings import ServerSettings

JSON = dict[str, Any]
Ask = Callable[[int], Awaitable[Any]]  # the i-th answer, or its stream

INT32_MAX = 2**31 - 1
MAX_LOGPROBS = 100
SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "typical_p",
    "presence_penalty",
    "frequency_penalty",
    "repeat_penalty",
    "mirostat_mode",
    "mirostat_tau",
    "mirostat_eta",
    "logit_bias",
    "stop",
)
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
        self._created = int(time.time())

    # ---- what is asked for

    async def completions(self, request: Request) -> Response:
        """POST /v1/completions."""
        body = await read_body(request)
        model, prompts = self._model(body), prompts_of(body.take("prompt", ""))
        arguments = {**self._sampling(body), **body.take_some(COMPLETION)}
        if "logprobs" in body:
            arguments["logprobs"] = body.take_int("logprobs", 0, 0, MAX_LOGPROBS)
        arguments["max_tokens"] = self._max_tokens(body, "max_tokens", 16)
        n, best_of = self._n_choices(body, len(prompts)), body.take("best_of")
        if best_of not in (None, n):
            raise ApiError(400, f"best_of: not supported: expected n ({n}), got {best_of!r}", param="best_of")

        async def ask(i: int) -> Any:
            return await self._llama.create_completion(
                prompts[i // n], model=model, **{**arguments, **_seed(arguments, i % n)}
            )

        return await self._answer(request, body, ask, len(prompts), n, arguments)

    async def chat_completions(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        body = await read_body(request)
        model, messages = self._model(body), body.take("messages")
        if not isinstance(messages, list) or not messages:
            wrong("messages", "a list of at least one message", messages)
        arguments = {**self._sampling(body), **body.take_some(CHAT)}
        if "top_logprobs" in body:
            arguments["top_logprobs"] = body.take_int("top_logprobs", 0, 0, MAX_LOGPROBS)
        newer = self._max_tokens(body, "max_completion_tokens", 0)
        arguments["max_tokens"] = self._max_tokens(body, "max_tokens", 0) if newer is None else newer
        n = self._n_choices(body, 1)

        async def ask(i: int) -> Any:
            return await self._llama.create_chat_completion(
                messages, model=model, **{**arguments, **_seed(arguments, i)}
            )

        return await self._answer(request, body, ask, 1, n, arguments)

    async def embeddings(self, request: Request) -> Response:
        """POST /v1/embeddings."""
        body = await read_body(request)
        model, inputs = self._model(body), prompts_of(body.take("input"), "input")
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
        return JSONResponse(self._card(self._known(request.path_params["name"])))

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

    # ---- fields that several routes have

    def _model(self, body: Body) -> str:
        return self._known(body.take_text("model", self._settings.names[0]))

    def _known(self, name: str) -> str:
        names = self._settings.names
        if name not in names:
            message = f"model: {name!r} is not served: expected {' or '.join(names)}"
            raise ApiError(404, message, param="model", code="model_not_found")
        return name

    def _card(self, name: str) -> JSON:
        return {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "pysa",
            "meta": {"n_ctx": self._llama.n_ctx(), "n_ctx_train": self._llama.model.n_ctx_train},
        }

    def _sampling(self, body: Body) -> JSON:
        arguments = body.take_some(SAMPLING)
        if (grammar := body.take_text("grammar")) != "":
            arguments["grammar"] = LlamaGrammar.from_string(grammar)
        if (seed := body.take("seed")) is not None:
            arguments["seed"] = seed
        return arguments

    def _max_tokens(self, body: Body, name: str, default: int) -> int | None:
        """Most tokens of an answer; None: what the context holds."""
        most = self._settings.max_tokens or INT32_MAX
        n = body.take_int(name, 0, 1, most) if name in body else min(default, most) or self._settings.max_tokens
        return n or None

    def _n_choices(self, body: Body, n_prompts: int) -> int:
        n = body.take_int("n", 1, 1, self._settings.max_choices)
        if n * n_prompts > self._settings.max_choices:
            message = f"prompt: too many answers: expected at most {self._settings.max_choices}, got {n * n_prompts}"
            raise ApiError(400, message, param="prompt")
        return n


def prompts_of(value: Any, name: str = "prompt") -> list[str | list[int]]:
    """Prompts from one text, several texts, one list of tokens or several."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if all(isinstance(item, int) and not isinstance(item, bool) for item in value):
            return [value]
        if all(isinstance(item, str) for item in value) or all(isinstance(item, list) for item in value):
            return value
    return wrong(name, "a text, a list of texts, a list of token ids or a list of such lists", value)


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


def _seed(arguments: JSON, i: int) -> JSON:
    """Each choice of one prompt gets a seed of its own."""
    seed = arguments.get("seed")
    return {"seed": seed + i} if i and isinstance(seed, int) and not isinstance(seed, bool) else {}
