"""Text files to tokens and samples; documents with facts and questions, for three kinds of vocabulary."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.tiny_gguf import bpe_vocab

import pysa
from pysa.errors import ArgumentError
from pysa.planning.tasks import Document, Tasks
from pysa.planning.texts import Corpus, read_corpus, samples

N_WORDS = 260
RECALL = re.compile(r"# recall: ([a-z]+) is ([a-z]+)\.\n")
NOTE = re.compile(r"# note: ([a-z]+) is ([a-z]+)\.\n")


def word_vocab() -> dict[str, Any]:
    """Keys of a byte-level BPE vocabulary with N_WORDS words as single tokens, as Llama 3 takes them."""
    keys = bpe_vocab()
    words = ["Ġw" + "".join(letters) for letters in itertools.islice(itertools.product("abcdefg", repeat=3), N_WORDS)]
    keys["tokenizer.ggml.tokens"] += words
    keys["tokenizer.ggml.token_type"] += [1] * N_WORDS
    return {**keys, "tokenizer.ggml.pre": "llama-bpe"}


@pytest.fixture(scope="module", params=["spm", "bpe", "words"])
def model(request: pytest.FixtureRequest, tiny_gguf: Callable[..., Path]) -> Iterator[pysa.Model]:
    """SentencePiece with BOS; byte-level BPE without, whose words are spelled; BPE with words as tokens."""
    options: dict[str, dict[str, Any]] = {
        "spm": {"vocab": "llama"},
        "bpe": {},
        "words": {"n_vocab": len(bpe_vocab()["tokenizer.ggml.tokens"]) + N_WORDS, "extra_kv": word_vocab()},
    }
    with pysa.Model(tiny_gguf("llama", **options[request.param]), n_threads=1) as model:
        yield model


def text_of(model: pysa.Model, document: Document) -> str:
    return model.detokenize(document.tokens)


# -- texts -----------------------------------------------------------------------------------------------------------


def test_corpus_is_the_files_one_after_the_other(model: pysa.Model, tmp_path: Path) -> None:
    first, second = tmp_path / "a.txt", tmp_path / "b.txt"
    first.write_bytes("the thing\r\nand <|im_end|> the än\n".encode())
    second.write_bytes(b"in the end\n")
    corpus = read_corpus(model, [first, second])
    expected = model.tokenize("the thing\r\nand <|im_end|> the än\n", False, False)
    assert corpus.tokens.tolist() == expected + model.tokenize("in the end", False, False)  # no newline at the very end
    assert corpus.sha256 == hashlib.sha256(first.read_bytes() + second.read_bytes()).hexdigest()
    assert corpus.paths == (str(first), str(second))


def test_corpus_refuses_what_is_no_text(shared_model: pysa.Model, tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"good \xff bad")
    (tmp_path / "empty").write_bytes(b"")
    for names, message in (
        (["absent"], r"absent: cannot be read: .*No such file"),
        (["bytes"], r"bytes: not UTF-8: expected text, got byte 0xff at 5"),
        (["."], "cannot be read: .*directory"),
        (["empty", "empty"], "empty: expected some text, got no token"),
        ([], "expected at least one"),
    ):
        with pytest.raises(ArgumentError, match=message):
            read_corpus(shared_model, [tmp_path / name for name in names])


@pytest.mark.parametrize(("n_held", "n_samples", "n_tokens"), [(1000, 7, 120), (100, 1, 100), (64, 4, 16), (65, 4, 16)])
def test_samples_are_spread_and_do_not_overlap(model: pysa.Model, n_held: int, n_samples: int, n_tokens: int) -> None:
    n_lead = len(model.tokenize(""))
    corpus = Corpus(np.arange(n_held, dtype=np.int32), "", ("a.txt",))
    found = samples(model, corpus, n_samples, n_tokens)
    assert [len(sample) for sample in found] == [n_tokens] * n_samples
    for sample in found:
        assert sample[:n_lead].tolist() == model.tokenize("")
        assert (np.diff(sample[n_lead:]) == 1).all()  # one stretch
    starts = np.array([sample[n_lead] for sample in found])
    gaps = np.diff([*starts, n_held])
    assert starts[0] == 0
    assert gaps.min() >= n_tokens - n_lead
    assert np.ptp(gaps) <= 1


def test_samples_say_how_much_text_is_missing(model: pysa.Model) -> None:
    n_text = 16 - len(model.tokenize(""))
    corpus = Corpus(np.zeros(4 * n_text - 1, np.int32), "", ("a.txt", "b.txt"))
    with pytest.raises(
        ArgumentError, match=f"a.txt, b.txt: too short: expected {4 * n_text} tokens .*got {4 * n_text - 1}"
    ):
        samples(model, corpus, 4, 16)
    with pytest.raises(ArgumentError, match="n_samples"):
        samples(model, corpus, 0, 16)


# -- recall ----------------------------------------------------------------------------------------------------------


def test_recall_asks_for_facts_that_the_document_states(model: pysa.Model) -> None:
    document = Tasks(model).recall(900, np.random.default_rng(5), n_facts=7, n_questions=4)
    assert len(document.tokens) == 900
    text = text_of(model, document)
    facts = NOTE.findall(text)
    questions = RECALL.findall(text)
    assert (len(facts), len(questions)) == (7, 4)
    assert set(questions) <= set(facts)
    words = [word for fact in facts for word in fact]
    assert len(set(words)) == 14  # neither a key nor a value twice
    assert text.startswith("# note: ")
    assert text.endswith(f"is {questions[-1][1]}.\n")
    for answer, (_, value) in zip(document.answers, questions, strict=True):
        ids = document.tokens[answer.start : answer.start + answer.n_tokens]
        assert model.detokenize(ids).strip() == value
        fact = answer.start - answer.distance
        assert document.tokens[fact : fact + answer.n_tokens].tolist() == ids.tolist()
        assert text_of(model, Document(document.tokens[:fact], ())).endswith(" is")


def test_words_are_single_tokens_where_the_vocabulary_has_them(model: pysa.Model) -> None:
    tasks = Tasks(model)
    n_tokens = {answer.n_tokens for answer in tasks.recall(800, np.random.default_rng(0)).answers}
    if model.metadata["tokenizer.ggml.pre"] == "llama-bpe":
        assert n_tokens == {1}
        assert len(tasks.words) + len(tasks.filler_words) == N_WORDS + 2  # `the` and `and`
    else:
        assert min(n_tokens) > 1
        assert len(tasks.words) > 1000
    assert not set(tasks.words) & set(tasks.filler_words)


def test_facts_are_spread_evenly(model: pysa.Model) -> None:
    document = Tasks(model).recall(2000, np.random.default_rng(2), n_facts=8, n_questions=8)
    starts = np.sort([answer.start - answer.distance for answer in document.answers])
    body = min(answer.start for answer in document.answers)
    assert np.diff(starts) == pytest.approx(np.full(7, body / 8), abs=body / 40)
    assert starts[0] < 40


def test_facts_do_not_depend_on_the_length_and_the_seed_decides_all(model: pysa.Model) -> None:
    tasks = Tasks(model)
    one, again = (tasks.recall(700, np.random.default_rng(9)) for _ in range(2))
    assert one.tokens.tolist() == again.tokens.tolist()
    assert one.answers == again.answers
    assert text_of(model, one) != text_of(model, tasks.recall(700, np.random.default_rng(10)))
    assert NOTE.findall(text_of(model, one)) == NOTE.findall(
        text_of(model, tasks.recall(900, np.random.default_rng(9)))
    )


def test_filler_is_taken_from_the_text_in_one_stretch(model: pysa.Model) -> None:
    n_lead = len(model.tokenize(""))
    filler = np.arange(20, 20 + 600, dtype=np.int32) % 250 + 3
    document = Tasks(model, filler).needle(500, 0.5, np.random.default_rng(1))
    fact = document.answers[0].start - document.answers[0].distance
    before = document.tokens[n_lead : fact - 60]
    assert (np.diff(before) % 250 == 1).all()  # consecutive ids, as the filler has them
    after = document.tokens[fact + 60 : document.answers[0].start - 60]
    assert (np.diff(after) % 250 == 1).all()
    assert document.tokens[n_lead] != filler[0]  # from a random place
    with pytest.raises(ArgumentError, match=r"filler: too short: .*got 600; give more text"):
        Tasks(model, filler).needle(900, 0.5, np.random.default_rng(1))


def test_generated_filler_has_no_word_of_a_fact(model: pysa.Model) -> None:
    text = text_of(model, Tasks(model).recall(1500, np.random.default_rng(4)))
    words = {word for fact in NOTE.findall(text) for word in fact}
    filler = RECALL.sub("", NOTE.sub("", text))
    assert len(filler) > 500
    assert not words & set(re.findall("[a-z]+", filler))


# -- needle ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [0.0, 0.25, 0.9, 1.0])
def test_needle_stands_at_its_depth(model: pysa.Model, depth: float) -> None:
    document = Tasks(model).needle(1200, depth, np.random.default_rng(3))
    assert len(document.tokens) == 1200
    (answer,) = document.answers
    text = text_of(model, document)
    ((key, value),) = NOTE.findall(text)
    assert RECALL.findall(text) == [(key, value)]
    fact_ids = answer.start - answer.distance
    n_filler = 1200 - 2 * len(Tasks(model)._after_newline(f"# note: {key} is {value}.\n") or [])
    assert fact_ids == pytest.approx(depth * n_filler, abs=0.04 * 1200)
    note = f"# note: {key} is {value}.\n"
    assert text.startswith(note) == (depth == 0.0)
    assert text.endswith(f"{note}# recall: {key} is {value}.\n") == (depth == 1.0)


# -- what is refused -------------------------------------------------------------------------------------------------


def test_documents_that_do_not_fit_are_refused(model: pysa.Model) -> None:
    tasks, rng = Tasks(model), np.random.default_rng(0)
    with pytest.raises(
        ArgumentError, match=r"n_tokens: too few: expected at least \d+ for 12 facts and 6 questions, got 50"
    ):
        tasks.recall(50, rng)
    with pytest.raises(ArgumentError, match=r"n_questions: out of range: expected 1\.\.3, got 4"):
        tasks.recall(900, rng, n_facts=3, n_questions=4)
    with pytest.raises(ArgumentError, match="depth: out of range"):
        tasks.needle(900, 1.5, rng)
    shortest = int(re.search(r"at least (\d+)", message_of(lambda: tasks.needle(1, 0.0, np.random.default_rng(7))))[1])
    assert len(tasks.needle(shortest, 0.0, np.random.default_rng(7)).tokens) == shortest


def message_of(call: Callable[[], object]) -> str:
    with pytest.raises(ArgumentError) as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize(
    "template",
    ["{key} is {value}", "a {key} is", "the {value} of {key}.", " {key} {key} {value}", " {key} {value} {}", "x"],
)
def test_templates_need_a_key_and_then_a_value(shared_model: pysa.Model, template: str) -> None:
    with pytest.raises(ArgumentError, match="fact: not a template"):
        Tasks(shared_model, fact=template)
    with pytest.raises(ArgumentError, match="question: not a template"):
        Tasks(shared_model, question=template)


def test_other_templates_are_asked_as_they_are_written(model: pysa.Model) -> None:
    tasks = Tasks(model, fact="The code of {key} is {value}. ", question="What is the code of {key}? It is {value}")
    document = tasks.needle(400, 0.3, np.random.default_rng(0))
    text = text_of(model, document)
    key, value = re.findall(r"The code of ([a-z]+) is ([a-z]+)\. ", text)[0]
    assert text.endswith(f"What is the code of {key}? It is {value}")
    (answer,) = document.answers
    assert model.detokenize(document.tokens[answer.start :]).strip() == value
