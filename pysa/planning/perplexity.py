"""Perplexity of a model on a text, as llama.cpp's llama-perplexity defines it, under any plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from pysa._arguments import check_int
from pysa.errors import ArgumentError
from pysa.model import Model
from pysa.plan import Plan
from pysa.planning.scoring import Advance, Engine, Estimate, losses, nothing, scored_rows
from pysa.planning.texts import Corpus, Ids, leading_tokens

MIN_CTX = 8  # tokens


@dataclass(frozen=True)
class Perplexity:
    """The perplexity over the second halves of chunks.

    Attributes:
        n_ctx: tokens of a chunk.
        n_chunks: chunks evaluated.
        n_tokens: predictions scored.
        value: exponential of the mean negative log-likelihood.
        error: one standard error, predictions taken as independent.
        running: the perplexity after each chunk.
    """

    n_ctx: int
    n_chunks: int
    n_tokens: int
    value: float
    error: float
    running: tuple[float, ...]


def chunks(model: Model, corpus: Corpus, n_ctx: int, n_most: int = 0) -> list[Ids]:
    """The text in stretches of `n_ctx` tokens, one after the other; a rest is left out.

    Where the model adds a BOS token, it stands before the text and replaces the first token of every chunk.

    Args:
        n_ctx: tokens of a chunk, 8 or more.
        n_most: most chunks; 0 takes all.

    Raises:
        ArgumentError: an argument is out of range, or the text is shorter than a chunk.
    """
    n_ctx = check_int("n_ctx", n_ctx, MIN_CTX, 2**31 - 1)
    n_most = check_int("n_most", n_most, 0, 2**31 - 1)
    lead = leading_tokens(model)
    tokens = np.concatenate([lead, corpus.tokens])
    n_chunks = len(tokens) // n_ctx
    if n_chunks == 0:
        raise ArgumentError(
            f"{', '.join(corpus.paths)}: too short: expected at least {n_ctx} tokens, one chunk, got {len(tokens)}; "
            "give more text or a smaller context"
        )
    rows = tokens[: n_chunks * n_ctx].reshape(n_chunks, n_ctx)[: n_most or n_chunks].copy()
    rows[:, : len(lead)] = lead
    return list(rows)


def perplexity(
    model: Model, samples: Sequence[Ids], plan: Plan, *, engine: Engine | None = None, advance: Advance = nothing
) -> Perplexity:
    """Scores the second half of every sample, each evaluated from an empty cache.

    Args:
        samples: texts of equal length, from chunks() or texts.samples().
        plan: what runs; Plan.dense for the model as it is.
        engine: how the session is made.
        advance: is told the tokens evaluated, for a progress bar.
    """
    nll: list[list[float]] = []
    with (engine or Engine()).session(model, len(samples[0]), plan) as session:
        for tokens in samples:
            nll.append([])
            for part, (rows,) in scored_rows([session], tokens, advance):
                nll[-1] += losses(rows, tokens, part).tolist()
    total = Estimate.of([loss for one in nll for loss in one]).exp()
    n_tokens = list(accumulate(len(one) for one in nll))
    sums = list(accumulate(sum(one) for one in nll))
    running = np.exp(np.array(sums) / n_tokens)
    return Perplexity(len(samples[0]), len(samples), n_tokens[-1], total.value, total.error, tuple(running.tolist()))
