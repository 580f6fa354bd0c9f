"""pysa.Llama on tiny random models, against sessions of the engine driven by hand."""

from __future__ import annotations

import gc
import pickle
import sys
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pysa
from pysa.llama import Llama, LlamaDiskCache, LlamaRAMCache, LlamaTokenizer, LogitsProcessorList, StoppingCriteriaList

PROMPT = "the thing and the "


@pytest.fixture
def open_llama(dense_gguf: Path) -> Iterator[Callable[..., Llama]]:
    """Opens dense_gguf (or another file) with a small context; all are closed at the end."""
    opened: list[Llama] = []

    def make(path: Path = dense_gguf, **arguments: Any) -> Llama:
        opened.append(Llama(path, **{"n_ctx": 256, "n_threads": 1, **arguments}))
        return opened[-1]

    yield make
    for llm in opened:
        llm.close()


@pytest.fixture
def llm(open_llama: Callable[..., Llama]) -> Llama:
    return open_llama()


def greedy(path: Path, prompt: list[int], n: int) -> list[int]:
    """The likeliest tokens, one by one, in a session of its own."""
    with pysa.Model(path, n_threads=1) as model, model.session(n_ctx=256) as session:
        logits = session.eval(prompt)[0]
        tokens = []
        for _ in range(n):
            tokens.append(int(np.argmax(logits)))
            if model.is_eog(tokens[-1]):
                return tokens[:-1]
            logits = session.eval(tokens[-1:])[0]
    return tokens


def text(result: Any) -> str:
    return str(result["choices"][0]["text"])


def test_a_completion_is_the_sessions_likeliest_tokens(llm: Llama, dense_gguf: Path) -> None:
    prompt = llm.tokenize(PROMPT.encode())
    tokens = greedy(dense_gguf, prompt, 20)
    result = llm(PROMPT, max_tokens=20, temperature=0)
    assert llm.input_ids[: llm.n_tokens].tolist() == (prompt + tokens)[: llm.n_tokens]
    assert text(result) == llm.detokenize(tokens).decode("utf-8", "ignore")
    assert result["model"] == str(dense_gguf)
    assert llm.create_completion(prompt, max_tokens=20, temperature=0)["choices"] == result["choices"]


def test_the_stream_joins_to_the_whole(llm: Llama) -> None:
    for arguments in ({"max_tokens": 30}, {"max_tokens": 30, "stop": ["in", "e "]}, {"max_tokens": 9, "echo": True}):
        whole = llm(PROMPT, temperature=0, **arguments)
        chunks = list(llm(PROMPT, temperature=0, stream=True, **arguments))
        assert "".join(map(text, chunks)) == text(whole)
        assert {chunk["id"] for chunk in chunks} == {chunks[0]["id"]}
        reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
        assert reasons == [None] * (len(chunks) - 1) + [whole["choices"][0]["finish_reason"]]
        assert set(chunks[0]) == {"id", "object", "created", "model", "choices"}


def test_a_shared_prefix_is_not_evaluated_again(llm: Llama, open_llama: Callable[..., Llama]) -> None:
    first = llm(PROMPT, max_tokens=8, temperature=0)
    n = first["usage"]["prompt_tokens"]
    assert first["usage"]["prompt_tokens_details"] == {"cached_tokens": 0, "reevaluated_tokens": 0}
    again = llm(PROMPT, max_tokens=8, temperature=0)
    assert again["usage"]["prompt_tokens_details"] == {"cached_tokens": n - 1, "reevaluated_tokens": 0}
    assert text(again) == text(first)
    longer = llm(PROMPT + text(first) + " and", max_tokens=8, temperature=0)
    assert longer["usage"]["prompt_tokens_details"]["cached_tokens"] >= n
    assert text(longer) == text(open_llama()(PROMPT + text(first) + " and", max_tokens=8, temperature=0))


def test_a_window_that_has_forgotten_is_counted(open_llama: Callable[..., Llama], shared_gguf: Path) -> None:
    llm = open_llama(shared_gguf, n_ctx=512)
    prompt = [5 + i % 200 for i in range(150)]
    llm(prompt, max_tokens=2, temperature=0)
    changed = [*prompt[:100], *([9] * 50)]
    result = llm(changed, max_tokens=8, temperature=0)
    details = result["usage"]["prompt_tokens_details"]
    assert details["cached_tokens"] + details["reevaluated_tokens"] == 100
    assert details["reevaluated_tokens"] > 0
    assert text(result) == text(open_llama(shared_gguf, n_ctx=512)(changed, max_tokens=8, temperature=0))


def test_a_stream_left_early_leaves_it_usable(llm: Llama) -> None:
    whole = llm(PROMPT, max_tokens=12, temperature=0)
    stream = llm(PROMPT, max_tokens=12, temperature=0, stream=True)
    next(stream)
    stream.close()
    assert llm(PROMPT, max_tokens=12, temperature=0)["choices"] == whole["choices"]
    abandoned = llm(PROMPT, max_tokens=12, temperature=0, stream=True)
    next(abandoned)  # neither closed nor finished
    assert llm(PROMPT, max_tokens=12, temperature=0)["choices"] == whole["choices"]
    rest = "".join(map(text, abandoned))
    assert text(whole).endswith(rest)
    assert rest


def test_streams_in_turns_do_not_mix(llm: Llama) -> None:
    prompts = [PROMPT, "and ing the", "hand in"]
    whole = [text(llm(prompt, max_tokens=10, temperature=0)) for prompt in prompts]
    streams = [llm(prompt, max_tokens=10, temperature=0, stream=True) for prompt in prompts]
    texts = ["", "", ""]
    for _ in range(12):
        for i, stream in enumerate(streams):
            chunk = next(stream, None)
            texts[i] += "" if chunk is None else text(chunk)
    assert texts == whole


def test_an_abandoned_streams_session_is_let_go(llm: Llama) -> None:
    first = llm.session
    stream = llm(PROMPT, max_tokens=12, temperature=0, stream=True)
    next(stream)
    llm(PROMPT, max_tokens=2)
    assert llm.session is not first
    del stream
    gc.collect()
    with pytest.raises(pysa.ArgumentError, match="closed"):
        first.eval([5])


def test_threads_take_turns(llm: Llama) -> None:
    prompts = [f"{PROMPT}{i}" for i in range(4)]
    expected = [text(llm(prompt, max_tokens=10, temperature=0)) for prompt in prompts]
    found: dict[int, list[str]] = {i: [] for i in range(4)}

    def ask(i: int) -> None:
        for turn in range(3):
            if turn % 2:
                found[i].append("".join(map(text, llm(prompts[i], max_tokens=10, temperature=0, stream=True))))
            else:
                found[i].append(text(llm(prompts[i], max_tokens=10, temperature=0)))

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == {i: [expected[i]] * 3 for i in range(4)}


def test_a_stream_may_go_on_in_another_thread(llm: Llama) -> None:
    whole = text(llm(PROMPT, max_tokens=10, temperature=0))
    stream = llm(PROMPT, max_tokens=10, temperature=0, stream=True)
    pieces: list[str] = []
    while True:
        chunk: list[Any] = []
        thread = threading.Thread(target=lambda got=chunk: got.append(next(stream, None)))
        thread.start()
        thread.join(60)
        if chunk[0] is None:
            break
        pieces.append(text(chunk[0]))
    assert "".join(pieces) == whole


def test_a_callback_may_call_back(llm: Llama) -> None:
    inner: list[str] = []

    def ask(ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
        if not inner:
            inner.append(text(llm("and", max_tokens=3, temperature=0)))
        return logits

    expected = text(llm(PROMPT, max_tokens=6, temperature=0))
    assert text(llm(PROMPT, max_tokens=6, temperature=0, logits_processor=LogitsProcessorList([ask]))) == expected
    assert inner == [text(llm("and", max_tokens=3, temperature=0))]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_error_on_the_way_leaves_it_usable(llm: Llama, error: type[BaseException]) -> None:
    whole = llm(PROMPT, max_tokens=8, temperature=0)

    def fail(ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
        if len(ids) > whole["usage"]["prompt_tokens"] + 3:
            raise error
        return logits

    for stream in (False, True):
        with pytest.raises(error):
            list(llm(PROMPT, max_tokens=8, temperature=0, logits_processor=fail, stream=stream))
        again = llm(PROMPT, max_tokens=8, temperature=0)
        assert again["choices"] == whole["choices"]
        assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == whole["usage"]["prompt_tokens"] - 1


def test_the_context_ends_the_answer_and_refuses_the_prompt(open_llama: Callable[..., Llama]) -> None:
    llm = open_llama(n_ctx=32)
    result = llm([5] * 20, max_tokens=None, temperature=0, logit_bias={2: float("-inf")})
    assert result["choices"][0]["finish_reason"] == "length"
    assert result["usage"]["total_tokens"] == 32
    for stream in (False, True):
        with pytest.raises(ValueError, match="33 tokens do not fit"):
            llm([5] * 33, stream=stream)
    assert llm([5] * 20, max_tokens=2)["usage"]["prompt_tokens_details"]["cached_tokens"] == 19


def test_seeds_follow_a_chain(open_llama: Callable[..., Llama]) -> None:
    arguments: dict[str, Any] = {"max_tokens": 8, "temperature": 1.5, "top_k": 0, "min_p": 0.0}
    one, other = open_llama(seed=11), open_llama(seed=11)
    texts = [text(one(PROMPT, **arguments)) for _ in range(3)]
    assert texts == [text(other(PROMPT, **arguments)) for _ in range(3)]
    assert len(set(texts)) == 3
    assert text(one(PROMPT, seed=5, **arguments)) == text(other(PROMPT, seed=5, **arguments))
    one.set_seed(11)
    assert text(one(PROMPT, **arguments)) == texts[0]


# ---- token by token


def test_eval_and_scores(open_llama: Callable[..., Llama], dense_gguf: Path) -> None:
    llm = open_llama(logits_all=True)
    tokens = llm.tokenize(PROMPT.encode())
    llm.eval(tokens[:4])
    llm.eval(tokens[4:])
    with pysa.Model(dense_gguf, n_threads=1) as model, model.session(n_ctx=256) as session:
        rows = np.concatenate([session.eval(tokens[:4], "all"), session.eval(tokens[4:], "all")])
    assert np.array_equal(llm.scores[: llm.n_tokens], rows)
    assert llm.scores.shape == (256, llm.n_vocab())
    assert list(llm.eval_tokens) == tokens
    assert len(llm.eval_logits) == len(tokens)
    llm.n_tokens = 4
    llm.eval(tokens[4:])
    assert np.array_equal(llm.scores[: llm.n_tokens], rows)
    llm.reset()
    assert llm.n_tokens == 0


def test_scores_without_logits_all_are_refused_not_made_up(llm: Llama) -> None:
    llm.eval(llm.tokenize(b"the"))
    with pytest.raises(pysa.ArgumentError, match="logits_all=True"):
        llm.scores  # noqa: B018
    assert len(llm.eval_logits) == 1
    assert int(np.argmax(llm.eval_logits[0])) == llm.sample(temp=0)


def test_generate_gives_what_a_completion_gives(llm: Llama, dense_gguf: Path) -> None:
    prompt = llm.tokenize(PROMPT.encode())
    tokens = []
    for token in llm.generate(prompt, temp=0):
        tokens.append(token)
        if len(tokens) == 12:
            break
    assert tokens == greedy(dense_gguf, prompt, 12)
    stepwise = []
    llm.reset()
    llm.eval(prompt)
    for _ in range(12):
        stepwise.append(llm.sample(temp=0))
        llm.eval(stepwise[-1:])
    assert stepwise == tokens


def test_generate_takes_tokens_by_send(llm: Llama, dense_gguf: Path) -> None:
    prompt = llm.tokenize(PROMPT.encode())
    generator = llm.generate(prompt, temp=0)
    first = next(generator)
    after = generator.send([9, 10])
    assert llm.input_ids[: llm.n_tokens].tolist() == [*prompt, first, 9, 10]
    assert [after] == greedy(dense_gguf, [*prompt, first, 9, 10], 1)


def test_generate_without_reset_goes_on(llm: Llama, dense_gguf: Path) -> None:
    prompt = llm.tokenize(PROMPT.encode())
    llm.eval(prompt[:5])
    assert next(llm.generate(prompt[5:], temp=0, reset=False)) == greedy(dense_gguf, prompt, 1)[0]


def test_generate_stops_by_its_criteria_and_at_the_context(open_llama: Callable[..., Llama]) -> None:
    llm = open_llama(n_ctx=16)
    criteria = StoppingCriteriaList([lambda ids, _: len(ids) == 12])
    assert len(list(llm.generate([5] * 8, temp=0, stopping_criteria=criteria))) == 4
    with pytest.raises(pysa.ContextFullError):
        list(llm.generate([5] * 8, temp=0))
    for logits_all in (False, True):
        llm = open_llama(n_ctx=16, logits_all=logits_all, n_batch=4)
        llm.eval([5] * 8)
        with pytest.raises(pysa.ContextFullError, match="17 do not fit"):
            llm.eval([6] * 9)
        with pytest.raises(pysa.ContextFullError, match="17 do not fit"):
            next(llm.generate([6] * 17))
        assert llm.input_ids[: llm.n_tokens].tolist() == [5] * 8
        llm.eval([])
        assert llm.n_tokens == 8


def test_sampling_goes_on_where_it_was(llm: Llama) -> None:
    llm.eval(llm.tokenize(b"the"))
    grammar = pysa.LlamaGrammar.from_string('root ::= "xyz"')
    # The logits stay the same; the grammar moves on.
    picked = [llm.sample(temp=0, grammar=grammar) for _ in range(3)]
    assert llm.detokenize(picked) == b"xyz"


def test_sample_at_a_position(open_llama: Callable[..., Llama]) -> None:
    llm = open_llama(logits_all=True)
    llm.eval(llm.tokenize(PROMPT.encode()))
    assert llm.sample(temp=0, idx=3) == int(np.argmax(llm.scores[3]))
    with pytest.raises(pysa.ArgumentError, match="no logits"):
        open_llama().sample()


# ---- states and caches


@pytest.mark.parametrize("logits_all", [False, True])
def test_a_state_comes_back(open_llama: Callable[..., Llama], logits_all: bool) -> None:
    llm, other = open_llama(logits_all=logits_all), open_llama(logits_all=logits_all)
    prompt = llm.tokenize(PROMPT.encode())
    llm.eval(prompt)
    state, likeliest = pickle.loads(pickle.dumps(llm.save_state())), llm.sample(temp=0)
    expected = [token for token, _ in zip(llm.generate([*prompt, 9], temp=0), range(8), strict=False)]
    for target in (llm, other):
        target.load_state(state)
        assert target.n_tokens == len(prompt)
        assert target.sample(temp=0) == likeliest
        target.eval([9])
        assert target.sample(temp=0) == expected[0]
        result = target([*prompt, 9], max_tokens=8, temperature=0, logit_bias={2: -100})
        assert result["usage"]["prompt_tokens_details"]["cached_tokens"] >= len(prompt)
        assert text(result) == target.detokenize(expected).decode("utf-8", "ignore")


def test_a_state_of_other_settings_is_refused(open_llama: Callable[..., Llama], tiny_gguf: Any) -> None:
    llm = open_llama()
    llm.eval([5, 6])
    state = llm.save_state()
    with pytest.raises(pysa.StateFileError, match="n_ctx=256"):
        open_llama(n_ctx=128).load_state(state)
    with pytest.raises(pysa.StateFileError, match="logits_all"):
        open_llama(logits_all=True).load_state(state)
    with pytest.raises(pysa.StateFileError):
        open_llama(tiny_gguf("llama", n_layer=3, vocab="llama")).load_state(state)
    state.llama_state = state.llama_state[:-10]
    with pytest.raises(pysa.StateFileError):
        llm.load_state(state)
    assert llm.n_tokens == 2


def test_a_ram_cache_brings_back_an_earlier_conversation(open_llama: Callable[..., Llama]) -> None:
    llm, cache = open_llama(), LlamaRAMCache()
    llm.set_cache(cache)
    first = llm(PROMPT, max_tokens=6, temperature=0)
    llm("another and in", max_tokens=6, temperature=0)
    again = llm(PROMPT, max_tokens=6, temperature=0)
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == first["usage"]["prompt_tokens"] - 1
    assert again["choices"] == first["choices"]
    assert llm.tokenize(PROMPT.encode()) in cache
    sizes = [state.llama_state_size for state in cache.cache_state.values()]
    assert cache.cache_size == sum(sizes)
    cache.capacity_bytes = max(sizes)
    cache[(1, 2, 3)] = next(iter(cache.cache_state.values()))
    assert len(cache.cache_state) == 1
    with pytest.raises(KeyError):
        cache[(250,)]


@pytest.mark.parametrize("how", ["cache_dir", "set_cache"])
def test_a_folder_brings_back_a_long_document(open_llama: Callable[..., Llama], tmp_path: Path, how: str) -> None:
    def opened() -> Llama:
        if how == "cache_dir":
            return open_llama(n_ctx=1024, cache_dir=tmp_path / "cache")
        llm = open_llama(n_ctx=1024)
        llm.set_cache(LlamaDiskCache(tmp_path / "cache"))
        return llm

    document = [5 + i * i % 250 for i in range(600)]
    first = opened()([*document, 9, 10], max_tokens=6, temperature=0)
    assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    second = opened()([*document, 9, 11], max_tokens=6, temperature=0)
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] == 601
    plain = open_llama(n_ctx=1024)([*document, 9, 11], max_tokens=6, temperature=0)
    assert second["choices"] == plain["choices"]


# ---- embeddings


def test_embeddings_are_the_engines_rows(open_llama: Callable[..., Llama], dense_gguf: Path) -> None:
    texts = ["the thing", "and in"]
    with pysa.Model(dense_gguf, n_threads=1) as model:
        tokens = [model.tokenize(t) for t in texts]
        rows = []
        for ids in tokens:
            with model.session(n_ctx=256) as session:
                rows.append(session.native.eval(np.array(ids, np.int32), "embeddings"))
    llm = open_llama(embedding=True)
    found, n_tokens = llm.embed(texts, return_count=True)
    assert n_tokens == sum(map(len, tokens))
    for one, expected in zip(found, rows, strict=True):
        assert np.array_equal(np.array(one, np.float32), expected)
    for pooling, pooled in ((1, lambda r: r.mean(0)), (2, lambda r: r[0]), (3, lambda r: r[-1])):
        other = open_llama(pooling_type=pooling)
        assert other.pooling_type() == pooling
        # A mean in another order of summing.
        np.testing.assert_allclose(other.embed(texts[0]), pooled(rows[0]), rtol=0, atol=1e-6)
        scaled = np.array(other.embed(texts[0], normalize=True))
        np.testing.assert_allclose(scaled, pooled(rows[0]) / np.linalg.norm(pooled(rows[0])), rtol=0, atol=1e-6)
    result = open_llama(pooling_type=1).create_embedding(texts, model="m")
    assert [d["index"] for d in result["data"]] == [0, 1]
    assert (result["object"], result["model"], result["data"][0]["object"]) == ("list", "m", "embedding")
    assert result["usage"] == {"prompt_tokens": n_tokens, "total_tokens": n_tokens}


def test_long_inputs_are_cut_or_refused(open_llama: Callable[..., Llama]) -> None:
    llm = open_llama(n_batch=8)
    assert len(llm.embed("the and " * 9)) == 8
    with pytest.raises(ValueError, match="expected at most 8 tokens"):
        llm.embed("the and " * 9, truncate=False)


def test_the_files_pooling_counts(open_llama: Callable[..., Llama], tiny_gguf: Any) -> None:
    path = tiny_gguf("llama", vocab="llama", extra_kv={"llama.pooling_type": 3})
    assert np.array(open_llama(path).embed("the and")).shape == (96,)


# ---- the rest


def test_tokens_and_text(llm: Llama, dense_gguf: Path) -> None:
    assert (llm.token_bos(), llm.token_eos(), llm.token_nl()) == (1, 2, 13)
    assert llm.tokenize(b"the", add_bos=False) == llm.tokenize("the", add_bos=False)
    ids = llm.tokenize(b"the and")
    assert ids[0] == 1
    assert llm.detokenize(ids) == b"the and"
    assert llm.detokenize(ids[1:]) == b" the and"
    assert llm.detokenize([1], special=True) == b"<s>"
    assert llm.tokenize(b"<s>", add_bos=False, special=True) == [1]
    assert llm.tokenize(b"<s>", add_bos=False) != [1]
    tokenizer = llm.tokenizer()
    assert tokenizer.decode(tokenizer.encode("the ☺")) == "the ☺"
    assert LlamaTokenizer(llm).encode("the") == llm.tokenize(b"the")
    with pytest.raises(pysa.ArgumentError, match="not UTF-8 at byte 0"):
        llm.tokenize(b"\xff")
    assert (llm.n_vocab(), llm.n_embd()) == (276, 96)
    assert llm.metadata["general.architecture"] == "llama"
    assert llm.metadata["tokenizer.ggml.add_bos_token"] == "true"


def test_logits_to_logprobs() -> None:
    logits = np.array([[1.0, 2.0, -np.inf], [0.0, 0.0, 0.0]])
    expected = np.array([[-1.3132617, -0.3132617, -np.inf], [-1.0986123] * 3])
    np.testing.assert_allclose(Llama.logits_to_logprobs(logits), expected, atol=1e-6)
    np.testing.assert_allclose(Llama.logits_to_logprobs(logits.T[:2], axis=0)[:, 0], expected[0, :2], atol=1e-6)
    assert Llama.longest_token_prefix([1, 2, 3], [1, 2, 4, 5]) == 2


def test_pickled_it_opens_again(open_llama: Callable[..., Llama]) -> None:
    llm = open_llama(type_k="f32", last_n_tokens_size=7, plan="dense")
    llm.chat_format = "chatml"
    with pickle.loads(pickle.dumps(llm)) as again:
        assert (again.n_ctx(), again.last_n_tokens_size, again.chat_format) == (256, 7, "chatml")
        assert again.session.native.type_k == "f32"
        assert text(again(PROMPT, max_tokens=5, temperature=0)) == text(llm(PROMPT, max_tokens=5, temperature=0))


def test_closed_it_says_so(open_llama: Callable[..., Llama]) -> None:
    llm = open_llama()
    streams = [llm(PROMPT, stream=True, max_tokens=9) for _ in range(2)]
    for stream in streams:
        next(stream)
    llm.close()
    llm.close()
    with pytest.raises(pysa.ArgumentError, match="closed"):
        llm(PROMPT)
    for stream in streams:
        with pytest.raises(pysa.ArgumentError, match="closed"):
            next(stream)


def test_a_chat_handler_is_called_in_place(open_llama: Callable[..., Llama]) -> None:
    def handler(**arguments: Any) -> Any:
        return arguments

    llm = open_llama(chat_handler=handler)
    found = llm.create_chat_completion([{"role": "user", "content": "x"}], temperature=0.5, stop=["y"])
    assert found["llama"] is llm
    assert found["messages"] == [{"role": "user", "content": "x"}]
    assert (found["temperature"], found["stop"], found["stream"]) == (0.5, ["y"], False)


def test_from_pretrained(monkeypatch: pytest.MonkeyPatch, dense_gguf: Path, tmp_path: Path) -> None:
    calls: list[Any] = []

    def download(repo_id: str, filename: str, **folders: Any) -> str:
        calls.append((repo_id, filename, folders))
        return str(dense_gguf)

    hub = types.SimpleNamespace(
        hf_hub_download=download,
        list_repo_files=lambda repo_id: ["README.md", "sub/m.Q4.gguf", "m.Q8.gguf", "tok.json"],
    )
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    none = {"local_dir": None, "cache_dir": None}
    with Llama.from_pretrained("a/b", "*Q8.gguf", n_ctx=64, n_threads=1) as llm:
        assert (llm.n_ctx(), llm.model_path) == (64, str(dense_gguf))
    assert calls.pop() == ("a/b", "m.Q8.gguf", none)
    Llama.from_pretrained("a/b", "*Q4*", ["tok*"], cache_dir=tmp_path, n_threads=1).close()
    assert [call[1] for call in calls] == ["sub/m.Q4.gguf", "tok.json"]
    assert calls[0][2] == {"local_dir": None, "cache_dir": tmp_path}
    calls.clear()
    del hub.list_repo_files  # a name needs no list
    Llama.from_pretrained("a/b", "m.Q8.gguf", local_dir=tmp_path, n_threads=1).close()
    assert calls.pop()[2]["local_dir"] == tmp_path
    hub.list_repo_files = lambda repo_id: ["m.Q4.gguf", "m.Q8.gguf"]
    with pytest.raises(ValueError, match=r"fits 2 files of a/b: expected one of: m.Q4.gguf, m.Q8.gguf"):
        Llama.from_pretrained("a/b", "*.gguf")
    with pytest.raises(ValueError, match="fits no file of a/b"):
        Llama.from_pretrained("a/b", "*Q2*")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"pysa\[hf\]"):
        Llama.from_pretrained("a/b", "m.Q8.gguf")


def test_grammars_from_everywhere(tmp_path: Path) -> None:
    path = tmp_path / "g.gbnf"
    path.write_text('root ::= "a"\n')
    assert pysa.LlamaGrammar.from_file(path).text == 'root ::= "a"\n'
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    assert "root ::=" in pysa.LlamaGrammar.from_json_schema(schema).text
    path.write_bytes(b"\xff\xff")
    for make in (
        lambda: pysa.LlamaGrammar.from_file(path),
        lambda: pysa.LlamaGrammar.from_file(tmp_path / "none"),
        lambda: pysa.LlamaGrammar.from_string(" "),
        lambda: pysa.LlamaGrammar.from_json_schema("{"),
        lambda: pysa.LlamaGrammar.from_json_schema({"type": object}),
    ):
        with pytest.raises(pysa.ArgumentError):
            make()
