"""`CompletionRequest`: what one completion is asked for, checked, from the arguments of create_completion."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pysa._arguments import check_bool, check_int, check_text, check_tokens
from pysa.errors import ArgumentError
from pysa.grammar import LlamaGrammar
from pysa.llama.infill import fill_in_tokens
from pysa.sampling import INT32_MAX, SamplingParams, check_logit_bias

if TYPE_CHECKING:
    from pysa.model import Model

Ids: TypeAlias = npt.NDArray[np.intc]
Logits: TypeAlias = npt.NDArray[np.float32]
LogitsProcessor: TypeAlias = Callable[[Ids, Logits], Logits]
StoppingCriteria: TypeAlias = Callable[[Ids, Logits], bool]


class LogitsProcessorList(list[LogitsProcessor]):
    """Functions of (ids so far, logits) that give changed logits, applied one after another."""

    def __call__(self, input_ids: Ids, scores: Logits) -> Logits:
        """The logits after all of them."""
        for processor in self:
            scores = processor(input_ids, scores)
        return scores


class StoppingCriteriaList(list[StoppingCriteria]):
    """Functions of (ids so far, logits) that say whether to stop; all are asked."""

    def __call__(self, input_ids: Ids, logits: Logits) -> bool:
        """Whether any of them says stop."""
        votes = [criterion(input_ids, logits) for criterion in self]
        return any(votes)


@dataclass
class CompletionRequest:
    """One completion's settings.

    Attributes:
        prompt_tokens: what is evaluated, special tokens and all.
        prompt_text: the prompt as text, for `echo` and text offsets.
        n_prompt_text: offset at which the completion's text begins: characters of a text, tokens of a list of tokens.
        first_tokens: tokens the completion has from the start: BOS after an empty prompt.
        max_tokens: most tokens to give; None: as many as fit.
        stop: strings that end the text.
        logprobs: likeliest tokens to list for each token; None: no logprobs.
        echo: the text begins with the prompt.
        appended: what comes after the text: the suffix, where the model has no tokens for filling in.
        sampling: how tokens are picked.
        logit_bias: token id -> what is added to its logit.
        grammar: what the text must follow.
        logits_processor: changes logits before a token is picked.
        stopping_criteria: asked after each picked token; True ends the completion without it.
        stream: whether chunks are wanted as they come.
        model: name in the results; None is the model's path.
    """

    prompt_tokens: list[int]
    prompt_text: str = ""
    n_prompt_text: int = 0
    first_tokens: list[int] = field(default_factory=list)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    echo: bool = False
    appended: str = ""
    sampling: SamplingParams = field(default_factory=SamplingParams)
    logit_bias: dict[int, float] = field(default_factory=dict)
    grammar: LlamaGrammar | None = None
    logits_processor: LogitsProcessor | None = None
    stopping_criteria: StoppingCriteria | None = None
    stream: bool = False
    model: str | None = None

    @classmethod
    def from_arguments(
        cls,
        pysa_model: Model,
        prompt: str | Sequence[int],
        suffix: str | None = None,
        max_tokens: int | None = 16,
        temperature: float = 0.8,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        logprobs: int | None = None,
        echo: bool = False,
        stop: str | Sequence[str] | None = None,
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
        *,
        penalty_last_n: int = 64,
        spm_infill: bool = False,
    ) -> CompletionRequest:
        """A request from the arguments of Llama.create_completion, in its order.

        Args:
            pysa_model: the model that answers.
            prompt: text, which gets the special tokens the model expects around it; or token ids, taken as they are.
            suffix: text after the gap that the completion fills.
            max_tokens: most tokens to give; None, 0 or less: as many as fit.
            stop: a string or several that end the text.
            seed: of the random numbers, taken modulo 2**32; None or -1 draws one.
            tfs_z: has no effect, as in llama.cpp, which has dropped it.
            model: the name in the results.
            penalty_last_n: generated tokens that the penalties look at.
            spm_infill: the suffix comes before the prompt.

        The others are those of SamplingParams and of this class.

        Raises:
            ArgumentError: an argument is of the wrong type or out of range, or the prompt comes to no tokens.
        """
        if tfs_z != 1.0:
            warnings.warn("tfs_z: llama.cpp has dropped it: it has no effect", stacklevel=3)
        sampling = SamplingParams(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            typical_p=typical_p,
            repeat_penalty=repeat_penalty,
            frequency_penalty=frequency_penalty,
            presence_penalty=presence_penalty,
            penalty_last_n=penalty_last_n,
            mirostat_mode=mirostat_mode,
            mirostat_tau=mirostat_tau,
            mirostat_eta=mirostat_eta,
            seed=check_seed(seed),
        )
        if suffix is not None:
            suffix = check_text("suffix", suffix)
        if isinstance(prompt, str):
            text = check_text("prompt", prompt)
            tokens, appended = _text_tokens(pysa_model, text, suffix, spm_infill)
            n_text = len(text)
        else:
            given = check_tokens(prompt, pysa_model.n_vocab, name="prompt", allow_empty=True).tolist()
            tokens, appended = given, suffix or ""
            if suffix is not None:
                tokens, appended = fill_in_tokens(pysa_model, given, suffix, spm_infill) or (given, suffix)
            text = pysa_model.native.vocab.detokenize(given, False).decode("utf-8", "ignore") if echo else ""
            n_text = len(given)
        if not tokens:
            raise ArgumentError("prompt: empty: expected text or tokens, got none; the model adds no BOS to a text")
        bos = pysa_model.native.vocab.bos
        if isinstance(prompt, str) and bos is not None and tokens[:2] == [bos, bos]:
            warnings.warn(
                "prompt: it begins with BOS, which the model adds itself, so it now has two; leave it out of the text",
                RuntimeWarning,
                stacklevel=3,
            )
        if max_tokens is not None:
            max_tokens = check_int("max_tokens", max_tokens, -INT32_MAX, INT32_MAX)
        return cls(
            prompt_tokens=tokens,
            prompt_text=text,
            n_prompt_text=n_text,
            first_tokens=[bos] if len(prompt) == 0 and bos is not None else [],
            max_tokens=max_tokens if max_tokens is not None and max_tokens > 0 else None,
            stop=check_stop(stop),
            logprobs=None if logprobs is None else check_int("logprobs", logprobs, 0, INT32_MAX),
            echo=check_bool("echo", echo),
            appended=appended,
            sampling=sampling,
            logit_bias=check_logit_bias(logit_bias, pysa_model.n_vocab),
            grammar=grammar,
            logits_processor=_check_callable("logits_processor", logits_processor),
            stopping_criteria=_check_callable("stopping_criteria", stopping_criteria),
            stream=check_bool("stream", stream),
            model=None if model is None else check_text("model", model),
        )


def check_stop(stop: object) -> tuple[str, ...]:
    """Stop strings from one, several or None.

    Raises:
        ArgumentError: something else, or an empty string, which would end every text at once.
    """
    if stop is None:
        return ()
    if isinstance(stop, str):
        stop = [stop]
    if not isinstance(stop, list | tuple):
        raise ArgumentError(f"stop: wrong type: expected a string or a list of strings, got {type(stop).__name__}")
    for i, text in enumerate(stop):
        if not check_text(f"stop[{i}]", text):
            raise ArgumentError(f"stop[{i}]: empty: expected some text, got none; leave it out")
    return tuple(stop)


def check_seed(seed: object) -> int | None:
    """A seed as libllama takes it; None for -1, which asks for one to be drawn."""
    if seed is None:
        return None
    value = check_int("seed", seed, -(2**63), 2**63) % 2**32
    return None if value == 2**32 - 1 else value


def _check_callable(name: str, value: Any) -> Any:
    if value is not None and not callable(value):
        raise ArgumentError(f"{name}: wrong type: expected something to call, got {type(value).__name__}")
    return value


def _text_tokens(model: Model, text: str, suffix: str | None, spm_infill: bool) -> tuple[list[int], str]:
    """The tokens of a prompt's text with BOS and EOS as the model wants them; and what is appended to the answer."""
    vocab, appended = model.native.vocab, ""
    tokens: list[int] | None = None
    if suffix is not None:
        filled = fill_in_tokens(model, vocab.tokenize(text, False, False) if text else [], suffix, spm_infill)
        tokens, appended = filled or (None, suffix)
    if tokens is None:
        tokens = vocab.tokenize(text, False, True) if text else []
    separator = model.metadata.get("tokenizer.ggml.seperator_token_id")  # spelled so in GGUF
    bos = [vocab.bos] if vocab.add_bos and vocab.bos is not None else []
    eos = [separator] if isinstance(separator, int) else [vocab.eos] if vocab.add_eos and vocab.eos is not None else []
    return bos + tokens + eos, appended
