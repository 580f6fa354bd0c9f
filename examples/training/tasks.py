"""Generated documents whose answers lie far back: key-value recall, copying, and the same as ChatML turns.

A document is a list of pieces of token ids, each marked as text, as noise that nobody can predict, or as an answer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np
from tokenizers import Tokenizer

from .vocabulary import BOS, IM_END, IM_START, N_VOCAB, SPECIAL_TOKENS

NOISE, TEXT, ANSWER, VALUE = 0, 1, 2, 3  # VALUE: an answer that counts in the accuracy


@dataclass(frozen=True)
class Style:
    """How a fact and a question about it are written; every piece starts or ends where a token does."""

    fact: tuple[str, str, str]  # before the key, between key and value, after the value
    question: tuple[str, str, str]


STYLES = (
    Style(("set", " =", "\n"), ("get", " =", "\n")),
    Style(("# note:", " is", ".\n"), ("# recall:", " is", ".\n")),
    Style(("print(", ",", ")\n"), ("assert(", ",", ")\n")),
    Style(("item", "", ";\n"), ("find", "", ";\n")),
    Style(("", "", ";"), ("", "", ";")),
)
CHAT = Style(("", " is", ".\n"), ("The value of", " is", "."))


@dataclass
class Document:
    """Token ids, one kind each."""

    ids: list[int] = field(default_factory=list)
    kinds: list[int] = field(default_factory=list)

    def add(self, ids: list[int], kind: int) -> None:
        self.ids += ids
        self.kinds += [kind] * len(ids)


@dataclass
class Fact:
    key: list[int]
    value: list[int]


class TaskMaker:
    """Makes task documents from a tokenizer and the filler text's tokens.

    Args:
        tokenizer: the checkpoint's tokenizer.
        filler: int32 (n_tokens,), library source that fills the space between facts and questions.
    """

    def __init__(self, tokenizer: Tokenizer, filler: np.ndarray) -> None:
        self._tokenizer = tokenizer
        self._filler = filler
        self._cache: dict[str, list[int]] = {}
        words = [t for t in tokenizer.get_vocab() if re.fullmatch("Ġ[a-z]{3,10}", t)]
        self.words = [tokenizer.token_to_id(t) for t in sorted(words)]

    def encode(self, text: str) -> list[int]:
        if text not in self._cache:
            self._cache[text] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return self._cache[text]

    def _word(self, rng: np.random.Generator) -> int:
        return self.words[int(rng.integers(len(self.words)))]

    def _value(self, rng: np.random.Generator) -> list[int]:
        if rng.random() < 0.25:
            return self.encode(f" {rng.integers(10, 100)}")
        return [self._word(rng)]

    def _add_filler(self, doc: Document, n: int, rng: np.random.Generator) -> None:
        start = int(rng.integers(len(self._filler) - n))
        doc.add(self._filler[start : start + n].tolist(), TEXT)
        doc.add(self.encode("\n"), TEXT)

    def _add_fact(self, doc: Document, style: Style, facts: list[Fact], rng: np.random.Generator) -> None:
        before, between, after = style.fact
        n_words = 2 if rng.random() < 0.2 else 1
        key = [self._word(rng) for _ in range(n_words)]
        if any(key[-1] in fact.key or fact.key[-1] in key for fact in facts):
            return
        doc.add(self.encode(before) + key + self.encode(between), NOISE)
        value = self._value(rng)
        facts.append(Fact(key, value))
        doc.add(value, NOISE)
        doc.add(self.encode(after), NOISE)

    def _add_answer(self, doc: Document, style: Style, fact: Fact, prompt_kind: int) -> None:
        before, between, after = style.question
        doc.add(self.encode(before) + fact.key + self.encode(between), prompt_kind)
        doc.add(fact.value, VALUE)
        doc.add(self.encode(after), ANSWER)

    def recall(self, n_ctx: int, rng: np.random.Generator) -> Document:
        """Facts, filler and questions in turns, in one of the plain styles."""
        doc = Document()
        doc.add([BOS], NOISE)
        style = STYLES[int(rng.integers(len(STYLES)))]
        facts: list[Fact] = []
        max_facts = int(rng.integers(4, 10 + n_ctx // 32))
        filler_share = 0.0 if rng.random() < 0.3 else float(rng.uniform(0.2, 0.6))
        while len(doc.ids) < n_ctx:
            draw = rng.random()
            if not facts or (len(facts) < max_facts and draw < 0.4):
                for _ in range(int(rng.integers(2, 9))):
                    self._add_fact(doc, style, facts, rng)
            elif draw < 0.4 + 0.6 * filler_share:
                self._add_filler(doc, int(rng.integers(10, 20 + n_ctx // 4)), rng)
            else:
                for _ in range(int(rng.integers(1, 6))):
                    self._add_answer(doc, style, facts[int(rng.integers(len(facts)))], NOISE)
        return doc

    def copy(self, n_ctx: int, rng: np.random.Generator) -> Document:
        """Random words or random tokens, then the same again."""
        doc = Document()
        doc.add([BOS], NOISE)
        any_token = rng.random() < 0.5
        while len(doc.ids) < n_ctx:
            n = int(rng.integers(6, min(48, n_ctx // 3)))
            words = (
                rng.integers(len(SPECIAL_TOKENS), N_VOCAB, n).tolist()
                if any_token
                else [self._word(rng) for _ in range(n)]
            )
            doc.add(self.encode("copy:") + words + self.encode("\npaste:"), NOISE)
            doc.add(words[:1], ANSWER)
            doc.add(words[1:], VALUE)
            doc.add(self.encode("\n"), ANSWER)
        return doc

    def chat(self, n_ctx: int, rng: np.random.Generator) -> Document:
        """A user states facts, pastes source, and asks; the assistant answers."""
        doc = Document()
        doc.add([BOS, IM_START], NOISE)
        doc.add(self.encode("user\nRemember:\n"), NOISE)
        facts: list[Fact] = []
        for _ in range(int(rng.integers(3, 8 + n_ctx // 64))):
            self._add_fact(doc, CHAT, facts, rng)
        if n_ctx >= 256 and rng.random() < 0.7:
            self._add_filler(doc, int(rng.integers(n_ctx // 16, n_ctx // 2)), rng)
        while True:
            self._add_turn(doc, facts[int(rng.integers(len(facts)))])
            if len(doc.ids) >= n_ctx:
                return doc
            self._begin_user_turn(doc)
            if rng.random() < 0.3 and n_ctx >= 256:
                self._add_filler(doc, int(rng.integers(10, n_ctx // 4)), rng)

    def _begin_user_turn(self, doc: Document) -> None:
        doc.add(self.encode("\n"), NOISE)
        doc.add([IM_START], NOISE)
        doc.add(self.encode("user\n"), NOISE)

    def _add_turn(self, doc: Document, fact: Fact) -> None:
        """The rest of a user's turn that asks for `fact`, and the assistant's answer."""
        doc.add(self.encode("What is the value of") + fact.key + self.encode("?"), NOISE)
        doc.add([IM_END], NOISE)
        doc.add(self.encode("\n"), NOISE)
        doc.add([IM_START], NOISE)
        doc.add(self.encode("assistant\n"), NOISE)
        self._add_answer(doc, CHAT, fact, ANSWER)
        doc.add([IM_END], ANSWER)
