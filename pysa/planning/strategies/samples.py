"""The texts on which a search measures: documents of the user's text with facts in it and questions at the end.

One document serves both parts of the cost: its text is ordinary text beyond the window, its answers are recall. Some of
its last queries, of either kind, feed the proxy.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pysa.planning.strategies.cost import Sample
from pysa.planning.tasks import Document, Tasks

N_FACTS = 12
N_QUESTIONS = 8
DENSE_BYTES = 32 << 20  # of a sample's dense predictions, which bounds its text positions
MIN_TEXT, MAX_TEXT = 128, 4096  # text positions compared
N_PROXY = 16  # queries of either kind that the proxy looks at
N_PROXY_TEXT = 64  # tokens before the questions that these text queries are taken from


def search_samples(tasks: Tasks, n_samples: int, n_tokens: int, n_window: int, n_vocab: int, seed: int) -> list[Sample]:
    """Documents made from the tasks' filler.

    Args:
        tasks: of the model; with the user's text as filler.
        n_samples: how many.
        n_tokens: length of each.
        n_window: n_sink + n_recent; only positions with distant tokens are compared.
        n_vocab: of the model.
        seed: of facts and filler.
    """
    rng = np.random.default_rng([seed, n_tokens])
    documents = [tasks.recall(n_tokens, rng, N_FACTS, N_QUESTIONS) for _ in range(n_samples)]
    return [sample_of(document, n_window, n_vocab) for document in documents]


def sample_of(document: Document, n_window: int, n_vocab: int) -> Sample:
    """Text positions between the window's length and the first question, spread evenly; and every answer's."""
    recall: list[int] = []
    answers: list[slice] = []
    for answer in document.answers:
        answers.append(slice(len(recall), len(recall) + answer.n_tokens))
        recall += range(answer.start - 1, answer.start - 1 + answer.n_tokens)
    first, last = n_window, first_question(document) - 2
    n_most = int(np.clip(DENSE_BYTES // (4 * n_vocab), MIN_TEXT, MAX_TEXT))
    text = np.linspace(first, last, min(n_most, max(last - first + 1, 0))).astype(np.int64)
    return Sample(document.tokens, np.unique(text), np.array(recall, np.int64), tuple(answers))


def first_question(document: Document) -> int:
    """Where the questions begin, about: the first answer less the distance between two."""
    starts = [answer.start for answer in document.answers]
    n_question = starts[1] - starts[0] if len(starts) > 1 else 16
    return max(starts[0] - n_question, 1)


def n_queries(sample: Sample) -> int:
    """Of the last tokens, whose queries the proxy needs."""
    return int(min(len(sample.tokens) - sample.text[-1] + N_PROXY_TEXT, len(sample.tokens)))


def proxy_rows(sample: Sample) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Which of the last n_queries() queries the proxy looks at, and which of them give answers."""
    first = len(sample.tokens) - n_queries(sample)
    text = np.linspace(first, sample.text[-1], N_PROXY).astype(np.int64)
    recall = sample.recall[np.linspace(0, len(sample.recall) - 1, min(N_PROXY, len(sample.recall))).astype(int)]
    rows = np.concatenate([np.unique(text), np.unique(recall)]) - first
    return rows, np.arange(len(rows)) >= len(np.unique(text))
