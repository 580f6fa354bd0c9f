"""Streams as server-sent events, and answers that end when the client leaves."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from pysa.server.errors import NO_RETRY, TIMEOUT, ApiError

T = TypeVar("T")

DONE = b"data: [DONE]\n\n"
PING = b": still at work\n\n"  # a comment, which clients pass over
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # a proxy is not to collect them


class ClientLeftError(Exception):
    """Nobody waits for the answer any more."""


def event(data: Any) -> bytes:
    """One event."""
    return b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def too_long(timeout_s: float) -> ApiError:
    """The error of a request whose time is up."""
    return ApiError(504, f"the answer took longer than {timeout_s:g} s", TIMEOUT, code="timeout", headers=NO_RETRY)


async def while_connected(request: Request, answer: Awaitable[T], timeout_s: float) -> T:
    """Waits for an answer; gives it up when the client leaves or the time is up.

    Raises:
        ClientLeftError: the client has left.
        ApiError: 504, the time is up.
    """
    work = asyncio.ensure_future(answer)
    leaving = asyncio.create_task(_left(request.receive))
    try:
        await asyncio.wait({work, leaving}, timeout=timeout_s or None, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        if leaving.done():
            raise ClientLeftError
        raise too_long(timeout_s)
    finally:
        for task in (work, leaving):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task


async def _left(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """A response whose events come as they are made.

    Args:
        chunks: the events' JSON; an exception becomes an event of its own.
        as_error: what the client is told of an exception.
        timeout_s: for the whole stream; 0: none.
        ping_s: seconds of silence before a comment.
    """

    def __init__(
        self,
        chunks: AsyncGenerator[Any, None],
        as_error: Callable[[BaseException], ApiError],
        timeout_s: float,
        ping_s: float,
    ) -> None:
        super().__init__(status_code=200, headers=HEADERS, media_type="text/event-stream")
        del self.headers["content-length"]
        self._chunks, self._as_error = chunks, as_error
        self._timeout_s, self._ping_s = timeout_s, ping_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends until the answer is complete or the client has left."""
        sending = asyncio.create_task(self._send(send))
        leaving = asyncio.create_task(_left(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            for task in (sending, leaving):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await task

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            async for data in self._events():
                await send({"type": "http.response.body", "body": data, "more_body": True})
        finally:
            await self._chunks.aclose()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _events(self) -> AsyncIterator[bytes]:
        loop = asyncio.get_running_loop()
        end_s = loop.time() + self._timeout_s if self._timeout_s else float("inf")
        next_chunk = asyncio.ensure_future(anext(self._chunks))
        try:
            while True:
                left_s = end_s - loop.time()
                await asyncio.wait({next_chunk}, timeout=max(0.0, min(self._ping_s, left_s)))
                if next_chunk.done():
                    yield event(next_chunk.result())
                    next_chunk = asyncio.ensure_future(anext(self._chunks))
                elif left_s <= self._ping_s:
                    raise too_long(self._timeout_s)
                else:
                    yield PING
        except StopAsyncIteration:
            yield DONE
        except Exception as error:
            yield event(self._as_error(error).body())
        finally:
            next_chunk.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception, StopAsyncIteration):
                await next_chunk
