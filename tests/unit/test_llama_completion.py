"""Completion without a session: logits are made here, so every token, text and probability is known beforehand."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pysa
from pysa.llama import LogitsProcessorList, PromptTooLongError, StoppingCriteriaList
from pysa.llama.completion import Completion
from pysa.llama.request import CompletionRequest
from pysa.llama.stops import GrowingText
from pysa.prefix import Reuse


@pytest.fixture(scope="module")
def model(dense_gguf: Path) -> Iterator[pysa.Model]:
    with pysa.Model(dense_gguf, n_threads=1) as opened:
        yield opened


def byte_tokens(text: str | bytes) -> list[int]:
    """The tiny SentencePiece vocabulary has the byte b as token b + 3."""
    return [b + 3 for b in (text.encode() if isinstance(text, str) else text)]


def peaked(model: pysa.Model, token: int, seed: int = 0) -> np.ndarray:
    """Random logits of which `token` has the largest."""
    logits = np.random.default_rng(seed + 1000 * token).normal(0, 1, model.n_vocab).astype(np.float32)
    logits[token] = logits.max() + 1
    return logits


def begin(opened: pysa.Model, prompt: Any = "the", n_ctx: int = 256, **arguments: Any) -> Completion:
    request = CompletionRequest.from_arguments(opened, prompt, **{"temperature": 0.0, "max_tokens": None, **arguments})
    return Completion(opened, request, n_ctx=n_ctx, model_name="tiny")


def drive(model: pysa.Model, completion: Completion, tokens: Sequence[int]) -> list[dict[str, Any]]:
    """Feeds logits that choose `tokens`, until the completion ends; all chunks."""
    chunks = []
    for token in tokens:
        picked = completion.pick(peaked(model, token))
        chunks += completion.take_chunks()
        assert picked == (token if completion.finish_reason is None else None)
        if picked is None:
            break
    return chunks


def text_of(chunks: Sequence[dict[str, Any]]) -> str:
    return "".join(chunk["choices"][0]["text"] for chunk in chunks)


def test_the_result_has_openais_keys(model: pysa.Model) -> None:
    completion = begin(model, max_tokens=3, model="named")
    completion.set_reuse(Reuse(2, 1))
    drive(model, completion, byte_tokens("abc"))
    result = completion.result()
    assert result.pop("id").startswith("cmpl-")
    assert isinstance(result.pop("created"), int)
    n_prompt = len(model.tokenize("the"))
    assert result == {
        "object": "text_completion",
        "model": "named",
        "choices": [{"text": "abc", "index": 0, "logprobs": None, "finish_reason": "length"}],
        "usage": {
            "prompt_tokens": n_prompt,
            "completion_tokens": 3,
            "total_tokens": n_prompt + 3,
            "prompt_tokens_details": {"cached_tokens": 2, "reevaluated_tokens": 1},
        },
    }


def test_the_end_token_is_not_part_of_it(model: pysa.Model) -> None:
    completion = begin(model)
    chunks = drive(model, completion, [*byte_tokens("ab"), 2, *byte_tokens("c")])
    assert (completion.finish_reason, completion.tokens) == ("stop", byte_tokens("ab"))
    assert text_of(chunks) == completion.result()["choices"][0]["text"] == "ab"
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, "stop"]


def test_a_stop_string_over_tokens_is_held_back_and_cut(model: pysa.Model) -> None:
    completion = begin(model, stop=["<end>", "zz"])
    given = []
    for token in byte_tokens("a<en"):
        completion.pick(peaked(model, token))
        given.append(text_of(completion.take_chunks()))
    assert given == ["a", "", "", ""]
    completion.pick(peaked(model, byte_tokens("x")[0]))  # no stop string after all
    assert text_of(completion.take_chunks()) == "<enx"
    chunks = drive(model, completion, byte_tokens("b<end>c"))
    assert (text_of(chunks), completion.finish_reason) == ("b", "stop")
    assert completion.result()["choices"][0]["text"] == "a<enxb"
    assert completion.usage()["completion_tokens"] == len("a<enxb<end>")
    assert completion.pick(peaked(model, 5)) is None
    assert completion.take_chunks() == []


def test_text_held_back_comes_at_the_end(model: pysa.Model) -> None:
    completion = begin(model, stop="<end>", max_tokens=4)
    chunks = drive(model, completion, byte_tokens("ab<e"))
    assert (text_of(chunks), completion.finish_reason) == ("ab<e", "length")


def test_the_earliest_stop_string_counts(model: pysa.Model) -> None:
    # The piece " and" has both in one token.
    token = model.tokenize(" and", add_special=False)[-1]
    assert model.token_to_piece(token) == b" and"
    completion = begin(model, stop=["d", "n"])
    drive(model, completion, [token])
    assert completion.result()["choices"][0]["text"] == " a"


def test_half_a_character_waits_and_broken_bytes_are_left_out(model: pysa.Model) -> None:
    completion = begin(model, max_tokens=8)
    pieces = []
    for token in byte_tokens("é".encode() + b"\xe2\x82" + b"x" + "☺".encode()):
        completion.pick(peaked(model, token))
        pieces.append(text_of(completion.take_chunks()))
    assert pieces == ["", "é", "", "", "x", "", "", "☺"]
    assert completion.result()["choices"][0]["text"] == "éx☺"


@settings(max_examples=200, deadline=None)
@given(
    text=st.text(alphabet="ab<>é☺", max_size=30),
    stops=st.lists(st.text(alphabet="ab<>é", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(1, 5), min_size=1, max_size=10),
)
def test_growing_text_equals_looking_at_all_of_it(text: str, stops: list[str], cuts: list[int]) -> None:
    data = text.encode()
    growing, shown, at, i = GrowingText(stops), 0, 0, 0
    while at < len(data):
        stopped = growing.feed(data[at : at + cuts[i % len(cuts)]])
        at, i = at + cuts[i % len(cuts)], i + 1
        so_far = data[:at].decode("utf-8", "ignore")
        first = min((so_far.find(stop) for stop in stops if stop in so_far), default=None)
        assert growing.stop_at == first
        assert growing.kept() == (so_far if first is None else so_far[:first])
        assert growing.n_safe() >= shown  # what was shown is never taken back
        shown = growing.n_safe()
        if stopped:
            break
        # Held back is the longest end that some stop string begins with.
        ends = [n for n in range(len(so_far) + 1) if any(stop.startswith(so_far[n:]) for stop in ["", *stops])]
        assert shown == ends[0]


def test_logprobs_are_the_models_own(model: pysa.Model) -> None:
    tokens = byte_tokens("ab")
    completion = begin(model, logprobs=3, max_tokens=2, logit_bias={tokens[0]: 0.5}, repeat_penalty=1.1)
    chunks = drive(model, completion, tokens)
    logprobs = completion.result()["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["a", "b"]
    assert logprobs["text_offset"] == [3, 4]  # after "the"
    for i, token in enumerate(tokens):
        logits = peaked(model, token).astype(np.float64)
        expected = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
        best = np.argsort(-expected)[:3]
        # float32 sums of 276 terms
        assert logprobs["token_logprobs"][i] == pytest.approx(expected[token], abs=1e-5)
        pieces = [model.token_to_piece(int(b)).decode("utf-8", "ignore") for b in best]
        assert next(iter(logprobs["top_logprobs"][i])) == pieces[0]
        assert set(logprobs["top_logprobs"][i]) == set(pieces)
        assert logprobs["top_logprobs"][i][pieces[0]] == pytest.approx(expected[best[0]], abs=1e-5)
    assert [c["choices"][0]["logprobs"] for c in chunks[:2]] == [
        {key: values[i : i + 1] for key, values in logprobs.items()} for i in range(2)
    ]
    json.dumps(completion.result())  # plain numbers


def test_logprobs_of_an_echoed_prompt(model: pysa.Model) -> None:
    completion = begin(model, prompt="in the", echo=True, logprobs=0, max_tokens=1)
    prompt = completion.prompt_tokens
    assert completion.wants_prompt_logits
    with pytest.raises(pysa.ArgumentError, match="add_prompt_logits"):
        completion.pick(peaked(model, 5))
    rows = np.stack([peaked(model, token, seed=7) for token in [*prompt[1:], 5]])
    completion.add_prompt_logits(rows[:2])
    completion.add_prompt_logits(rows[2:])
    chunks = drive(model, completion, byte_tokens("x"))
    choice = completion.result()["choices"][0]
    assert choice["text"] == text_of(chunks) == "in thex"
    logprobs = choice["logprobs"]
    assert logprobs["tokens"] == [*(model.token_to_piece(t).decode() for t in prompt[1:]), "x"]
    assert logprobs["token_logprobs"][0] is None
    assert logprobs["top_logprobs"][0] is None
    row = rows[1].astype(np.float64)
    expected = row[prompt[2]] - np.log(np.exp(row).sum())
    assert logprobs["token_logprobs"][1] == pytest.approx(expected, abs=1e-5)
    offsets = np.cumsum([0, *(len(text) for text in logprobs["tokens"][:-1])]).tolist()
    assert logprobs["text_offset"] == offsets


def test_a_logits_processor_sees_the_tokens_and_decides(model: pysa.Model) -> None:
    seen: list[list[int]] = []
    want = byte_tokens("q")[0]

    def choose(ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
        seen.append(ids.tolist())
        logits[:] = -np.inf
        logits[want] = 0
        return logits

    completion = begin(model, logits_processor=LogitsProcessorList([choose]), max_tokens=2, logprobs=1)
    for token in byte_tokens("ab"):
        completion.pick(peaked(model, token))
    assert completion.tokens == [want, want]
    prompt = completion.prompt_tokens
    assert seen == [prompt, [*prompt, want]]
    # The record is of the model's logits, which the processor did not touch.
    assert completion.result()["choices"][0]["logprobs"]["token_logprobs"][0] > -20


def test_stopping_criteria_end_it_without_the_token(model: pysa.Model) -> None:
    n_prompt = len(model.tokenize("the"))
    completion = begin(model, stopping_criteria=StoppingCriteriaList([lambda ids, _: len(ids) >= n_prompt + 2]))
    drive(model, completion, byte_tokens("abcd"))
    result = completion.result()
    assert (result["choices"][0]["text"], result["choices"][0]["finish_reason"]) == ("ab", "stop")
    assert result["usage"]["completion_tokens"] == 2


def test_logit_bias_moves_the_choice(model: pysa.Model) -> None:
    a, b = byte_tokens("ab")
    completion = begin(model, logit_bias={str(b): 100.0}, max_tokens=1)
    completion.pick(peaked(model, a))
    assert completion.tokens == [b]


def test_penalties_look_at_generated_tokens_only(model: pysa.Model) -> None:
    a, b = byte_tokens("ab")
    logits = np.zeros(model.n_vocab, np.float32)
    logits[a], logits[b] = 3.0, 2.0
    completion = begin(model, prompt=[1, a, a], frequency_penalty=1.5)
    picked = []
    for _ in range(4):
        completion.pick(logits)
        picked.append(completion.tokens[-1])
    # 3 2 -> a; 1.5 2 -> b; 1.5 0.5 -> a; 0 0.5 -> b
    assert picked == [a, b, a, b]


def test_a_grammar_is_followed_to_its_end(model: pysa.Model) -> None:
    completion = begin(model, grammar=pysa.LlamaGrammar.from_string('root ::= "ab" | "ac"'))
    drive_tokens = [byte_tokens("x")[0]] * 3
    for token in drive_tokens:
        completion.pick(peaked(model, token))
    result = completion.result()["choices"][0]
    assert result["text"] in ("ab", "ac")
    assert result["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("n_ctx", "max_tokens", "n_given"),
    [(20, None, "rest"), (20, 0, "rest"), (20, -1, "rest"), (20, 5, 5), (20, 99, "rest")],
)
def test_the_context_bounds_the_answer(model: pysa.Model, n_ctx: int, max_tokens: int | None, n_given: Any) -> None:
    completion = begin(model, n_ctx=n_ctx, max_tokens=max_tokens)
    drive(model, completion, byte_tokens("a") * 99)
    n_rest = n_ctx - len(completion.prompt_tokens)
    assert completion.finish_reason == "length"
    assert len(completion.tokens) == (n_rest if n_given == "rest" else n_given)


def test_a_prompt_that_fills_the_context_is_a_valueerror_too(model: pysa.Model) -> None:
    for error in (PromptTooLongError, pysa.ContextFullError, ValueError):
        with pytest.raises(error, match="20 tokens do not fit: expected at most 19 in a context of 20"):
            begin(model, prompt=[5] * 20, n_ctx=20)
    assert begin(model, prompt=[5] * 19, n_ctx=20).finish_reason is None


def test_an_empty_prompt_begins_with_bos(model: pysa.Model, tiny_gguf: Any) -> None:
    completion = begin(model, prompt="", max_tokens=3)
    assert (completion.prompt_tokens, completion.tokens) == ([1], [1])
    drive(model, completion, byte_tokens("ab"))
    assert completion.result()["choices"][0]["text"] == "ab"
    assert completion.usage()["completion_tokens"] == 3  # as llama-cpp-python counts it
    with pysa.Model(tiny_gguf("llama"), n_threads=1) as bpe, pytest.raises(pysa.ArgumentError, match="prompt: empty"):
        begin(bpe, prompt="")


def test_tokens_are_taken_as_they_are(model: pysa.Model) -> None:
    completion = begin(model, prompt=[5, 6], echo=True, max_tokens=1, logprobs=0)
    assert completion.prompt_tokens == [5, 6]
    assert completion.request.prompt_text == "\x02\x03"


def test_bos_written_out_warns(model: pysa.Model) -> None:
    with pytest.warns(RuntimeWarning, match="it begins with BOS"):
        assert begin(model, prompt="<s>the").prompt_tokens[:2] == [1, 1]


def test_suffix_without_tokens_for_it_is_appended(model: pysa.Model) -> None:
    completion = begin(model, suffix=" END", max_tokens=1)
    chunks = drive(model, completion, byte_tokens("x"))
    assert text_of(chunks) == completion.result()["choices"][0]["text"] == "x END"


@pytest.mark.parametrize("vocab", ["llama", "gpt2"])
@pytest.mark.parametrize("suffix_first", [False, True])
def test_suffix_with_tokens_for_it(tiny_gguf: Any, vocab: str, suffix_first: bool) -> None:
    special = {f"tokenizer.ggml.fim_{name}_token_id": 60 + i for i, name in enumerate(("pre", "suf", "mid"))}
    with pysa.Model(tiny_gguf("llama", vocab=vocab, extra_kv=special), n_threads=1) as model:
        request = CompletionRequest.from_arguments(model, "in", suffix="the", spm_infill=suffix_first)
        prompt, suffix = model.tokenize("in", False, False), model.tokenize(" the", False, False)
        suffix = model.tokenize("xthe", False, False)[len(model.tokenize("x", False, False)) :]  # without a space
        before, after = [60, *prompt], [61, *suffix]
        bos = [1] if vocab == "llama" else []
        assert request.prompt_tokens == [*bos, *(after + before if suffix_first else before + after), 62]
        assert request.appended == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": 5}, "prompt: wrong type"),
        ({"prompt": ["a"]}, r"prompt\[0\]: wrong type"),
        ({"prompt": [999999]}, r"prompt\[0\]: out of range"),
        ({"max_tokens": 1.5}, "max_tokens: wrong type"),
        ({"temperature": float("nan")}, "temperature: out of range"),
        ({"top_p": 2.0}, "top_p: out of range"),
        ({"repeat_penalty": 0.0}, "repeat_penalty: out of range"),
        ({"mirostat_mode": 3}, "mirostat_mode: out of range"),
        ({"stop": [""]}, r"stop\[0\]: empty"),
        ({"stop": 5}, "stop: wrong type"),
        ({"logprobs": -1}, "logprobs: out of range"),
        ({"logit_bias": {999999: 1.0}}, "logit_bias: out of range"),
        ({"logit_bias": {5: float("nan")}}, r"logit_bias\[5\]: out of range"),
        ({"logit_bias": [5]}, "logit_bias: wrong type"),
        ({"grammar": "root ::= x"}, "grammar: wrong type"),
        ({"grammar": pysa.LlamaGrammar.from_string("root ::= (")}, "grammar"),
        ({"logits_processor": 5}, "logits_processor: wrong type"),
        ({"seed": "x"}, "seed: wrong type"),
        ({"echo": 1}, "echo: wrong type"),
    ],
)
def test_wrong_arguments_are_named(model: pysa.Model, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(pysa.ArgumentError, match=message):
        begin(model, **arguments)


def test_one_seed_one_text(model: pysa.Model) -> None:
    logits = np.zeros(model.n_vocab, np.float32)

    def draw(seed: int | None) -> list[int]:
        completion = begin(model, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=seed, max_tokens=12)
        while completion.pick(logits) is not None:
            pass
        return completion.tokens

    assert draw(7) == draw(7)
    assert draw(7) == draw(7 + 2**32)  # modulo 2**32
    assert draw(7) != draw(8)
    assert draw(-1) != draw(-1)


@pytest.mark.parametrize("narrow", [{"top_p": 0}, {"min_p": 1}, {"top_k": 1}, {"typical_p": 0, "temperature": 1e-3}])
def test_filters_at_their_ends_keep_one_token(model: pysa.Model, narrow: dict[str, Any]) -> None:
    logits = peaked(model, 70)
    for seed in range(5):
        off = {"top_k": -1, "top_p": 1.0, "min_p": 0.0, "temperature": 5.0}
        completion = begin(model, **{**off, **narrow}, seed=seed, max_tokens=1)
        completion.pick(logits)
        expected = 70
        if "typical_p" in narrow:  # keeps the one token whose surprise is nearest to the mean
            logprobs = logits.astype(np.float64) - np.log(np.exp(logits.astype(np.float64)).sum())
            entropy = -(np.exp(logprobs) * logprobs).sum()
            expected = int(np.argmin(np.abs(-logprobs - entropy)))
        assert completion.tokens == [expected]
