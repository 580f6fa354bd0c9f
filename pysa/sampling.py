"""`SamplingParams`: how a token is picked from logits. The chain itself is libllama's, made by `make()`.

Used by everything that generates: pysa.Llama, the scheduler, the server and the chat.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pysa import _native
from pysa._arguments import check_float, check_int
from pysa.errors import ArgumentError

if TYPE_CHECKING:
    from pysa.grammar import LlamaGrammar
    from pysa.model import Model

INT32_MAX = 2**31 - 1
MAX_SEED = 2**32 - 2  # libllama reads the next one as "draw one"
# libllama's filters take no share of 0, and no min_p of 1; these keep one token as well.
_TINY = float(np.finfo(np.float32).tiny)
_BELOW_ONE = float(np.nextafter(np.float32(1), np.float32(0)))


@dataclass(frozen=True)
class SamplingParams:
    """Checked settings of the sampler chain: logit bias, penalties, grammar, then the choice.

    Args:
        temperature: 0 takes the likeliest token; above, logits are divided by it; below, the model's own
            distribution is sampled as it is.
        top_k: keep the k likeliest tokens; 0 or less keeps all.
        top_p: keep the likeliest tokens that make up this share of the probability, 0..1; 0 keeps one.
        min_p: keep tokens with at least this share of the likeliest one's probability, 0..1.
        typical_p: keep the tokens closest to the expected surprise that make up this share, 0..1; 1 keeps all.
        repeat_penalty: divides the logits of tokens among the last ones, above 0; 1 changes nothing.
        frequency_penalty: is subtracted for each time a token is among the last ones.
        presence_penalty: is subtracted once from a token among the last ones.
        penalty_last_n: generated tokens that the penalties look at, 0..1048576.
        mirostat_mode: 1 or 2 takes mirostat in place of the filters above; 0 does not.
        mirostat_tau: the surprise mirostat aims at, in bits.
        mirostat_eta: how fast mirostat corrects itself.
        seed: of the random numbers, 0..4294967294; None draws one.

    Raises:
        ArgumentError: a value is of the wrong type or out of range.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    penalty_last_n: int = 64
    mirostat_mode: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    seed: int | None = None

    def __post_init__(self) -> None:
        check_float("temperature", self.temperature, -1e6, 1e6)
        check_int("top_k", self.top_k, -INT32_MAX, INT32_MAX)
        for name in ("top_p", "min_p", "typical_p"):
            check_float(name, getattr(self, name), 0.0, 1.0)
        if check_float("repeat_penalty", self.repeat_penalty, 0.0, 1e6) == 0.0:
            raise ArgumentError("repeat_penalty: out of range: expected a number above 0, got 0")
        check_float("frequency_penalty", self.frequency_penalty, -1e6, 1e6)
        check_float("presence_penalty", self.presence_penalty, -1e6, 1e6)
        check_int("penalty_last_n", self.penalty_last_n, 0, 1 << 20)
        check_int("mirostat_mode", self.mirostat_mode, 0, 2)
        check_float("mirostat_tau", self.mirostat_tau, 0.0, 1e6)
        check_float("mirostat_eta", self.mirostat_eta, 0.0, 1e6)
        if self.seed is not None:
            check_int("seed", self.seed, 0, MAX_SEED)

    def make(
        self,
        model: Model,
        *,
        logit_bias: Mapping[int, float] | None = None,
        grammar: LlamaGrammar | None = None,
    ) -> _native.Sampler:
        """A sampler for one completion; it remembers what it has picked.

        Args:
            model: whose vocabulary the tokens are of.
            logit_bias: token id -> what is added to its logit; -inf excludes it.
            grammar: what the text must follow.

        Raises:
            ArgumentError: a token of `logit_bias` is not in the vocabulary, or the grammar cannot be read.
        """
        bias = check_logit_bias(logit_bias, model.n_vocab)
        if grammar is not None and not isinstance(getattr(grammar, "_grammar", None), str):
            raise ArgumentError(f"grammar: wrong type: expected a LlamaGrammar, got {type(grammar).__name__}")
        return _native.Sampler(
            float(self.temperature),
            max(int(self.top_k), 0),
            max(float(self.top_p), _TINY),
            min(float(self.min_p), _BELOW_ONE),
            random.randint(0, MAX_SEED) if self.seed is None else int(self.seed),
            vocab=model.native.vocab,
            typical_p=max(float(self.typical_p), _TINY),
            repeat_penalty=float(self.repeat_penalty),
            frequency_penalty=float(self.frequency_penalty),
            presence_penalty=float(self.presence_penalty),
            penalty_last_n=int(self.penalty_last_n),
            mirostat_mode=int(self.mirostat_mode),
            mirostat_tau=float(self.mirostat_tau),
            mirostat_eta=float(self.mirostat_eta),
            logit_bias=bias or None,
            grammar=None if grammar is None else grammar._grammar,
            grammar_root="root" if grammar is None else grammar._root,
        )


def check_logit_bias(logit_bias: Mapping[Any, Any] | None, n_vocab: int) -> dict[int, float]:
    """Token id -> bias; ids may be written out, as JSON has them.

    Raises:
        ArgumentError: an id is no token, or a bias no number or +inf.
    """
    if logit_bias is None:
        return {}
    if not isinstance(logit_bias, Mapping):
        raise ArgumentError(f"logit_bias: wrong type: expected token ids and numbers, got {type(logit_bias).__name__}")
    checked = {}
    for key, value in logit_bias.items():
        token = int(key) if isinstance(key, str) and key.strip().isdecimal() else key
        token = check_int("logit_bias", token, 0, n_vocab - 1)
        checked[token] = check_float(f"logit_bias[{token}]", value, float("-inf"), 1e30)
    return checked
