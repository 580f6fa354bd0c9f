"""Several answers to one request as one: several prompts, `n` choices of each, whole or streamed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from pysa.llama.async_stream import ChunkStream

JSON = dict[str, Any]


def merged(answers: Sequence[JSON], n_choices: int) -> JSON:
    """One response with the choices of all.

    Args:
        answers: `n_choices` of each prompt, one prompt after another.
        n_choices: `n` of the request.
    """
    choices = [{**choice, "index": i} for i, answer in enumerate(answers) for choice in answer["choices"]]
    return {**answers[0], "choices": choices, "usage": total_usage([answer["usage"] for answer in answers], n_choices)}


def total_usage(usages: Sequence[JSON], n_choices: int) -> JSON:
    """Tokens of all answers; a prompt counts once, whatever `n`."""
    first_of_each = usages[::n_choices]
    n_prompt = sum(usage["prompt_tokens"] for usage in first_of_each)
    n_completion = sum(usage["completion_tokens"] for usage in usages)
    total: JSON = {
        "prompt_tokens": n_prompt,
        "completion_tokens": n_completion,
        "total_tokens": n_prompt + n_completion,
    }
    details = [usage["prompt_tokens_details"] for usage in first_of_each if "prompt_tokens_details" in usage]
    if details:
        total["prompt_tokens_details"] = {name: sum(part[name] for part in details) for name in details[0]}
    return total


async def interleaved(streams: Sequence[ChunkStream]) -> AsyncGenerator[JSON, None]:
    """The chunks of all streams as they come, with one id and the index of the choice they belong to.

    Raises:
        Exception: what ended one of the streams; the others are given up.
    """
    arrivals: asyncio.Queue[tuple[int, JSON | BaseException | None]] = asyncio.Queue()

    async def pump(i: int, stream: ChunkStream) -> None:
        try:
            async for chunk in stream:
                arrivals.put_nowait((i, chunk))
        except Exception as error:
            arrivals.put_nowait((i, error))
        else:
            arrivals.put_nowait((i, None))

    pumps = [asyncio.create_task(pump(i, stream)) for i, stream in enumerate(streams)]
    head: JSON = {}
    try:
        n_open = len(streams)
        while n_open:
            i, chunk = await arrivals.get()
            if isinstance(chunk, BaseException):
                raise chunk
            if chunk is None:
                n_open -= 1
                continue
            head = head or {"id": chunk["id"], "created": chunk["created"]}
            yield {**chunk, **head, "choices": [{**choice, "index": i} for choice in chunk["choices"]]}
    finally:
        for task in pumps:
            task.cancel()
        for stream in streams:
            await stream.aclose()
