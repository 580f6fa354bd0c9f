"""`Completion`: one completion, from logits to OpenAI's objects. It knows no session.

Whoever has the logits drives it: a plain loop (pysa.Llama), or the scheduler with many at a time.

    logits = evaluate(completion.prompt_tokens)
    while (token := completion.pick(logits)) is not None:
        chunks = completion.take_chunks()
        logits = evaluate([token])
    chunks, whole = completion.take_chunks(), completion.result()
"""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pysa.errors import ArgumentError
from pysa.llama.logprobs import LogprobsRecord
from pysa.llama.request import CompletionRequest
from pysa.llama.stops import GrowingText
from pysa.llama.types import CompletionLogprobs, CompletionUsage, PromptTooLongError

if TYPE_CHECKING:
    from pysa.model import Model
    from pysa.prefix import Reuse


class Completion:
    """One completion under way.

    Args:
        model: whose logits come.
        request: what is asked for.
        n_ctx: tokens the session has room for.
        model_name: name in the results, where the request has none.

    Attributes:
        prompt_tokens: what is to be evaluated first.
        tokens: the completion's tokens so far.
        finish_reason: None while it goes on; then `stop`, `length` or what finish() was given.
        wants_prompt_logits: whether add_prompt_logits() is needed before the first pick().

    Raises:
        PromptTooLongError: the prompt leaves no room for an answer.
        ArgumentError: the grammar cannot be read.
    """

    def __init__(self, model: Model, request: CompletionRequest, *, n_ctx: int, model_name: str) -> None:
        n_prompt = len(request.prompt_tokens)
        if n_prompt >= n_ctx:
            raise PromptTooLongError(
                f"prompt: {n_prompt} tokens do not fit: expected at most {n_ctx - 1} in a context of {n_ctx}; "
                "open the model with a larger n_ctx"
            )
        self.request = request
        self.prompt_tokens = list(request.prompt_tokens)
        self.tokens = list(request.first_tokens)
        self.finish_reason: str | None = None
        self.wants_prompt_logits = request.echo and request.logprobs is not None
        self._vocab = model.native.vocab
        self._sampler = request.sampling.make(model, logit_bias=request.logit_bias, grammar=request.grammar)
        self._n_most = min(request.max_tokens or n_ctx, n_ctx - n_prompt)
        self._text = GrowingText(request.stop)
        self._logprobs: LogprobsRecord | None = None
        if request.logprobs is not None:
            self._logprobs = LogprobsRecord(self._vocab, request.logprobs, 0 if request.echo else request.n_prompt_text)
        self._head: dict[str, Any] = {
            "id": f"cmpl-{uuid.uuid4()}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": request.model if request.model is not None else model_name,
        }
        self._ids: npt.NDArray[np.intc] | None = None
        if request.logits_processor is not None or request.stopping_criteria is not None:
            self._ids = np.zeros(n_ctx, dtype=np.intc)
            self._ids[:n_prompt] = self.prompt_tokens
        self._n_first = len(self.tokens)
        self._n_cached = self._n_reevaluated = 0
        self._n_prompt_logprobs = 0
        self._n_given = 0  # tokens of the completion that chunks have told of
        self._n_shown = 0  # characters of it
        self._begun = self._ended = False

    def set_reuse(self, reuse: Reuse) -> None:
        """What the session held of the prompt already, for `usage`."""
        self._n_cached, self._n_reevaluated = reuse.n_reused, reuse.n_reevaluated

    def add_prompt_logits(self, rows: npt.NDArray[np.float32]) -> None:
        """The logits (n, n_vocab) of the prompt's next n positions, from the first on, before the first pick().

        Needed where `wants_prompt_logits`; may come in pieces. The last position's row may be among them.
        """
        if self._logprobs is None:
            return
        prompt = self.prompt_tokens
        if self._n_prompt_logprobs == 0:
            self._logprobs.skip(prompt[0]) if prompt[0] == self._vocab.bos else self._logprobs.add(prompt[0], None)
        for row in rows:
            self._n_prompt_logprobs += 1
            if self._n_prompt_logprobs < len(prompt):
                first = not self._logprobs.tokens  # OpenAI has no value for the first token
                self._logprobs.add(prompt[self._n_prompt_logprobs], None if first else row)

    def pick(self, logits: npt.NDArray[np.float32]) -> int | None:
        """Takes the next token.

        Args:
            logits: float32 (n_vocab,), of the last evaluated token.

        Returns:
            The token to evaluate next; None when the completion is finished.

        Raises:
            ArgumentError: no token is left to choose from, or prompt logits are missing.
        """
        if self.finish_reason is not None:
            return None
        if self.wants_prompt_logits and self._n_prompt_logprobs < len(self.prompt_tokens) - 1:
            raise ArgumentError("echo with logprobs: expected the logits of the whole prompt; see add_prompt_logits()")
        token = self._sampler.sample(self._processed(logits))
        if self._should_stop(logits) or self._vocab.is_eog(token):
            self.finish("stop")
            return None
        if self._logprobs is not None:
            self._logprobs.add(token, logits)
        if self._ids is not None:
            self._ids[self._n_evaluated()] = token
        self.tokens.append(token)
        if self._text.feed(self._vocab.token_to_piece(token, False)):
            self.finish("stop")
        elif len(self.tokens) >= self._n_most:
            self.finish("length")
        return token if self.finish_reason is None else None

    def take_chunks(self) -> list[dict[str, Any]]:
        """The chunks of a stream that are ready; each is given once. What may still become a stop string waits."""
        chunks = []
        if not self._begun:
            self._begun = True
            if self.request.echo:
                chunks.append(self._chunk(self.request.prompt_text))
        ended, ends = self.finish_reason is not None, self._text.ends
        n_safe = len(self._text.kept()) if ended else self._text.n_safe()
        while self._n_given < len(ends) and (ended or ends[self._n_given] <= n_safe):
            if self._text.stop_at == self._n_shown:
                break  # what follows belongs to the stop string
            end = min(ends[self._n_given], n_safe)
            piece = self._text.text[self._n_shown : end]
            if piece or self._logprobs is not None:
                chunks.append(self._chunk(piece, self._token_logprobs(self._n_given)))
            self._n_shown = end
            self._n_given += 1
        if ended and not self._ended:
            self._ended = True
            if self.request.appended:
                chunks.append(self._chunk(self.request.appended))
            chunks.append(self._chunk("", finish_reason=self.finish_reason))
        return chunks

    def finish(self, reason: str) -> None:
        """Ends the completion, if it has not ended."""
        if self.finish_reason is None:
            self.finish_reason = reason

    @property
    def text(self) -> str:
        """The completion's text so far, without prompt and suffix."""
        return self._text.kept()

    def usage(self) -> CompletionUsage:
        """Tokens of the prompt and the completion."""
        n_prompt, n_completion = len(self.prompt_tokens), len(self.tokens)
        return {
            "prompt_tokens": n_prompt,
            "completion_tokens": n_completion,
            "total_tokens": n_prompt + n_completion,
            "prompt_tokens_details": {
                "cached_tokens": self._n_cached,
                "reevaluated_tokens": self._n_reevaluated,
            },
        }

    def result(self) -> dict[str, Any]:
        """The whole completion."""
        text = self.text + self.request.appended
        choice = {
            "text": self.request.prompt_text + text if self.request.echo else text,
            "index": 0,
            "logprobs": None if self._logprobs is None else self._logprobs.as_dict(),
            "finish_reason": self.finish_reason,
        }
        return {**self._head, "choices": [choice], "usage": self.usage()}

    def _processed(self, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        if self.request.logits_processor is None or self._ids is None:
            return logits
        # The processor may write into what it is given.
        changed = np.asarray(self.request.logits_processor(self._seen(), logits.copy()), dtype=np.float32)
        if changed.shape != logits.shape:
            raise ArgumentError(f"logits_processor: wrong shape: expected {logits.shape}, got {changed.shape}")
        return changed

    def _should_stop(self, logits: npt.NDArray[np.float32]) -> bool:
        criteria = self.request.stopping_criteria
        return criteria is not None and bool(criteria(self._seen(), logits))

    def _n_evaluated(self) -> int:
        return len(self.prompt_tokens) + len(self.tokens) - self._n_first

    def _seen(self) -> npt.NDArray[np.intc]:
        assert self._ids is not None
        return self._ids[: self._n_evaluated()]

    def _token_logprobs(self, i: int) -> CompletionLogprobs | None:
        if self._logprobs is None:
            return None
        i += len(self._logprobs.tokens) - len(self._text.ends)  # an echoed prompt comes before
        return self._logprobs.as_dict(i, i + 1)

    def _chunk(
        self, text: str, logprobs: CompletionLogprobs | None = None, finish_reason: str | None = None
    ) -> dict[str, Any]:
        choice = {"text": text, "index": 0, "logprobs": logprobs, "finish_reason": finish_reason}
        return {**self._head, "choices": [choice]}
