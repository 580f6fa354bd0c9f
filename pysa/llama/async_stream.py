"""The scheduler's answers as asyncio takes them: awaited whole, or chunk by chunk. Called by AsyncLlama."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, cast

from pysa.errors import ArgumentError
from pysa.scheduler import Drivable, Scheduler, Ticket
from pysa.scheduler.ticket import OnDone

JSON = dict[str, Any]


class ChunkStream:
    """The chunks of one answer, as they come: an async iterator, and an async context manager that gives it up.

    It is given up too when it is closed or dropped, or when the task that waits for a chunk is cancelled.
    """

    def __init__(self, scheduler: Scheduler, completion: Drivable) -> None:
        self._arrived: asyncio.Queue[JSON | None] = asyncio.Queue()
        self._ended = False
        loop, arrived = asyncio.get_running_loop(), self._arrived  # without self: dropping the stream gives it up

        def put(chunks: Sequence[JSON | None]) -> None:
            for chunk in chunks:
                arrived.put_nowait(chunk)

        def end(_: Ticket[Any]) -> None:
            loop.call_soon_threadsafe(put, [None])

        self._ticket = scheduler.submit(completion, lambda chunks: loop.call_soon_threadsafe(put, chunks), end)

    def __aiter__(self) -> ChunkStream:
        return self

    async def __anext__(self) -> JSON:
        """The next chunk.

        Raises:
            Exception: what ended the answer: what a logits processor raised, or a full context.
        """
        if self._ended:
            raise StopAsyncIteration
        try:
            chunk = await self._arrived.get()
        except asyncio.CancelledError:
            await self.aclose()
            raise
        if chunk is not None:
            return chunk
        self._ended = True
        if self._ticket.error is not None:
            raise self._ticket.error
        raise StopAsyncIteration

    async def __aenter__(self) -> ChunkStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if hasattr(self, "_ticket"):
            self._ticket.cancel()

    async def aclose(self) -> None:
        """Gives the answer up, if it is not complete."""
        self._ended = True
        self._ticket.cancel()

    def result(self) -> JSON:
        """The whole answer, as it would be without `stream`; when the last chunk has come."""
        if not self._ticket.done:
            raise ArgumentError("stream: the answer is not complete: expected it to be read to its end")
        return cast(JSON, self._ticket.result())


async def result_of(submit: Callable[[OnDone], Ticket[Any]]) -> Any:
    """Submits work and waits for what comes of it; who no longer waits gives it up."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def tell() -> None:
        if not done.done():
            done.set_result(None)

    ticket = submit(lambda _: loop.call_soon_threadsafe(tell))
    try:
        await done
    except asyncio.CancelledError:
        ticket.cancel()
        raise
    return ticket.result()
