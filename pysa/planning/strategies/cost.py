"""What a plan costs on one sample: how far its predictions are from the dense model's.

Cost = mean KL divergence (nats) on text plus mean KL divergence on recall answers: text alone would give up the heads
that retrieve. Which plans are measured, and in what order, is search.py's business.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

N_FEATURES = 16  # random projections of a position's change
N_FEATURED = 192  # most text positions whose projections are kept

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Sample:
    """One text and the positions that are compared; position i scores token i + 1.

    Attributes:
        tokens: (n_tokens,) int32.
        text: positions of ordinary text.
        recall: positions that give the tokens of recall answers.
        answers: of each answer, the slice of `recall` that gives its tokens.
    """

    tokens: npt.NDArray[np.int32]
    text: Ints
    recall: Ints
    answers: tuple[slice, ...] = ()

    @property
    def positions(self) -> Ints:
        """Both, text first."""
        return np.concatenate([self.text, self.recall])


@dataclass(frozen=True)
class SampleCost:
    """One plan measured on one sample: sums, so that samples can be put together.

    Attributes:
        kl_text, kl_recall: sums over positions, nats.
        nll, nll_squares: sums over text positions of the increase of -log p(next token), and of its square.
        n_right: answers given exactly, greedily.
        features: (n_text_features + n_recall, N_FEATURES) of evenly chosen text positions and all recall ones, with
            |row|^2 / 2 near the position's KL; rows of two plans add up as the changes that they stand for do.
        seconds: what measuring it took.
    """

    n_text: int
    n_recall: int
    n_answers: int
    kl_text: float
    kl_recall: float
    nll: float
    nll_squares: float
    n_right: int
    features: npt.NDArray[np.float16]
    seconds: float = 0.0


@dataclass(frozen=True)
class Cost:
    """One plan measured on several samples: means, in nats.

    `features` are of some of the samples, with |features|^2 / 2 the total on those.
    """

    kl_text: float
    kl_recall: float
    nll_increase: float
    nll_error: float
    recalled: float
    features: Floats

    @property
    def total(self) -> float:
        """What the search makes small."""
        return self.kl_text + self.kl_recall

    @property
    def ppl_increase(self) -> float:
        """Relative increase of the perplexity on the text positions."""
        return float(np.expm1(self.nll_increase))

    @classmethod
    def of(cls, parts: Sequence[SampleCost], n_featured: int | None = None) -> Cost:
        """The means over samples; with the features of the first n_featured."""
        n_text, n_recall = sum(p.n_text for p in parts), sum(p.n_recall for p in parts)
        nll = sum(p.nll for p in parts) / max(n_text, 1)
        variance = max(sum(p.nll_squares for p in parts) / max(n_text, 1) - nll * nll, 0.0)
        n_answers = sum(p.n_answers for p in parts)
        return cls(
            sum(p.kl_text for p in parts) / max(n_text, 1),
            sum(p.kl_recall for p in parts) / max(n_recall, 1),
            nll,
            math.sqrt(variance / max(n_text, 1)),
            sum(p.n_right for p in parts) / n_answers if n_answers else 0.0,
            _features(parts[:n_featured]),
        )


class Baseline:
    """The dense model's answers on one sample, which plans are compared with.

    Args:
        sample: the positions.
        logits: (n_positions, n_vocab) of the dense model at sample.positions.
    """

    def __init__(self, sample: Sample, logits: Floats) -> None:
        self.sample = sample
        self._log_probs = log_softmax(logits)
        self._next = sample.tokens[sample.positions + 1]
        self.nll = -self._log_probs[np.arange(len(self._next)), self._next].astype(np.float64)
        self.right = self._answered(logits)

    def compare(self, logits: Floats) -> SampleCost:
        """What a plan with these logits at sample.positions costs."""
        n_text = len(self.sample.text)
        kl = np.empty(len(logits))
        nll = np.empty(len(logits))
        features = np.zeros((len(logits), N_FEATURES), np.float32)
        featured = self._featured()
        mixing = _mixing(logits.shape[1])
        for rows in _chunks(len(logits), logits.shape[1]):
            dense = self._log_probs[rows]
            change = log_softmax(logits[rows])
            nll[rows] = -change[np.arange(len(change)), self._next[rows]]
            change -= dense
            p = np.exp(dense)
            kl[rows] = -(p * change).sum(1, dtype=np.float64)
            # KL = variance of the change under p / 2, to second order: sqrt(p) makes that a plain squared length.
            change += kl[rows, None].astype(np.float32)
            chosen = featured[rows]
            features[rows][chosen] = (np.sqrt(p[chosen]) * change[chosen]) @ mixing
        kl = np.maximum(kl, 0.0)
        more = (nll - self.nll)[:n_text]
        return SampleCost(
            n_text,
            len(logits) - n_text,
            len(self.sample.answers),
            float(kl[:n_text].sum()),
            float(kl[n_text:].sum()),
            float(more.sum()),
            float((more**2).sum()),
            int(self._answered(logits).sum()),
            features[featured].astype(np.float16),
        )

    def _featured(self) -> npt.NDArray[np.bool_]:
        n_text = len(self.sample.text)
        featured = np.ones(n_text + len(self.sample.recall), dtype=bool)
        featured[:n_text] = False
        featured[np.linspace(0, n_text - 1, min(n_text, N_FEATURED)).astype(int)] = True
        return featured

    def _answered(self, logits: Floats) -> npt.NDArray[np.bool_]:
        best = logits[len(self.sample.text) :].argmax(1) == self._next[len(self.sample.text) :]
        return np.array([best[answer].all() for answer in self.sample.answers], dtype=bool)


def log_softmax(logits: Floats) -> Floats:
    """Log-probabilities of each row."""
    shifted: Floats = logits - logits.max(1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(1, keepdims=True, dtype=np.float64)).astype(np.float32)
    return shifted


@cache
def _mixing(n_vocab: int) -> Floats:
    """(n_vocab, N_FEATURES) of +-1/sqrt(N_FEATURES): keeps lengths and angles of long vectors on average."""
    signs = np.random.default_rng(n_vocab).integers(0, 2, (n_vocab, N_FEATURES), dtype=np.int8)
    mixing: Floats = (signs * 2 - 1).astype(np.float32) / np.float32(np.sqrt(N_FEATURES))
    return mixing


def _chunks(n_rows: int, n_vocab: int) -> Iterable[slice]:
    step = max(1, (4 << 20) // n_vocab)
    return [slice(first, min(first + step, n_rows)) for first in range(0, n_rows, step)]


def _features(parts: Sequence[SampleCost]) -> Floats:
    """One vector, whose text and recall parts have squared lengths of twice the mean KL there."""
    text = [p.features[: len(p.features) - p.n_recall] for p in parts]
    recall = [p.features[len(p.features) - p.n_recall :] for p in parts]
    kl_text = sum(p.kl_text for p in parts) / max(sum(p.n_text for p in parts), 1)
    kl_recall = sum(p.kl_recall for p in parts) / max(sum(p.n_recall for p in parts), 1)
    return np.concatenate([_scaled(np.concatenate(text), kl_text), _scaled(np.concatenate(recall), kl_recall)])


def _scaled(features: npt.NDArray[np.float16], kl: float) -> Floats:
    """One flat vector whose squared length is 2 * kl."""
    flat = features.ravel().astype(np.float32)
    length = float(np.sqrt((flat.astype(np.float64) ** 2).sum()))
    if length > 0.0:
        flat *= np.float32(math.sqrt(2.0 * kl) / length)
    return flat
