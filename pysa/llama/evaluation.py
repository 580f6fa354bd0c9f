"""Evaluating and sampling token by token, below completions: position, logits, eval(), sample(), generate()."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pysa import _native
from pysa._arguments import check_int
from pysa.errors import ArgumentError
from pysa.grammar import LlamaGrammar
from pysa.llama.base import LlamaBase
from pysa.llama.context import Logits
from pysa.llama.logprobs import log_softmax
from pysa.llama.request import LogitsProcessor, StoppingCriteria, check_seed
from pysa.prefix import common_prefix
from pysa.sampling import SamplingParams

_SETTINGS = (
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "repeat_penalty",
    "frequency_penalty",
    "presence_penalty",
    "mirostat_mode",
    "mirostat_tau",
    "mirostat_eta",
)


class Evaluation(LlamaBase):
    """The part of pysa.Llama that knows tokens and logits only."""

    @property
    def n_tokens(self) -> int:
        """Tokens held. Set lower, it forgets those after it when the next ones are evaluated."""
        return self._held().n_tokens

    @n_tokens.setter
    def n_tokens(self, n: int) -> None:
        with self._lock:
            self._free().n_tokens = n

    @property
    def input_ids(self) -> npt.NDArray[np.intc]:
        """(n_ctx,), of which the first n_tokens are the tokens held."""
        return self._held().input_ids

    @property
    def scores(self) -> Logits:
        """(n_ctx, n_vocab), of which the first n_tokens are the logits of the tokens held.

        Raises:
            ArgumentError: they are not kept, for want of logits_all=True.
        """
        scores = self._held().scores
        if scores is None:
            raise ArgumentError("scores: not kept: expected logits_all=True; eval_logits has the last token's")
        return scores

    @property
    def _input_ids(self) -> npt.NDArray[np.intc]:
        return self.input_ids[: self.n_tokens]

    @property
    def _scores(self) -> Logits:
        return self.scores[: self.n_tokens]

    @property
    def eval_tokens(self) -> deque[int]:
        """The tokens held."""
        return deque(self._input_ids.tolist(), maxlen=self.n_ctx())

    @property
    def eval_logits(self) -> deque[list[float]]:
        """The logits of the tokens held; without logits_all those of the last one."""
        context = self._held()
        if context.scores is not None:
            return deque(self._scores.tolist(), maxlen=self.n_ctx())
        return deque([] if context.last is None else [context.last.tolist()], maxlen=1)

    def reset(self) -> None:
        """Forgets all tokens."""
        with self._lock:
            self._free().reset()
            self._stepwise = None

    def eval(self, tokens: Sequence[int]) -> None:
        """Evaluates tokens after those held.

        Raises:
            ContextFullError: they do not fit in n_ctx.
            ArgumentError: a token is no id of the vocabulary.
        """
        with self._lock:
            if len(tokens):
                self._free().eval(tokens)

    # ---- sampling token by token

    def set_seed(self, seed: int) -> None:
        """Sets where the seeds of completions come from, and the seed of sample() and generate()."""
        self._seed = check_int("seed", seed, -(2**63), 2**63)
        self._stepwise = None

    def _sampling(self, settings: dict[str, Any]) -> SamplingParams:
        return SamplingParams(**settings, penalty_last_n=self.last_n_tokens_size, seed=check_seed(self._seed))

    def sample(
        self,
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        temp: float = 0.80,
        repeat_penalty: float = 1.0,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        tfs_z: float = 1.0,
        mirostat_mode: int = 0,
        mirostat_eta: float = 0.1,
        mirostat_tau: float = 5.0,
        penalize_nl: bool = True,
        logits_processor: LogitsProcessor | None = None,
        grammar: LlamaGrammar | None = None,
        idx: int | None = None,
    ) -> int:
        """Picks the token after the last one evaluated, or after position `idx`, which takes logits_all.

        Calls with the same arguments go on: the random numbers, the penalties and the grammar know what was picked
        before, until reset() or set_seed(). `tfs_z` and `penalize_nl` have no effect, as in llama.cpp.

        Raises:
            ArgumentError: nothing was evaluated yet, or an argument is out of range.
        """
        settings = _settings(locals())
        with self._lock:
            context = self._held()
            logits = context.last if idx is None else self._scores[idx]
            if logits is None:
                raise ArgumentError("sample: no logits: expected evaluated tokens; call eval() first")
            key = (settings, id(grammar))
            if self._stepwise is None or self._stepwise[0] != key:
                self._stepwise = (key, self._sampling(settings).make(self._model, grammar=grammar))
            n_seen = context.n_tokens if idx is None else range(context.n_tokens)[idx] + 1
            return _pick(self._stepwise[1], logits, context.input_ids[:n_seen], logits_processor)

    def generate(
        self,
        tokens: Sequence[int],
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        temp: float = 0.80,
        repeat_penalty: float = 1.0,
        reset: bool = True,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        tfs_z: float = 1.0,
        mirostat_mode: int = 0,
        mirostat_tau: float = 5.0,
        mirostat_eta: float = 0.1,
        penalize_nl: bool = True,
        logits_processor: LogitsProcessor | None = None,
        stopping_criteria: StoppingCriteria | None = None,
        grammar: LlamaGrammar | None = None,
    ) -> Generator[int, Sequence[int] | None, None]:
        """Evaluates tokens, then gives and evaluates one after another, those that end a generation among them.

        Tokens passed by the generator's send() are evaluated after the one it gave last. A token is evaluated when the
        next one is asked for. `tfs_z` and `penalize_nl` have no effect, as in llama.cpp.

        Args:
            tokens: the prompt; with `reset` what is held of it is kept and the rest forgotten, without it they are
                evaluated after those held.

        Yields:
            Token ids.

        Raises:
            ArgumentError: at once, for an argument of the wrong type or out of range.
            ContextFullError: when n_ctx is reached.
        """
        settings = _settings(locals())
        sampler = self._sampling(settings).make(self._model, grammar=grammar)
        return self._generate(list(tokens), reset, sampler, logits_processor, stopping_criteria)

    def _generate(
        self,
        tokens: list[int],
        reset: bool,
        sampler: _native.Sampler,
        processor: LogitsProcessor | None,
        criteria: StoppingCriteria | None,
    ) -> Generator[int, Sequence[int] | None, None]:
        while True:
            with self._lock:
                context = self._free()
                logits = context.begin(tokens) if reset else context.eval(tokens)
                seen = context.input_ids[: context.n_tokens]
                token = _pick(sampler, logits, seen, processor)
                if criteria is not None and criteria(seen, logits):
                    return
            sent = yield token
            reset, tokens = False, [token, *(sent if sent is not None else ())]

    # ---- helpers that code written for llama-cpp-python calls

    @staticmethod
    def logits_to_logprobs(logits: npt.ArrayLike, axis: int = -1) -> Logits:
        """Logits to the logarithms of probabilities."""
        return log_softmax(logits, axis)

    @staticmethod
    def longest_token_prefix(a: Sequence[int], b: Sequence[int]) -> int:
        """How many tokens two sequences begin with in common."""
        return common_prefix(a, b)


def _settings(arguments: dict[str, Any]) -> dict[str, Any]:
    """The sampling settings among a method's arguments, where `temp` is the temperature."""
    return {"temperature": arguments["temp"], **{name: arguments[name] for name in _SETTINGS}}


def _pick(
    sampler: _native.Sampler, logits: Logits, seen: npt.NDArray[np.intc], processor: LogitsProcessor | None
) -> int:
    if processor is not None:
        logits = np.asarray(processor(seen, logits.copy()), dtype=np.float32)
    return sampler.sample(logits)
