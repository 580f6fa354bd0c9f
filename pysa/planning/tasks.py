"""Documents that ask for what stands far back: facts among filler, and questions about them at the end.

Made for any model from its own vocabulary, so that a key or a value is one token where the vocabulary allows it. What
a model answers is scored in retrieval.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pysa._arguments import check_float, check_int
from pysa.errors import ArgumentError
from pysa.model import Model
from pysa.planning.templates import FACT, QUESTION, check_template
from pysa.planning.texts import Ids, leading_tokens

WORD = re.compile(rb" [a-z]{3,10}")
MIN_WORDS = 200  # fewer single tokens that are words, and words are spelled from syllables
FILLER_SHARE = 3  # one word in so many is for generated filler, the rest for keys and values
SENTENCES = (
    " The {} and the {} were seen near the {}.",
    " Nobody asked why the {} had a {}.",
    " A {} came after the {}, then a {} left the {}.",
    " In the {} there was no {}, only a {}.",
    " From the {} to the {} they went with a {} and a {}.",
)
N_PER_PARAGRAPH = 6  # sentences


@dataclass(frozen=True)
class Answer:
    """One answer in a document.

    Attributes:
        start: position of its first token.
        n_tokens: its length; the tokens after it are not scored.
        distance: how many tokens back the same value stands in its fact.
    """

    start: int
    n_tokens: int
    distance: int


@dataclass(frozen=True, eq=False)
class Document:
    """Tokens (n_tokens,) and the answers among them, in order."""

    tokens: Ids
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Line:
    """A fact or a question as tokens; `start` and `n_value` say where its value is."""

    ids: tuple[int, ...]
    start: int
    n_value: int


class Tasks:
    """Makes documents for one model.

    Args:
        model: its vocabulary is used.
        filler: tokens (n_tokens,) of a text, from which stretches are taken; None makes sentences.
        fact: how a fact is written, with ` {key}` and ` {value}` in it.
        question: how it is asked and answered: the same, the key before the value.

    Raises:
        ArgumentError: a template without its two names in order, each after a space.
    """

    def __init__(self, model: Model, filler: Ids | None = None, fact: str = FACT, question: str = QUESTION) -> None:
        self._model = model
        self._filler = filler
        self._fact = check_template("fact", fact)
        self._question = check_template("question", question)
        self._lead = leading_tokens(model)
        self._anchor = self._tokens("x\n")
        self._newline = self._anchor[len(self._tokens("x")) :]
        written = set(re.findall("[a-z]+", fact + question))
        words = [word for word in _words(model) if word not in written]
        self.filler_words = words[::FILLER_SHARE]
        self.words = [word for i, word in enumerate(words) if i % FILLER_SHARE]

    def recall(self, n_tokens: int, rng: np.random.Generator, n_facts: int = 12, n_questions: int = 6) -> Document:
        """Facts spread evenly over the filler, the first at the very beginning; questions at the end.

        Args:
            n_tokens: length of the document, its leading BOS and its questions counted.
            rng: draws words and filler; the same state gives the same document.
            n_facts: facts, each with a key and a value of its own.
            n_questions: how many of them are asked for.

        Raises:
            ArgumentError: an argument is out of range, or so many facts do not fit.
        """
        n_facts = check_int("n_facts", n_facts, 1, len(self.words) // 2)
        n_questions = check_int("n_questions", n_questions, 1, n_facts)
        facts, questions = self._lines(n_facts, rng)
        asked = [int(i) for i in rng.choice(n_facts, n_questions, replace=False)]
        return self._document(n_tokens, facts, [questions[i] for i in asked], asked, np.arange(n_facts) / n_facts, rng)

    def needle(self, n_tokens: int, depth: float, rng: np.random.Generator) -> Document:
        """One fact in filler, and the question about it at the end.

        Args:
            n_tokens: length of the document, its leading BOS and its question counted.
            depth: where the fact stands: 0 at the beginning, 1 just before the question.
            rng: draws words and filler.

        Raises:
            ArgumentError: an argument is out of range.
        """
        depth = check_float("depth", depth, 0.0, 1.0)
        facts, questions = self._lines(1, rng)
        return self._document(n_tokens, facts, questions, [0], np.array([depth]), rng)

    def _document(
        self,
        n_tokens: int,
        facts: Sequence[Line],
        questions: Sequence[Line],
        asked: Sequence[int],
        depths: npt.NDArray[np.float64],
        rng: np.random.Generator,
    ) -> Document:
        """Facts at `depths` (shares of the filler, rising), then questions[i] about facts[asked[i]]."""
        n_lines = len(self._lead) + sum(len(line.ids) for line in (*facts, *questions))
        n_tokens = check_int("n_tokens", n_tokens, 1, 2**31 - 1)
        n_filler = n_tokens - n_lines
        if n_filler < 0:
            what = f"{len(facts)} facts and {len(questions)} questions"
            raise ArgumentError(f"n_tokens: too few: expected at least {n_lines} for {what}, got {n_tokens}")
        filler = self._stretch(n_filler, rng)
        ids: list[int] = self._lead.tolist()
        values: list[int] = []
        n_used = 0
        for line, end in zip(facts, np.rint(depths * n_filler).astype(int).tolist(), strict=True):
            ids += self._ended(filler[n_used:end])
            n_used = end
            values.append(len(ids) + line.start)
            ids += line.ids
        ids += self._ended(filler[n_used:])
        answers = []
        for i, line in zip(asked, questions, strict=True):
            start = len(ids) + line.start
            answers.append(Answer(start, line.n_value, start - values[i]))
            ids += line.ids
        return Document(np.array(ids, dtype=np.int32), tuple(answers))

    def _lines(self, n: int, rng: np.random.Generator) -> tuple[list[Line], list[Line]]:
        """`n` facts with distinct words, and their questions."""
        facts: list[Line] = []
        questions: list[Line] = []
        words = iter(rng.permutation(len(self.words)).tolist())
        for key, value in zip(words, words, strict=False):
            fact = self._line(self._fact, self.words[key], self.words[value])
            question = self._line(self._question, self.words[key], self.words[value])
            if fact is not None and question is not None:
                facts.append(fact)
                questions.append(question)
                if len(facts) == n:
                    return facts, questions
        raise ArgumentError(
            f"fact: only {len(facts)} pairs of words keep their own tokens in it: expected {n}; "
            "put a space before and a sign or a newline after {key} and {value}"
        )

    def _line(self, template: str, key: str, value: str) -> Line | None:
        """A template filled in; None where the value's tokens run into the text around it."""
        before, after = template.split(" {value}")
        before = before.replace("{key}", key)
        ids = self._after_newline(f"{before} {value}{after}")
        until, through = self._after_newline(before), self._after_newline(f"{before} {value}")
        if ids is None or until is None or through is None:
            return None
        if ids[: len(until)] != until or ids[: len(through)] != through or len(through) == len(until):
            return None
        return Line(tuple(ids), len(until), len(through) - len(until))

    def _after_newline(self, text: str) -> list[int] | None:
        """The tokens of a text at the beginning of a line; None where the newline merges with it."""
        # A tokenizer that puts a space before every text does so before the anchor.
        ids = self._tokens(f"x\n{text}")
        n = len(self._anchor)
        return ids[n:] if ids[:n] == self._anchor else None

    def _tokens(self, text: str) -> list[int]:
        return self._model.tokenize(text, add_special=False, parse_special=False)

    def _ended(self, stretch: Ids) -> list[int]:
        """The stretch with its last tokens replaced by a newline; as long as it was."""
        n_kept = max(0, len(stretch) - len(self._newline))
        return [*stretch[:n_kept].tolist(), *self._newline][: len(stretch)]

    def _stretch(self, n: int, rng: np.random.Generator) -> Ids:
        """`n` tokens of filler."""
        if self._filler is None:
            return self._sentences(n, rng)
        n_held = len(self._filler)
        if n_held < n:
            raise ArgumentError(
                f"filler: too short: expected {n} tokens of text, got {n_held}; give more text, or none at all"
            )
        start = int(rng.integers(n_held - n + 1))
        return np.asarray(self._filler[start : start + n], dtype=np.int32)

    def _sentences(self, n: int, rng: np.random.Generator) -> Ids:
        ids: list[int] = []
        while len(ids) < n:
            sentences = []
            for i in rng.integers(len(SENTENCES), size=N_PER_PARAGRAPH).tolist():
                n_words = SENTENCES[i].count("{}")
                words = rng.choice(len(self.filler_words), n_words, replace=False)
                sentences.append(SENTENCES[i].format(*(self.filler_words[w] for w in words)))
            ids += self._tokens("".join(sentences).strip() + "\n")
        return np.array(ids[:n], dtype=np.int32)


def _words(model: Model) -> list[str]:
    """Words for keys, values and filler, sorted: single tokens of the vocabulary if it has enough of them."""
    pieces = {model.token_to_piece(token) for token in range(model.n_vocab)}
    words = sorted(piece[1:].decode() for piece in pieces if WORD.fullmatch(piece))
    return words if len(words) >= MIN_WORDS else sorted(_syllables())


def _syllables() -> Iterator[str]:
    """Words that no language has, such as `bakeda`, of several tokens each."""
    parts = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
    return (a + b for a in parts for b in parts)
