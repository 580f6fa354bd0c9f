"""The sampler chain against numpy, and the grammar against what it allows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import pysa
from pysa import ArgumentError, _native


@pytest.fixture
def model(shared_gguf: Path) -> Iterator[pysa.Model]:
    with pysa.Model(shared_gguf, n_threads=1) as opened:
        yield opened


def sampler(model: pysa.Model, **options: Any) -> _native.Sampler:
    return _native.Sampler(**{"temperature": 0.0, "vocab": model.native.vocab, **options})


def logits(model: pysa.Model, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=model.n_vocab).astype(np.float32)


def test_a_bias_moves_the_choice(model: pysa.Model) -> None:
    values = logits(model)
    order = np.argsort(-values)
    first, second, last = int(order[0]), int(order[1]), int(order[-1])
    assert sampler(model, logit_bias={first: -np.inf}).sample(values) == second
    assert sampler(model, logit_bias={last: 100.0, second: 50.0}).sample(values) == last
    with pytest.raises(ArgumentError, match="a token that grammar and bias allow, got none"):
        sampler(model, logit_bias=dict.fromkeys(range(model.n_vocab), -np.inf)).sample(values)


def test_penalties_are_those_of_the_formula(model: pysa.Model) -> None:
    """Logits of accepted tokens: divided (multiplied, below 0) by repeat, less count * frequency, less presence."""
    repeat, frequency, presence, last_n = 1.3, 0.2, 0.4, 5
    options = {"repeat_penalty": repeat, "frequency_penalty": frequency, "presence_penalty": presence}
    chain = sampler(model, penalty_last_n=last_n, **options)
    accepted: list[int] = []
    for step in range(40):
        values = logits(model, step // 4)  # the same ones some times over, so that penalties decide
        expected = values.astype(np.float64)
        recent = accepted[-last_n:]
        for token in set(recent):
            expected[token] = expected[token] / repeat if expected[token] > 0 else expected[token] * repeat
            expected[token] -= recent.count(token) * frequency + presence
        token = chain.sample(values)
        assert token == int(expected.argmax()), step
        accepted.append(token)
    assert len(set(accepted)) > 10


def test_reset_and_clone_repeat_what_came(model: pysa.Model) -> None:
    options = {"temperature": 1.0, "seed": 7, "repeat_penalty": 1.2, "grammar": 'root ::= [a-z ]+ "x"?'}
    chain = sampler(model, **options)
    values = logits(model) * 0.1
    first = [chain.sample(values) for _ in range(10)]
    copy = chain.clone()
    later = [chain.sample(values) for _ in range(10)]
    assert [copy.sample(values) for _ in range(10)] == later
    chain.reset()
    assert [chain.sample(values) for _ in range(20)] == first + later
    assert len(set(first)) > 1


@pytest.mark.parametrize("mode", [1, 2])
def test_mirostat_aims_at_a_surprise(model: pysa.Model, mode: int) -> None:
    values = logits(model) * 2
    surprise = -np.log2(np.exp(values - values.max()) / np.exp(values - values.max()).sum())
    means = []
    for tau in (1.0, 5.0):
        chain = sampler(model, temperature=1.0, mirostat_mode=mode, mirostat_tau=tau, seed=3)
        means.append(np.mean([surprise[chain.sample(values)] for _ in range(300)]))
    # It can only cut tokens off, so it stays below; by how much depends on the distribution's steps.
    assert means[0] < means[1] - 1.0
    assert means[1] < 5.5


def test_a_temperature_below_zero_draws_from_the_model(model: pysa.Model) -> None:
    values = np.full(model.n_vocab, -50.0, np.float32)
    values[[5, 9]] = np.log([0.8, 0.2])
    drawn = [sampler(model, temperature=-1.0, top_k=1, seed=seed).sample(values) for seed in range(200)]
    assert set(drawn) == {5, 9}  # top_k and the rest are left out
    assert 130 <= drawn.count(5) <= 185  # 160 expected, 5.7 standard deviation


def test_a_grammar_decides_what_may_follow(model: pysa.Model) -> None:
    chain = sampler(model, grammar='root ::= "than" | "thing"')
    text = b""
    for step in range(10):
        token = chain.sample(logits(model, step))
        if model.is_eog(token):
            break
        text += model.token_to_piece(token)
    assert text in (b"than", b"thing")
    assert model.is_eog(chain.sample(logits(model)))  # nothing else is left


def test_a_token_that_the_grammar_forbids_is_refused_not_fatal(model: pysa.Model) -> None:
    chain = sampler(model, grammar='root ::= "the"')
    eos = next(token for token in range(model.n_vocab) if model.is_eog(token))
    for bad in (model.tokenize("a", add_special=False)[-1], eos):
        with pytest.raises(ArgumentError, match="grammar: expected a token that it allows"):
            chain.accept(bad)
    for bad in (-1, model.n_vocab):
        with pytest.raises(ArgumentError, match="token: expected 0 to"):
            chain.accept(bad)
    values = np.full(model.n_vocab, -np.inf, np.float32)
    values[eos] = 1.0
    with pytest.raises(ArgumentError, match="a token that grammar and bias allow, got none"):
        chain.sample(values)
    assert model.token_to_piece(chain.sample(logits(model)))[:1] == b"t"


@pytest.mark.parametrize(
    "grammar", ["root ::= (", "root ::= root", 'x ::= "a"', "(" * 100_000, "root ::= " + "(" * 100_000, 'root ::= "\0"']
)
def test_a_faulty_grammar_is_refused(model: pysa.Model, grammar: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ArgumentError, match=r"^grammar: expected .{,300}\Z"):
        sampler(model, grammar=grammar)
    assert capfd.readouterr().err == ""


def test_a_faulty_grammar_is_explained(model: pysa.Model) -> None:
    with pytest.raises(ArgumentError, match="refuses: error parsing grammar: Undefined rule identifier 'a-b'"):
        sampler(model, grammar='root ::= a-b "x"')


@pytest.mark.parametrize("option", ["logit_bias", "repeat_penalty", "grammar", "mirostat_mode"])
def test_what_needs_the_vocabulary_says_so(option: str) -> None:
    value = {"logit_bias": {1: 1.0}, "repeat_penalty": 1.1, "grammar": 'root ::= "a"', "mirostat_mode": 1}[option]
    with pytest.raises(ArgumentError, match="vocab: expected the model's vocabulary"):
        _native.Sampler(**{option: value})


SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer"}, "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2}},
    "required": ["n", "tags"],
}


@pytest.mark.parametrize("seed", range(5))
def test_random_logits_under_a_schema_give_a_valid_object(model: pysa.Model, seed: int) -> None:
    rng = np.random.default_rng(seed)
    chain = sampler(model, temperature=1.0, seed=seed, grammar=_native.json_schema_to_grammar(json.dumps(SCHEMA)))
    text = b""
    while not model.is_eog(token := chain.sample(rng.normal(size=model.n_vocab).astype(np.float32))):
        text += model.token_to_piece(token)
        assert len(text) < 2000
    found = json.loads(text)
    assert set(found) == {"n", "tags"}
    assert isinstance(found["n"], int)
    assert set(found["tags"]) <= {"a", "b"}


@pytest.mark.parametrize(
    "schema",
    [
        '{"type":',
        '{"type":"nonsense"}',
        "[1]",
        '{"$ref":"#/nowhere"}',
        '{"items":' * 20_000 + "{}" + "}" * 20_000,
        "[" * 9**6,
    ],
)
def test_a_faulty_schema_is_refused(schema: str) -> None:
    with pytest.raises(ArgumentError, match="JSON schema: expected"):
        _native.json_schema_to_grammar(schema)
