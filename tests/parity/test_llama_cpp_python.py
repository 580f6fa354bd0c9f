"""pysa.Llama equals the real llama_cpp.Llama on the same file: texts, reasons, counts, keys, probabilities, vectors.

Both compute in float32 (weights and cache), so that logits agree within rounding. Greedy texts agree as long as no two
likeliest tokens lie closer than that: `clear` checks it for each text that is compared. The tiny models speak ASCII
only: rows of other bytes are zeroed in their output matrix, because llama-cpp-python goes beyond max_tokens in the
middle of a character (docs/binding.md).
"""

from __future__ import annotations

import inspect
import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest

import pysa.llama as ours_module
from pysa.llama import Llama

llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is compiled from source; the test extra has it")

N_CTX = 512  # llama.cpp rounds other sizes up to a multiple of 256
SHARED: dict[str, Any] = {"n_ctx": N_CTX, "n_threads": 1, "n_threads_batch": 1, "type_k": 0, "type_v": 0, "seed": 5}
VOCABS = ("llama", "gpt2")
PROMPTS = {"llama": "the thing and ", "gpt2": "the string and "}
CLEAR = 1e-3  # logits; the two engines differ by less than 1e-4
LOGPROB_TOLERANCE = 1e-4  # float32 through four layers, then a sum over the vocabulary


def speak_ascii(path: Path) -> Path:
    """Zeroes what makes tokens of other bytes likely."""
    reader = gguf.GGUFReader(path, "r+")
    tokens = reader.get_field("tokenizer.ggml.tokens").contents()
    (weight,) = (tensor for tensor in reader.tensors if tensor.name == "output.weight")
    spm = reader.get_field("tokenizer.ggml.model").contents() == "llama"
    for i, token in enumerate(tokens):
        if (int(token[3:5], 16) >= 0x80) if spm and token.startswith("<0x") else not spm and 128 <= i < 256:
            weight.data[i] = 0
    weight.data.flush()
    return path


@pytest.fixture(scope="module", params=VOCABS)
def pair(request: pytest.FixtureRequest, tiny_gguf: Callable[..., Path], tmp_path_factory: Any) -> Iterator[Any]:
    """The two Llamas on one file, theirs with logits_all, without which it gives no logprobs."""
    path = tmp_path_factory.mktemp("pair") / f"{request.param}.gguf"
    shutil.copy(tiny_gguf("llama", n_layer=4, vocab=request.param, seed=8), path)
    speak_ascii(path)
    theirs = llama_cpp.Llama(str(path), logits_all=True, verbose=False, **SHARED)
    with Llama(str(path), **SHARED) as ours:
        yield SimpleNamespace(
            ours=ours, theirs=theirs, path=str(path), vocab=request.param, prompt=PROMPTS[request.param]
        )
    theirs.close()


def open_both(path: str, **arguments: Any) -> tuple[Llama, Any]:
    given = {**SHARED, **arguments}
    return Llama(path, **given), llama_cpp.Llama(path, verbose=False, **given)


def settled(result: Any) -> Any:
    """A result without what differs from call to call, and without what pysa adds."""
    result = {key: value for key, value in result.items() if key not in ("id", "created")}
    if "usage" in result:
        result["usage"] = {key: value for key, value in result["usage"].items() if key != "prompt_tokens_details"}
    return result


def assert_same(ours: Any, theirs: Any) -> None:
    assert list(ours) == list(theirs)  # the same keys in the same order
    assert ours["id"][:5] == theirs["id"][:5] == "cmpl-"
    assert type(ours["created"]) is type(theirs["created"])
    assert settled(ours) == settled(theirs)


def assert_clear(llm: Llama, prompt: Any, result: Any, **arguments: Any) -> None:
    """No token of a greedy text was chosen by less than rounding."""
    given = {**arguments, "max_tokens": result["usage"]["completion_tokens"], "temperature": 0, "stop": []}
    margins: list[float] = []

    def look(ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
        best = np.sort(logits)[-2:]
        margins.append(float(best[1] - best[0]))
        return logits

    llm(prompt, logits_processor=ours_module.LogitsProcessorList([look]), **given)
    assert min(margins) > CLEAR


def banned_vowels(ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Depends on the ids and the logits; bytes of vowels in both vocabularies."""
    logits[[97, 100, 101, 104, 105, 108, 111, 114, 117, 120]] -= 3.0 + 0.5 * (int(ids[-1]) % 3)
    return logits


ONE_LETTER, LETTERS = "<one>", "<several>"  # stand for what the model says, see case()
CASES: dict[str, dict[str, Any]] = {
    "plain": {"max_tokens": 40},
    "default max_tokens": {},
    "echo": {"max_tokens": 12, "echo": True},
    "to the context's end": {"max_tokens": None, "logit_bias": {2: -1e4, 271: -1e4}},
    "negative max_tokens": {"max_tokens": -1},
    "one stop": {"max_tokens": 60, "stop": ONE_LETTER},
    "several stops": {"max_tokens": 60, "stop": ["@@@@", LETTERS, ONE_LETTER]},
    "a stop of several tokens": {"max_tokens": 60, "stop": LETTERS},
    "repeat_penalty": {"max_tokens": 40, "repeat_penalty": 1.4},
    "frequency_penalty": {"max_tokens": 40, "frequency_penalty": 0.7},
    "presence_penalty": {"max_tokens": 40, "presence_penalty": 1.1, "repeat_penalty": 1.1},
    "logit_bias": {"max_tokens": 40, "logit_bias": {110: 4.0, 50: -3.0}},
    "named": {"max_tokens": 3, "model": "a name"},
}


def case(pair: Any, name: str) -> dict[str, Any]:
    """A case's arguments, with stop strings that come up for the first time within the text."""
    arguments = {"temperature": 0, **CASES[name]}
    if "stop" in arguments:
        text = pair.theirs(pair.prompt, temperature=0, max_tokens=50)["choices"][0]["text"]
        found = {}
        for stop, n in ((ONE_LETTER, 1), (LETTERS, 4)):
            found[stop] = next(text[i : i + n] for i in range(6, 40) if text.index(text[i : i + n]) == i)
        one = isinstance(arguments["stop"], str)
        stops = [found.get(stop, stop) for stop in ([arguments["stop"]] if one else arguments["stop"])]
        arguments["stop"] = stops[0] if one else stops
    return arguments


@pytest.mark.parametrize("name", CASES)
def test_completions(pair: Any, name: str) -> None:
    arguments = case(pair, name)
    theirs = pair.theirs(pair.prompt, **arguments)
    ours = pair.ours(pair.prompt, **arguments)
    assert_same(ours, theirs)
    if "penalty" not in name:  # penalties change the margins that assert_clear looks at
        assert_clear(pair.ours, pair.prompt, ours, **{k: v for k, v in CASES[name].items() if k == "logit_bias"})


def test_the_cases_end_in_all_ways(pair: Any) -> None:
    """Otherwise the test above says less than it seems to."""
    found = {name: pair.theirs(pair.prompt, **case(pair, name)) for name in CASES}
    assert found["plain"]["choices"][0]["finish_reason"] == "length"
    assert found["to the context's end"]["usage"]["total_tokens"] == N_CTX
    for name in ("one stop", "several stops", "a stop of several tokens"):
        assert found[name]["choices"][0]["finish_reason"] == "stop"
        assert len(found[name]["choices"][0]["text"]) >= 6
    assert len(set(found["plain"]["choices"][0]["text"])) > 8


def test_tokens_as_the_prompt(pair: Any) -> None:
    tokens = pair.theirs.tokenize(pair.prompt.encode())
    arguments = {"temperature": 0, "max_tokens": 20}
    assert_same(pair.ours(tokens, **arguments), pair.theirs(tokens, **arguments))


def test_an_empty_prompt(pair: Any) -> None:
    if pair.vocab == "gpt2":
        pytest.skip("the model adds no BOS, so there is nothing to evaluate")
    for max_tokens in (1, 2, 12):
        arguments = {"temperature": 0, "max_tokens": max_tokens}
        assert_same(pair.ours("", **arguments), pair.theirs("", **arguments))


@pytest.mark.parametrize("name", ["plain", "several stops", "a stop of several tokens", "logprobs", "named"])
def test_streams(pair: Any, name: str) -> None:
    arguments = {"temperature": 0, "max_tokens": 12, "logprobs": 3} if name == "logprobs" else case(pair, name)
    arguments["stream"] = True
    ours, theirs = list(pair.ours(pair.prompt, **arguments)), list(pair.theirs(pair.prompt, **arguments))
    text = "".join(chunk["choices"][0]["text"] for chunk in theirs)
    assert "".join(chunk["choices"][0]["text"] for chunk in ours) == text
    assert text
    for one, other in ((ours[0], theirs[0]), (ours[-1], theirs[-1])):
        assert list(one) == list(other)
        assert list(one["choices"][0]) == list(other["choices"][0])
    assert settled(ours[-1]) == settled(theirs[-1])
    assert len({chunk["id"] for chunk in ours}) == len({chunk["id"] for chunk in theirs}) == 1
    if name == "logprobs":
        assert len(ours) == len(theirs)
        for one, other in zip(ours[:-1], theirs[:-1], strict=True):
            assert_logprobs(one["choices"][0]["logprobs"], other["choices"][0]["logprobs"])


def assert_logprobs(ours: Any, theirs: Any) -> None:
    assert set(ours) == set(theirs)
    assert ours["tokens"] == theirs["tokens"]
    assert ours["text_offset"] == theirs["text_offset"]
    for one, other in zip(ours["token_logprobs"], theirs["token_logprobs"], strict=True):
        assert one == (None if other is None else pytest.approx(other, abs=LOGPROB_TOLERANCE))
    for one, other in zip(ours["top_logprobs"], theirs["top_logprobs"], strict=True):
        if other is None:
            assert one is None
            continue
        # Tokens whose texts are alike share an entry, of which llama-cpp-python keeps the unlikeliest.
        shared = [text for text in other if text != ""]
        assert [text for text in one if text != ""] == shared
        for text in shared:
            assert one[text] == pytest.approx(other[text], abs=LOGPROB_TOLERANCE)


@pytest.mark.parametrize("echo", [False, True])
@pytest.mark.parametrize("n_top", [0, 1, 5])
def test_logprobs(pair: Any, n_top: int, echo: bool) -> None:
    if echo and pair.vocab == "gpt2":
        pytest.skip("without BOS llama-cpp-python pairs each prompt token with the logits of the next")
    arguments = {"temperature": 0, "max_tokens": 12, "logprobs": n_top, "echo": echo}
    ours, theirs = pair.ours(pair.prompt, **arguments), pair.theirs(pair.prompt, **arguments)
    assert_logprobs(ours["choices"][0].pop("logprobs"), theirs["choices"][0].pop("logprobs"))
    assert settled(ours) == settled(theirs)


def test_a_logits_processor_and_stopping_criteria(pair: Any) -> None:
    for arguments in (
        {"logits_processor": [banned_vowels]},
        {"stopping_criteria": [lambda ids, _: len(ids) > 30]},
        {"logits_processor": [banned_vowels], "stopping_criteria": [lambda ids, _: bool(ids[-1] % 5 == 0)]},
    ):
        kinds = {"logits_processor": "LogitsProcessorList", "stopping_criteria": "StoppingCriteriaList"}
        ours, theirs = (
            llm(
                pair.prompt,
                temperature=0,
                max_tokens=40,
                **{name: getattr(module, kinds[name])(value) for name, value in arguments.items()},
            )
            for llm, module in ((pair.ours, ours_module), (pair.theirs, llama_cpp))
        )
        assert_same(ours, theirs)


GRAMMARS = {
    "choice": 'root ::= ("alpha" | "beta" | "gamma") " " [a-z]{3}',
    "list": r'root ::= "[" item ("," item)* "]"' + "\n" + "item ::= [0-9]+",
    "deep": 'root ::= "(" (root | [a-z]+) ")"',
}
SCHEMAS = {
    "object": {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer"}},
        "required": ["name", "age"],
    },
    "enum": {"enum": ["red", "green", {"blue": 1}]},
    "array": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3},
}


@pytest.mark.parametrize("name", GRAMMARS)
def test_grammars(pair: Any, name: str) -> None:
    ours, theirs = (
        llm(
            pair.prompt,
            temperature=0,
            max_tokens=30,
            grammar=module.LlamaGrammar.from_string(GRAMMARS[name], verbose=False),
        )
        for llm, module in ((pair.ours, ours_module), (pair.theirs, llama_cpp))
    )
    assert_same(ours, theirs)


@pytest.mark.parametrize("name", SCHEMAS)
def test_json_schemas(pair: Any, name: str) -> None:
    """Their grammar gives their text. Ours, by llama.cpp's converter, is another: theirs lets in what is no JSON."""
    schema = json.dumps(SCHEMAS[name])
    written = llama_cpp.LlamaGrammar.from_json_schema(schema, verbose=False)
    arguments = {"temperature": 0, "max_tokens": 120}
    theirs = pair.theirs(pair.prompt, grammar=written, **arguments)
    assert_same(
        pair.ours(pair.prompt, grammar=ours_module.LlamaGrammar.from_string(written._grammar), **arguments), theirs
    )
    own = pair.ours(pair.prompt, grammar=ours_module.LlamaGrammar.from_json_schema(schema), **arguments)
    assert own["choices"][0]["finish_reason"] == "stop"
    value = json.loads(own["choices"][0]["text"])
    if name == "object":
        assert list(value) == ["name", "age"]
        assert isinstance(value["age"], int)
        assert len(value["name"]) <= 8
    elif name == "enum":
        assert value in SCHEMAS["enum"]["enum"]
    else:
        assert 2 <= len(value) <= 3
        assert {type(item) for item in value} == {bool}


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0.8},
        {"temperature": 1.5, "top_k": 0, "top_p": 1.0, "min_p": 0.0},
        {"temperature": 1.2, "top_k": 10, "typical_p": 0.7},
        {"temperature": -1.0},
        {"temperature": 0.9, "mirostat_mode": 1, "mirostat_tau": 3.0},
        {"temperature": 0.9, "mirostat_mode": 2, "mirostat_eta": 0.3, "repeat_penalty": 1.2},
    ],
)
def test_draws_with_one_seed(pair: Any, sampling: dict[str, Any]) -> None:
    """libllama draws in both; a draw changes only where a probability's rounding crosses the random number."""
    for seed in (1, 2):
        arguments = {"max_tokens": 24, "seed": seed, **sampling}
        assert_same(pair.ours(pair.prompt, **arguments), pair.theirs(pair.prompt, **arguments))


def test_the_chain_of_seeds(pair: Any) -> None:
    ours, theirs = open_both(pair.path, seed=1234)
    for _ in range(3):
        assert_same(ours(pair.prompt, temperature=1.3), theirs(pair.prompt, temperature=1.3))
    default = {key: value for key, value in SHARED.items() if key != "seed"}
    arguments = {"temperature": 1.3, "max_tokens": 8}
    assert_same(
        Llama(pair.path, **default)(pair.prompt, **arguments),
        llama_cpp.Llama(pair.path, verbose=False, **default)(pair.prompt, **arguments),
    )


def test_a_prompt_that_is_too_long(pair: Any) -> None:
    for n in (N_CTX, N_CTX + 1):
        for llm in (pair.ours, pair.theirs):
            with pytest.raises(ValueError, match=f"{n}"):
                llm([40] * n, max_tokens=1)
    tokens = [40 + i % 50 for i in range(N_CTX - 3)]
    arguments = {"temperature": 0, "max_tokens": 50, "logit_bias": {2: -1e4, 271: -1e4}}
    theirs = pair.theirs(tokens, **arguments)
    assert theirs["usage"]["completion_tokens"] == 3
    assert_same(pair.ours(tokens, **arguments), theirs)


@pytest.mark.parametrize("spm_infill", [False, True])
def test_suffix(tiny_gguf: Callable[..., Path], tmp_path: Path, spm_infill: bool) -> None:
    """llama-cpp-python takes token 0 for all three tokens of filling in, so that is what this model says too."""
    special = {f"tokenizer.ggml.fim_{name}_token_id": 0 for name in ("pre", "suf", "mid")}
    path = tmp_path / "infill.gguf"
    shutil.copy(tiny_gguf("llama", n_layer=2, vocab="llama", extra_kv=special), path)
    ours, theirs = open_both(str(speak_ascii(path)), spm_infill=spm_infill)
    arguments = {"temperature": 0, "max_tokens": 20, "suffix": ""}
    assert_same(ours("the thing", **arguments), theirs("the thing", **arguments))


def test_tokens_and_metadata(pair: Any) -> None:
    ours, theirs = pair.ours, pair.theirs
    for text in (b"the thing", b"", " \n\tx é☺".encode(), b"<s>a</s><|im_end|>"):
        for add_bos in (False, True):
            for special in (False, True):
                tokens = theirs.tokenize(text, add_bos, special)
                assert ours.tokenize(text, add_bos, special) == tokens
                for written in (False, True):
                    assert ours.detokenize(tokens, special=written) == theirs.detokenize(tokens, special=written)
    for name in ("token_bos", "token_eos", "token_nl", "n_vocab", "n_ctx", "n_embd"):
        assert getattr(ours, name)() == getattr(theirs, name)(), name
    assert ours.metadata == theirs.metadata
    assert ours.tokenizer().encode("the <s>") == theirs.tokenizer().encode("the <s>")
    assert ours.tokenizer().decode([60, 61, 62]) == theirs.tokenizer().decode([60, 61, 62])


def test_token_by_token(pair: Any) -> None:
    ours, theirs = open_both(pair.path, logits_all=True)
    tokens = theirs.tokenize(pair.prompt.encode())
    for llm in (ours, theirs):
        llm.reset()
        llm.eval(tokens)
    assert ours.n_tokens == theirs.n_tokens == len(tokens)
    assert ours.scores.shape == theirs.scores.shape
    # As a share of the logits' range.
    np.testing.assert_allclose(ours._scores, theirs._scores, rtol=0, atol=1e-4 * np.ptp(theirs._scores))
    assert ours.input_ids[: len(tokens)].tolist() == theirs.input_ids[: len(tokens)].tolist() == tokens
    assert list(ours.eval_tokens) == list(theirs.eval_tokens)
    assert ours.sample(temp=0) == theirs.sample(temp=0)
    found = []
    for llm in (ours, theirs):
        found.append([])
        for settings in ({"repeat_penalty": 1.3}, {}):  # theirs keeps the last one's for sample()
            generator = llm.generate(tokens, temp=0, **settings)
            found[-1] += [next(generator) for _ in range(16)]
            generator.close()
        llm.n_tokens = len(tokens) - 1  # as code that goes back does it
        llm.eval([tokens[-1], 70])
        found[-1].append(llm.sample(temp=0))
    assert found[0] == found[1]
    logits = ours._scores[:3]
    np.testing.assert_allclose(Llama.logits_to_logprobs(logits), llama_cpp.Llama.logits_to_logprobs(logits), atol=1e-5)


def test_saved_states(pair: Any) -> None:
    ours, theirs = open_both(pair.path, logits_all=True)
    tokens = theirs.tokenize(pair.prompt.encode())
    results = []
    for llm in (ours, theirs):
        llm.eval(tokens)
        state = llm.save_state()
        assert state.n_tokens == len(tokens)
        assert state.scores.shape == (len(tokens), llm.n_vocab())
        assert state.llama_state_size == len(state.llama_state)
        llm("something else", temperature=0)
        llm.load_state(state)
        assert llm.n_tokens == len(tokens)
        results.append(llm(tokens, temperature=0, max_tokens=16))
    assert_same(*results)
    assert set(vars(ours.save_state())) == set(vars(theirs.save_state()))


@pytest.mark.parametrize("pooling", [-1, 0, 1, 2, 3])
def test_embeddings(pair: Any, pooling: int) -> None:
    ours, theirs = open_both(pair.path, embedding=True, pooling_type=pooling)
    texts = ["the thing", "and in the ring " * 5, "x"]
    assert ours.pooling_type() == theirs.pooling_type()
    for normalize in (False, True):
        # Without pooling theirs mixes up the rows of several texts: they are not those of each text alone.
        several = [] if pooling <= 0 else [texts]
        for given in [*several, *texts]:
            one, other = ours.embed(given, normalize), theirs.embed(given, normalize)
            # Rows have been through the output norm, so values are of the order of one.
            np.testing.assert_allclose(np.array(one), np.array(other), rtol=0, atol=1e-4)
    one, other = ours.create_embedding(texts), theirs.create_embedding(texts)
    assert list(one) == list(other)
    assert [list(d) for d in one["data"]] == [list(d) for d in other["data"]]
    for key in ("object", "model", "usage"):
        assert one[key] == other[key]


def test_chat(pair: Any) -> None:
    ours, theirs = open_both(pair.path, chat_format="chatml")
    messages = [{"role": "system", "content": "in"}, {"role": "user", "content": "the thing"}]
    arguments = {"temperature": 0, "max_tokens": 16}
    one, other = (llm.create_chat_completion(messages, **arguments) for llm in (ours, theirs))
    assert set(one) == set(other)
    assert settled(one) == settled(other)
    one, other = (list(llm.create_chat_completion(messages, stream=True, **arguments)) for llm in (ours, theirs))
    assert set(one[0]) == set(other[0])
    for i in (0, 1, -1):
        assert set(one[i]["choices"][0]) == set(other[i]["choices"][0])
    texts = ["".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks) for chunks in (one, other)]
    assert texts[0] == texts[1] != ""


METHODS = [
    "__init__",
    "__call__",
    "create_completion",
    "create_chat_completion",
    "create_chat_completion_openai_v1",
    "create_embedding",
    "embed",
    "tokenize",
    "detokenize",
    "eval",
    "sample",
    "generate",
    "reset",
    "save_state",
    "load_state",
    "set_cache",
    "set_seed",
    "n_ctx",
    "n_embd",
    "n_vocab",
    "tokenizer",
    "token_bos",
    "token_eos",
    "token_nl",
    "pooling_type",
    "close",
    "logits_to_logprobs",
    "longest_token_prefix",
    "from_pretrained",
]


@pytest.mark.parametrize("name", METHODS)
def test_signatures(name: str) -> None:
    """The same names in the same order with the same defaults; pysa's own come after."""
    ours, theirs = (inspect.signature(getattr(cls, name)).parameters for cls in (Llama, llama_cpp.Llama))
    extra = [key for key in ours if key not in theirs]
    assert [key for key in ours if key in theirs] == list(theirs)
    assert all(ours[key].kind is inspect.Parameter.KEYWORD_ONLY for key in extra)
    for key, parameter in theirs.items():
        assert ours[key].default == parameter.default, key
        assert ours[key].kind is parameter.kind, key


def test_no_method_of_theirs_is_missing() -> None:
    public = {name for name in vars(llama_cpp.Llama) if not name.startswith("_")}
    missing = {name for name in public if not hasattr(Llama, name)}
    assert missing == {"ctx"}  # llama.cpp's own pointer


def test_warnings_and_errors_of_wrong_use(pair: Any) -> None:
    if pair.vocab == "llama":
        for llm in (pair.ours, pair.theirs):
            with pytest.warns(RuntimeWarning):
                llm("<s>the", max_tokens=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pair.ours(pair.prompt, max_tokens=1)
