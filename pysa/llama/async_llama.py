"""`AsyncLlama`: pysa.Llama for asyncio. Requests run together in one batch; see pysa.scheduler.

async with AsyncLlama("m.gguf", n_ctx=4096, n_parallel=4) as llama:
    answer = await llama.create_chat_completion(messages)
    async for chunk in await llama.create_chat_completion(messages, stream=True):
        ...
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Sequence
from typing import Any

from pysa._arguments import PathLike, check_bool, check_int, check_tokens
from pysa.errors import ArgumentError, ContextFullError
from pysa.llama.async_base import AsyncBase, Requests, as_of
from pysa.llama.async_stream import ChunkStream, result_of
from pysa.llama.embedding import Rows, normalized, pool
from pysa.llama.llama import Llama
from pysa.llama.pretrained import download
from pysa.llama.types import CreateEmbeddingResponse
from pysa.scheduler import Scheduler, Stats
from pysa.scheduler.errand import RowsErrand
from pysa.scheduler.scheduler import N_PIECE
from pysa.session import Session

JSON = dict[str, Any]

WITHOUT = {"vocab_only": False, "logits_all": False, "chat_handler": None}  # what only a Llama of one session has


class AsyncLlama(AsyncBase):
    """A model as pysa.Llama has it, for asyncio: the same arguments and results, awaited. An async context manager.

    Requests of any number of tasks are evaluated together, n_parallel at a time, by one thread; the others wait.
    Cancelling a task ends its request within one ubatch and leaves the rest as they are.

    Args:
        model_path: the GGUF file.
        n_parallel: requests served at once. Each has n_ctx tokens for itself; memory grows with those held.
        n_queue: most requests that wait; one more raises QueueFullError.
        n_piece: most tokens of a prompt evaluated between two tokens of other requests.
        arguments: those of pysa.Llama; without `vocab_only`, `logits_all` and `chat_handler`.

    Raises:
        ArgumentError: an argument is of the wrong type or out of range.
        ModelFileError: the file is missing, damaged or inconsistent.
    """

    def __init__(
        self,
        model_path: PathLike,
        *,
        n_parallel: int = 4,
        n_queue: int = 64,
        n_piece: int = N_PIECE,
        **arguments: Any,
    ) -> None:
        for name, value in WITHOUT.items():
            if arguments.get(name, value) != value:
                raise ArgumentError(f"{name}: not for AsyncLlama: expected {value!r}, got {arguments[name]!r}")
        self._llama = llama = Requests(model_path, check_int("n_parallel", n_parallel, 1, 256), **arguments)
        try:
            sessions = iter([llama.session])  # it has opened one already

            def make_session() -> Session:  # without self: an AsyncLlama that is dropped ends its thread
                return next(sessions, None) or llama.make_session()

            self._scheduler = Scheduler(
                self._llama.model, make_session, n_parallel, n_queue=n_queue, n_piece=n_piece, cache=self._llama._disk
            )
        except BaseException:
            self._llama.close()
            raise

    async def __aenter__(self) -> AsyncLlama:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.close)

    def __repr__(self) -> str:
        return f"<pysa.AsyncLlama {self._llama.model_path!r}>"

    @classmethod
    async def from_pretrained(cls, repo_id: str, filename: str | None, **arguments: Any) -> AsyncLlama:
        """Opens a model of the Hugging Face hub; as Llama.from_pretrained, with the constructor's arguments besides."""
        places = {name: arguments.pop(name, None) for name in ("additional_files", "local_dir", "cache_dir")}
        arguments.pop("local_dir_use_symlinks", None)
        path = await asyncio.to_thread(download, repo_id, filename, **places)
        return await asyncio.to_thread(
            functools.partial(cls, path, cache_dir=arguments.pop("session_cache_dir", None), **arguments)
        )

    # ---- answers

    @as_of(Llama.create_completion)
    async def create_completion(self, *args: Any, **arguments: Any) -> Any:
        """Completes a text: as Llama.create_completion.

        Returns:
            OpenAI's completion as a dict, or with `stream` an async iterator of chunks, a ChunkStream.

        Raises:
            QueueFullError: n_queue requests wait.
            EvaluationCancelledError: close() came first.
            Exception: as Llama.create_completion.
        """
        return await self._answer(self._llama.create_completion, args, arguments)

    __call__ = create_completion

    @as_of(Llama.create_chat_completion)
    async def create_chat_completion(self, *args: Any, **arguments: Any) -> Any:
        """Answers a conversation: as Llama.create_chat_completion. Returns and raises as create_completion()."""
        return await self._answer(self._llama.create_chat_completion, args, arguments)

    async def create_chat_completion_openai_v1(self, *args: Any, **arguments: Any) -> Any:
        """create_chat_completion() with the classes of the `openai` package in place of dicts."""
        try:
            from openai.types.chat import ChatCompletion, ChatCompletionChunk  # noqa: PLC0415
        except ImportError as error:
            raise ImportError("create_chat_completion_openai_v1: openai is missing; pip install openai") from error
        found = await self.create_chat_completion(*args, **arguments)
        if not isinstance(found, ChunkStream):
            return ChatCompletion(**found)
        return (ChatCompletionChunk(**chunk) async for chunk in found)

    # ---- embeddings

    async def embed(
        self,
        input: str | Sequence[str],
        normalize: bool = False,
        truncate: bool = True,
        return_count: bool = False,
    ) -> Any:
        """Embeds texts: as Llama.embed. They have a session of their own, between the steps of the batch."""
        scale = check_bool("normalize", normalize)
        texts = [input] if isinstance(input, str) else list(input)
        prompts = [
            self._llama._embedding_tokens(i, text, check_bool("truncate", truncate)) for i, text in enumerate(texts)
        ]

        def pooled(rows: Rows) -> Rows:
            row = pool(rows, self._llama.pooling_type())
            return normalized(row) if scale else row

        found = [row.tolist() for row in await self.pooled(prompts, pooled)]
        output = found[0] if isinstance(input, str) else found
        return (output, sum(map(len, prompts))) if return_count else output

    async def create_embedding(
        self,
        input: str | Sequence[str],
        model: str | None = None,
    ) -> CreateEmbeddingResponse:
        """Embeds texts, in the form of OpenAI's embeddings: as Llama.create_embedding."""
        texts = [input] if isinstance(input, str) else list(input)
        rows, n_tokens = await self.embed(texts, return_count=True)
        return {
            "object": "list",
            "data": [{"object": "embedding", "embedding": row, "index": i} for i, row in enumerate(rows)],
            "model": model if model is not None else self._llama.model_path,
            "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
        }

    async def pooled(self, prompts: Sequence[Sequence[int]], pool: Callable[[Rows], Rows]) -> list[Rows]:
        """The hidden rows of some prompts, each reduced by `pool` from (n_tokens, n_embd), in the scheduler's thread.

        Raises:
            ArgumentError: an id is no token, or a prompt is empty.
            ContextFullError: a prompt does not fit in n_ctx.
        """
        n_vocab = self._llama.n_vocab()
        ids = [check_tokens(prompt, n_vocab, name=f"input[{i}]") for i, prompt in enumerate(prompts)]
        for i, prompt in enumerate(ids):
            if len(prompt) > self.n_ctx():
                raise ContextFullError(
                    f"input[{i}]: does not fit the context: expected at most {self.n_ctx()} tokens, got {len(prompt)}"
                )
        if not ids:
            return []
        errand = RowsErrand(ids, pool)
        found: list[Rows] = await result_of(functools.partial(self._scheduler.submit_errand, errand))
        return found

    # ---- the scheduler

    def n_ctx(self) -> int:
        """Most tokens of a request, prompt and answer."""
        return self._scheduler.n_ctx

    @property
    def closed(self) -> bool:
        """Whether it takes no requests any more: it was closed, or its thread has stopped after a fault."""
        return self._scheduler.closed

    def stats(self) -> Stats:
        """Figures of the scheduler."""
        return self._scheduler.stats()

    def close(self) -> None:
        """Ends every request, the thread and the sessions, and lets the model go. Takes one ubatch at most."""
        self._scheduler.close()
        self._llama.close()

    async def _answer(self, prepare: Callable[..., Any], args: tuple[Any, ...], arguments: JSON) -> Any:
        # A long prompt takes a while to become tokens, and a schema to become a grammar.
        completion, stream = await asyncio.to_thread(prepare, *args, **arguments)
        if stream:
            return ChunkStream(self._scheduler, completion)
        return await result_of(functools.partial(self._scheduler.submit, completion, None))
