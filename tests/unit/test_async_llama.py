"""AsyncLlama: the same answers as Llama, together; cancelling in every way there is; what closing gives back."""

from __future__ import annotations

import asyncio
import gc
import inspect
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pysa
from pysa.errors import ArgumentError, ContextFullError, EvaluationCancelledError
from pysa.llama import AsyncLlama, Llama
from pysa.scheduler import QueueFullError

PROMPT = "the thing and the "
CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}<assistant>"
ARGUMENTS: dict[str, Any] = {"n_ctx": 512, "n_threads": 1, "type_k": "f32", "type_v": "f32", "verbose": False}
WAIT_S = 60.0


@pytest.fixture(scope="session")
def chat_gguf(tiny_gguf: Callable[..., Path]) -> Path:
    """A tiny model with a chat template."""
    return tiny_gguf("llama", n_layer=4, vocab="llama", extra_kv={"tokenizer.chat_template": CHAT})


def use(path: Path, main: Callable[[AsyncLlama], Awaitable[None]], **arguments: Any) -> None:
    """Runs a test's coroutine with an AsyncLlama."""

    async def run() -> None:
        async with AsyncLlama(path, **{**ARGUMENTS, **arguments}) as llama:
            await asyncio.wait_for(main(llama), WAIT_S)

    asyncio.run(run())


async def until(condition: Callable[[], object]) -> None:
    """Waits for what another thread does."""
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, "it never came"
        await asyncio.sleep(0.001)


def without_ids(answer: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in answer.items() if key not in ("id", "created")}


def text_of(chunks: list[dict[str, Any]]) -> str:
    return "".join(chunk["choices"][0]["text"] for chunk in chunks)


# ---- answers


def test_a_completion_is_llamas(chat_gguf: Path) -> None:
    with Llama(chat_gguf, **ARGUMENTS) as llama:
        expected = llama.create_completion(PROMPT, max_tokens=20, temperature=0.0, logprobs=2, echo=True)
        chunks = list(llama.create_completion(PROMPT, max_tokens=20, temperature=0.0, stream=True))

    async def main(llama: AsyncLlama) -> None:
        found = await llama.create_completion(PROMPT, max_tokens=20, temperature=0.0, logprobs=2, echo=True)
        assert found["choices"][0]["text"] == expected["choices"][0]["text"]
        for name in ("token_logprobs", "tokens", "text_offset"):
            mine, theirs = (answer["choices"][0]["logprobs"][name] for answer in (found, expected))
            assert mine[1:] == (pytest.approx(theirs[1:], abs=1e-4) if name == "token_logprobs" else theirs[1:])
        assert found.keys() == expected.keys()
        assert found["usage"] == expected["usage"]
        stream = await llama(PROMPT, max_tokens=20, temperature=0.0, stream=True)
        mine = [chunk async for chunk in stream]
        assert [without_ids(chunk) for chunk in mine] == [without_ids(chunk) for chunk in chunks]
        assert len({chunk["id"] for chunk in mine}) == 1
        whole = stream.result()
        assert whole["choices"][0]["text"] == text_of(chunks)
        assert whole["usage"]["completion_tokens"] == found["usage"]["completion_tokens"]

    use(chat_gguf, main)


def test_a_chat_is_llamas(chat_gguf: Path) -> None:
    messages = [{"role": "user", "content": "and the thing"}]
    with Llama(chat_gguf, **ARGUMENTS) as llama:
        expected = llama.create_chat_completion(messages, max_tokens=16, temperature=0.0)
        chunks = list(llama.create_chat_completion(messages, max_tokens=16, temperature=0.0, stream=True))

    async def main(llama: AsyncLlama) -> None:
        found = await llama.create_chat_completion(messages, max_tokens=16, temperature=0.0)
        assert without_ids(found) == without_ids(expected)
        again = await llama.create_chat_completion(messages, max_tokens=16, temperature=0.0, stream=True)
        assert [without_ids(chunk) async for chunk in again] == [without_ids(chunk) for chunk in chunks]
        openai = pytest.importorskip("openai")
        typed = await llama.create_chat_completion_openai_v1(messages=messages, max_tokens=16, temperature=0.0)
        assert isinstance(typed, openai.types.chat.ChatCompletion)
        assert typed.choices[0].message.content == expected["choices"][0]["message"]["content"]
        stream = await llama.create_chat_completion_openai_v1(messages, max_tokens=16, temperature=0.0, stream=True)
        contents = [chunk.choices[0].delta.content or "" async for chunk in stream]
        assert "".join(contents) == typed.choices[0].message.content

    use(chat_gguf, main, n_parallel=1)


def test_eight_together_are_eight_one_after_another(chat_gguf: Path) -> None:
    prompts = [f"{'thing ' * i}and in {i}" for i in range(8)]
    options: dict[str, Any] = {"max_tokens": 12, "temperature": 0.0}

    async def main(llama: AsyncLlama) -> None:
        alone = [await llama.create_completion(prompt, **options) for prompt in prompts]
        n_alone = llama.stats().n_steps
        together = await asyncio.gather(*(llama.create_completion(prompt, **options) for prompt in prompts))
        assert [a["choices"][0]["text"] for a in together] == [a["choices"][0]["text"] for a in alone]
        assert llama.stats().n_steps - n_alone < n_alone / 2  # shared steps

    use(chat_gguf, main, n_parallel=8)


def test_embeddings_are_llamas(chat_gguf: Path) -> None:
    texts = ["the thing", "and in the end the thing is the thing"]
    with Llama(chat_gguf, pooling_type=1, **ARGUMENTS) as llama:
        expected = llama.create_embedding(texts)
        one, n_tokens = llama.embed(texts[0], normalize=True, return_count=True)

    async def main(llama: AsyncLlama) -> None:
        found = await llama.create_embedding(texts)
        assert [row["index"] for row in found["data"]] == [0, 1]
        for mine, theirs in zip(found["data"], expected["data"], strict=True):
            np.testing.assert_allclose(mine["embedding"], theirs["embedding"], atol=1e-5)
        assert found["usage"] == expected["usage"]
        assert found["model"] == expected["model"]
        mine, n = await llama.embed(texts[0], normalize=True, return_count=True)
        np.testing.assert_allclose(mine, one, atol=1e-5)
        assert n == n_tokens
        assert await llama.embed([]) == []
        with pytest.raises(ArgumentError, match=r"input\[0\]\[0\]: out of range"):
            await llama.pooled([[10**6]], lambda rows: rows)
        with pytest.raises(ContextFullError, match=r"input\[0\]"):
            await llama.pooled([[1] * 513], lambda rows: rows)

    use(chat_gguf, main, pooling_type=1)


def test_it_takes_llamas_arguments_and_answers_its_questions(chat_gguf: Path) -> None:
    for name in ("create_completion", "create_chat_completion", "__call__"):
        assert inspect.signature(getattr(AsyncLlama, name)) == inspect.signature(getattr(Llama, name))
    for name in ("tokenize", "detokenize", "embed", "create_embedding"):
        mine, theirs = (inspect.signature(getattr(kind, name)).parameters for kind in (AsyncLlama, Llama))
        assert list(mine) == list(theirs)
    with Llama(chat_gguf, **ARGUMENTS) as llama:

        async def main(other: AsyncLlama) -> None:
            for name in ("token_bos", "token_eos", "token_nl", "n_vocab", "n_embd", "n_ctx", "pooling_type"):
                assert getattr(other, name)() == getattr(llama, name)(), name
            assert other.tokenize(b"the thing") == llama.tokenize(b"the thing")
            assert other.detokenize([5, 260]) == llama.detokenize([5, 260])
            assert other.tokenizer().decode([260]) == llama.tokenizer().decode([260])
            assert other.metadata == llama.metadata
            assert other.model_path == llama.model_path

        use(chat_gguf, main)
    for name, value in {"vocab_only": True, "logits_all": True, "chat_handler": print}.items():
        with pytest.raises(ArgumentError, match=f"{name}: not for AsyncLlama"):
            AsyncLlama(chat_gguf, **{name: value})
    with pytest.raises(ArgumentError, match="n_parallel"):
        AsyncLlama(chat_gguf, n_parallel=0)


# ---- errors


def test_wrong_requests_raise_at_once(chat_gguf: Path) -> None:
    async def main(llama: AsyncLlama) -> None:
        for stream in (False, True):
            with pytest.raises(ArgumentError, match="temperature"):
                await llama.create_completion(PROMPT, temperature="hot", stream=stream)
            with pytest.raises(ContextFullError, match="512"):
                await llama.create_completion([5] * 512, stream=stream)
            with pytest.raises(TypeError, match="tempperature"):
                await llama.create_completion(PROMPT, tempperature=1)
        assert llama.stats().n_failed == 0  # none of them reached the scheduler

    use(chat_gguf, main)


def test_a_broken_processor_ends_its_own_request(chat_gguf: Path) -> None:
    def broken(ids: Any, logits: Any) -> Any:
        if len(ids) > 20:
            raise KeyError("mine")
        return logits

    options: dict[str, Any] = {"max_tokens": 60, "temperature": 0.0, "logit_bias": {2: float("-inf")}}

    async def main(llama: AsyncLlama) -> None:
        expected = await llama.create_completion(PROMPT, **options)
        good = asyncio.create_task(llama.create_completion(PROMPT, **options))
        with pytest.raises(KeyError, match="mine"):
            await llama.create_completion(PROMPT, logits_processor=broken, **options)
        stream = await llama.create_completion(PROMPT, logits_processor=broken, stream=True, **options)
        chunks: list[dict[str, Any]] = []

        async def read() -> None:
            async for chunk in stream:
                chunks.append(chunk)

        with pytest.raises(KeyError, match="mine"):
            await read()
        assert expected["choices"][0]["text"].startswith(text_of(chunks))
        assert len(chunks) > 2
        assert [chunk async for chunk in stream] == []  # it has ended
        assert (await good)["choices"][0]["text"] == expected["choices"][0]["text"]

    use(chat_gguf, main)


def test_one_too_many_is_refused(chat_gguf: Path) -> None:
    async def main(llama: AsyncLlama) -> None:
        streams = [await llama.create_completion(PROMPT, max_tokens=400, stream=True) for _ in range(2)]
        with pytest.raises(QueueFullError, match="at most 1 waiting"):
            await llama.create_completion(PROMPT)
        for stream in streams:
            await stream.aclose()

    use(chat_gguf, main, n_parallel=1, n_queue=1)


# ---- giving up

ENDLESS: dict[str, Any] = {"max_tokens": 480, "temperature": 0.0, "logit_bias": {2: float("-inf")}}


def is_free(llama: AsyncLlama, n_cancelled: int) -> bool:
    stats = llama.stats()
    return (stats.n_busy, stats.n_queued, stats.n_cancelled) == (0, 0, n_cancelled)


def test_giving_up_frees_the_lane(chat_gguf: Path) -> None:
    async def main(llama: AsyncLlama) -> None:
        # A task that waits for a whole answer is cancelled.
        task = asyncio.create_task(llama.create_completion(PROMPT, **ENDLESS))
        await until(lambda: llama.stats().n_generated_tokens > 3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: is_free(llama, 1))
        # A task that waits for a chunk is.

        async def read() -> None:
            async for _ in await llama.create_completion(PROMPT, stream=True, **ENDLESS):
                pass

        task = asyncio.create_task(read())
        await until(lambda: llama.stats().n_busy == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: is_free(llama, 2))
        # The stream is closed, left, or dropped.
        stream = await llama.create_completion(PROMPT, stream=True, **ENDLESS)
        await anext(stream)
        await stream.aclose()
        await until(lambda: is_free(llama, 3))
        assert [chunk async for chunk in stream] == []
        async with await llama.create_completion(PROMPT, stream=True, **ENDLESS) as stream:
            await anext(stream)
            with pytest.raises(ArgumentError, match="not complete"):
                stream.result()
        await until(lambda: is_free(llama, 4))
        stream = await llama.create_completion(PROMPT, stream=True, **ENDLESS)
        await anext(stream)
        del stream
        gc.collect()
        await until(lambda: is_free(llama, 5))
        # And a time limit.
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(llama.create_completion(PROMPT, **ENDLESS), 0.05)
        await until(lambda: is_free(llama, 6))
        assert llama.stats().n_finished == 0
        found = await llama.create_completion(PROMPT, max_tokens=5, temperature=0.0)
        assert found["usage"]["completion_tokens"] > 0

    use(chat_gguf, main, n_parallel=1)


def test_embeddings_can_be_given_up(chat_gguf: Path) -> None:
    async def main(llama: AsyncLlama) -> None:
        task = asyncio.create_task(llama.embed(["the thing " * 50] * 500))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: is_free(llama, 1))
        assert len(await llama.embed("the")) > 0

    use(chat_gguf, main)


# ---- the end


def test_close_ends_what_is_under_way(chat_gguf: Path) -> None:
    async def main() -> None:
        llama = AsyncLlama(chat_gguf, **ARGUMENTS, n_parallel=1)
        task = asyncio.create_task(llama.create_completion(PROMPT, **ENDLESS))
        await until(lambda: llama.stats().n_generated_tokens > 0)
        waiting = await llama.create_completion(PROMPT, stream=True, **ENDLESS)
        await asyncio.to_thread(llama.close)
        with pytest.raises(EvaluationCancelledError):
            await task
        with pytest.raises(EvaluationCancelledError):
            await anext(waiting)
        with pytest.raises(ArgumentError, match="closed"):
            await llama.create_completion(PROMPT)
        llama.close()

    n_before = threading.active_count()
    asyncio.run(asyncio.wait_for(main(), WAIT_S))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("pysa")]
    assert threading.active_count() <= n_before


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_close_gives_memory_back(tiny_gguf: Callable[..., Path]) -> None:
    # 8 lanes of 1000 tokens: 4 layers * 8 KV heads * (64 + 64) numbers of 4 bytes are 16 KiB a token, 125 MiB in all.
    path = tiny_gguf("llama", n_layer=4, n_head=8, n_head_kv=8, head_dim=64, n_ctx=2048, vocab="llama")
    arguments = {**ARGUMENTS, "n_ctx": 1024, "n_parallel": 8}
    cache_bytes = 8 * 1000 * 4 * 8 * (64 + 64) * 4

    async def fill() -> tuple[int, int, int]:
        async with AsyncLlama(path, **arguments) as llama:
            await llama.create_completion([5] * 4, max_tokens=1)
            before = resident_bytes()
            prompts = [[5 + i] * 996 for i in range(8)]
            await asyncio.gather(*(llama.create_completion(p, max_tokens=4, temperature=0.0) for p in prompts))
            held = llama.stats().cache_bytes
            full = resident_bytes()
        gc.collect()
        return full - before, full - resident_bytes(), held

    grown, given_back, held = asyncio.run(fill())
    assert held >= cache_bytes * 0.99
    assert grown > cache_bytes * 0.9
    assert given_back > cache_bytes * 0.9


def test_a_process_that_never_closes_ends_by_itself(chat_gguf: Path) -> None:
    program = f"""
import asyncio
from pysa.llama import AsyncLlama

async def main():
    llama = AsyncLlama({str(chat_gguf)!r}, n_threads=1, verbose=False)
    global stream, kept
    kept = llama
    stream = await llama.create_completion("the", max_tokens=400, stream=True)
    print((await anext(stream))["object"])

asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "text_completion\n", "")


def test_it_is_imported_only_when_used() -> None:
    program = "import pysa.llama, sys; print('asyncio' in sys.modules, 'pysa.llama.async_llama' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "False False\n"
    assert pysa.llama.AsyncLlama is AsyncLlama
