"""Completions and chat: from arguments to a Completion, and the plain loop that drives it."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pysa.errors import ArgumentError
from pysa.grammar import LlamaGrammar
from pysa.llama.caches import BaseLlamaCache, LlamaDiskCache
from pysa.llama.completion import Completion
from pysa.llama.context import Context, Driven, Logits
from pysa.llama.request import CompletionRequest, LogitsProcessor, StoppingCriteria
from pysa.llama.state import SavedStates
from pysa.prefix import common_prefix
from pysa.prefix_cache import PrefixCache

Result = dict[str, Any]


class Completions(SavedStates):
    """The part of pysa.Llama that completes texts and chats."""

    model_path: str
    spm_infill: bool
    chat_format: str | None
    chat_handler: Any
    cache: BaseLlamaCache | LlamaDiskCache | None
    _disk: PrefixCache | None

    def create_completion(
        self,
        prompt: str | Sequence[int],
        suffix: str | None = None,
        max_tokens: int | None = 16,
        temperature: float = 0.8,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        logprobs: int | None = None,
        echo: bool = False,
        stop: str | Sequence[str] | None = [],
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        repeat_penalty: float = 1.0,
        top_k: int = 40,
        stream: bool = False,
        seed: int | None = None,
        tfs_z: float = 1.0,
        mirostat_mode: int = 0,
        mirostat_tau: float = 5.0,
        mirostat_eta: float = 0.1,
        model: str | None = None,
        stopping_criteria: StoppingCriteria | None = None,
        logits_processor: LogitsProcessor | None = None,
        grammar: LlamaGrammar | None = None,
        logit_bias: Mapping[Any, float] | None = None,
    ) -> Any:
        """Completes a text.

        Args:
            prompt: text, or token ids that are taken as they are.
            suffix: what follows the gap that the completion fills; models without tokens for that get it appended.
            max_tokens: most tokens to give; None, 0 or less: as many as fit in n_ctx.
            temperature: 0 takes the likeliest token; the filters and penalties are those of SamplingParams.
            logprobs: list so many of the likeliest tokens for each.
            echo: give the prompt too.
            stop: strings that end the text; they are not given.
            stream: give chunks as they come.
            seed: of the random numbers; None takes the next of the seeds that come from the Llama's own.
            model: name in the result; None is the model's path.
            stopping_criteria: is asked after each token, with the ids before it and the logits it was picked from.
            logits_processor: changes logits before a token is picked.
            grammar: what the text must follow.
            logit_bias: token id -> what is added to its logit.

        Returns:
            OpenAI's completion as a dict, or with `stream` an iterator of chunks.

        Raises:
            PromptTooLongError: the prompt leaves no room for an answer: a ContextFullError and a ValueError.
            ArgumentError: an argument is of the wrong type or out of range.
        """
        given = {name: value for name, value in locals().items() if name != "self"}
        request = CompletionRequest.from_arguments(
            self._model,
            **{**given, "seed": self._next_seed(seed)},
            penalty_last_n=self.last_n_tokens_size,
            spm_infill=self.spm_infill,
        )
        return self._run(Completion(self._model, request, n_ctx=self.n_ctx(), model_name=self.model_path), stream)

    __call__ = create_completion

    def create_chat_completion(
        self,
        messages: Sequence[Mapping[str, Any]],
        functions: Sequence[Mapping[str, Any]] | None = None,
        function_call: str | Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str | Mapping[str, Any] | None = None,
        temperature: float = 0.2,
        top_p: float = 0.95,
        top_k: int = 40,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        stream: bool = False,
        stop: str | Sequence[str] | None = [],
        seed: int | None = None,
        response_format: Mapping[str, Any] | None = None,
        max_tokens: int | None = None,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        repeat_penalty: float = 1.0,
        tfs_z: float = 1.0,
        mirostat_mode: int = 0,
        mirostat_tau: float = 5.0,
        mirostat_eta: float = 0.1,
        model: str | None = None,
        logits_processor: LogitsProcessor | None = None,
        grammar: LlamaGrammar | None = None,
        logit_bias: Mapping[Any, float] | None = None,
        logprobs: bool | None = None,
        top_logprobs: int | None = None,
    ) -> Any:
        """Answers a conversation through the model's chat template, or the one that `chat_format` names.

        Args:
            messages: turns, oldest first, each with `role` and `content`.
            tools: functions that the model may call, as OpenAI describes them.
            tool_choice: `none`, `auto`, `required`, or the one to be called.
            response_format: `json_object`, with a `schema` or without, or `json_schema`: what the answer must be.
            max_tokens: most tokens to give; None: as many as fit in n_ctx.
            logprobs: list log-probabilities, with the `top_logprobs` likeliest tokens for each.
            functions, function_call: the older form of tools and tool_choice.

        The others are those of create_completion().

        Returns:
            OpenAI's chat.completion as a dict, or with `stream` an iterator of chunks.

        Raises:
            PromptTooLongError: the conversation leaves no room for an answer.
            ArgumentError: an argument is wrong, or the template refuses the messages.
        """
        given = {name: value for name, value in locals().items() if name not in ("self", "messages")}
        # Imported here: chats alone need jinja2.
        from pysa.llama.chat import ChatCompletion, chat_request  # noqa: PLC0415
        from pysa.llama.chat_handler import registered_handler  # noqa: PLC0415

        handler = self.chat_handler or registered_handler(self.chat_format)
        if handler is not None:
            return handler(llama=self, messages=messages, **given)
        given |= {"seed": self._next_seed(seed), "penalty_last_n": self.last_n_tokens_size}
        request = chat_request(self._model, messages, chat_format=self.chat_format, **given)
        return self._run(ChatCompletion(self._model, request, n_ctx=self.n_ctx(), model_name=self.model_path), stream)

    def create_chat_completion_openai_v1(self, *args: Any, **kwargs: Any) -> Any:
        """create_chat_completion() with the classes of the `openai` package in place of dicts.

        Raises:
            ImportError: openai is not installed.
        """
        try:
            from openai.types.chat import ChatCompletion, ChatCompletionChunk  # noqa: PLC0415
        except ImportError as error:
            raise ImportError("create_chat_completion_openai_v1: openai is missing; pip install openai") from error
        found = self.create_chat_completion(*args, **kwargs)
        if isinstance(found, Mapping):
            return ChatCompletion(**found)
        return (ChatCompletionChunk(**chunk) for chunk in found)

    def set_cache(self, cache: BaseLlamaCache | LlamaDiskCache | None) -> None:
        """Keeps conversations beyond the last one: a LlamaRAMCache their states, a LlamaDiskCache a folder of sessions.

        A completion takes the one that spares most of its prompt, and is kept when it ends. None stops that.
        """
        if cache is not None and not isinstance(cache, LlamaDiskCache) and not hasattr(cache, "__getitem__"):
            raise ArgumentError(
                f"cache: expected a LlamaRAMCache, a LlamaDiskCache or None, got {type(cache).__name__}"
            )
        with self._lock:
            if isinstance(cache, LlamaDiskCache):
                self._disk = PrefixCache(cache.cache_dir, cache.capacity_bytes)
            elif isinstance(self.cache, LlamaDiskCache):
                self._disk = None
            self._held().cache = self._disk
            self.cache = cache

    def _next_seed(self, seed: int | None) -> int:
        """A completion's seed; where none is given the next of a chain, as llama-cpp-python draws them."""
        with self._lock:
            self._seed = seed if seed is not None else random.Random(self._seed).randint(0, 2**32)
            return self._seed

    def _run(self, completion: Driven, stream: bool) -> Any:
        return self._stream(completion) if stream else self._complete(completion)

    def _complete(self, completion: Driven) -> Result:
        with self._lock, self._taken() as context:
            logits = self._start(context, completion)
            while (token := completion.pick(logits)) is not None:
                logits = context.eval([token])
            self._end(context)
        return completion.result()

    def _stream(self, completion: Driven) -> Iterator[Result]:
        # The lock is held for a step at a time: a stream may be left lying, or its next step come in another thread.
        with self._taken() as context:
            with self._lock:
                logits = self._start(context, completion)
            while True:
                with self._lock:
                    token = completion.pick(logits)
                    if token is None:
                        self._end(context)
                yield from completion.take_chunks()
                if token is None:
                    return
                with self._lock:
                    logits = context.eval([token])

    def _start(self, context: Context, completion: Driven) -> Logits:
        cache = self.cache
        if cache is not None and not isinstance(cache, LlamaDiskCache):
            prompt = completion.prompt_tokens
            try:
                state = cache[prompt]
            except KeyError:
                pass
            else:
                n_kept = common_prefix(state.input_ids[: state.n_tokens], prompt)
                if n_kept > common_prefix(context.input_ids[: context.n_tokens], prompt):
                    self._load(context, state)
        return context.start(completion)

    def _end(self, context: Context) -> None:
        cache = self.cache
        if cache is not None and not isinstance(cache, LlamaDiskCache):
            cache[tuple(np.asarray(context.input_ids[: context.n_tokens]).tolist())] = self._save(context)
        context.keep()
