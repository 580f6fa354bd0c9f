"""Sessions on disk: what is found, what is not, what goes, and what a damaged or vanished file does."""

from __future__ import annotations

import json
import logging
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import N_THREADS
from helpers.tiny_gguf import random_plan

import pysa
from pysa import PrefixCache
from pysa.prefix import Reuse, evaluate_prompt, returnable
from pysa.prefix_cache import settings_of

FIELDS: dict[str, Any] = {"n_ctx": 1024, "n_ubatch": 64}


@pytest.fixture(scope="module")
def model(dense_gguf: Path) -> Iterator[pysa.Model]:
    with pysa.Model(dense_gguf, n_threads=N_THREADS) as opened:
        yield opened


@pytest.fixture
def cache(tmp_path: Path) -> PrefixCache:
    return PrefixCache(tmp_path / "sessions", min_tokens=16)


@pytest.fixture
def held(model: pysa.Model) -> Callable[..., pysa.Session]:
    """A session that holds these tokens."""

    def make(tokens: list[int], **fields: Any) -> pysa.Session:
        session = model.session(**{**FIELDS, **fields})
        evaluate_prompt(session, tokens)
        return session

    return make


def text(n: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(3, 259, n).tolist()


def files(cache: PrefixCache, pattern: str = "*") -> list[Path]:
    return sorted(cache._folder.glob(pattern))


READ_BY_ANOTHER = """
import json, sys
import pysa
from pysa.prefix import evaluate_prompt
from pysa.prefix_cache import settings_of

path, folder, document, question = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), json.loads(sys.argv[4])
with pysa.Model(path, n_threads=2) as model:
    settings = settings_of(model.session(n_ctx=1024, n_ubatch=64))
    session = pysa.PrefixCache(folder, min_tokens=16).find(model, document + question, settings)
    n_held = session.n_past
    logits, reuse = evaluate_prompt(session, document + question)
    print(json.dumps([n_held, reuse.n_reused, reuse.n_reevaluated, session.n_past, logits.tobytes().hex()]))
"""


@pytest.mark.parametrize("kind", ["dense", "window"])
def test_a_document_is_read_once(kind: str, dense_gguf: Path, shared_gguf: Path, tmp_path: Path) -> None:
    path = dense_gguf if kind == "dense" else shared_gguf
    document, question = text(700, 1), text(20, 2)
    cache = PrefixCache(tmp_path / "sessions", min_tokens=16)
    with pysa.Model(path, n_threads=N_THREADS) as model:
        session = model.session(**FIELDS)
        evaluate_prompt(session, document)
        cache.put(session)
        expected, _ = evaluate_prompt(session, document + question)

    command = [sys.executable, "-c", READ_BY_ANOTHER, path, tmp_path / "sessions", document, question]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True, timeout=100)
    n_held, n_reused, n_reevaluated, n_past, logits = json.loads(done.stdout)
    assert (n_held, n_reused, n_reevaluated, n_past) == (700, 700, 0, 720)
    assert logits == expected.tobytes().hex()


def test_the_longest_usable_prefix_wins(
    model: pysa.Model, cache: PrefixCache, held: Callable[..., pysa.Session]
) -> None:
    trunk = text(200, 3)
    settings = settings_of(model.session(**FIELDS))
    branches = [trunk[:50] + text(100, 4), trunk[:150] + text(100, 5), trunk[:100] + text(300, 6), text(80, 7)]
    for tokens in branches:
        cache.put(held(tokens))
    assert len(files(cache, "*.json")) == 4

    found = cache.find(model, [*trunk, 5], settings)
    assert found is not None
    assert found.tokens == branches[1]
    _, reuse = evaluate_prompt(found, [*trunk, 5])
    assert reuse == Reuse(150, 0)
    assert cache.find(model, text(100, 8), settings) is None
    assert cache.find(model, [], settings) is None
    assert cache.find(model, [*trunk, 5], settings, longer_than=150) is None  # no better than what is held already
    assert cache.find(model, [*trunk, 5], settings, longer_than=149) is not None
    # The last token is evaluated in any case: an entry that has it spares no more than one that does not.
    assert cache.find(model, branches[2], settings, longer_than=399) is None
    assert cache.find(model, branches[2], settings, longer_than=398) is not None


def test_a_window_makes_what_is_usable(shared_gguf: Path, cache: PrefixCache) -> None:
    document, questions = text(400, 9), [text(30, 10), text(30, 11)]
    with pysa.Model(shared_gguf, n_threads=N_THREADS) as model:
        settings = settings_of(model.session(**FIELDS))
        # The longer one shares more of the prompt, but its ring has forgotten that point.
        forgetful = model.session(**FIELDS)
        forgetful.eval(document + questions[0])
        cache.put(forgetful)
        remembers = model.session(**FIELDS)
        evaluate_prompt(remembers, [*document[:300], 9])
        cache.put(remembers)
        found = cache.find(model, document + questions[1], settings)
        assert found is not None
        assert found.tokens == [*document[:300], 9]
        assert returnable(found) == returnable(remembers)
        _, reuse = evaluate_prompt(found, document + questions[1])
        assert reuse == Reuse(300, 0)


@pytest.mark.parametrize(
    "fields",
    [
        {"n_ctx": 512},
        {"type_k": "q8_0"},
        {"type_v": "f32"},
        {"n_ubatch": 32},
        {"attention": "composed"},
        {"v_skip": 0.0},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_other_settings_do_not_match(
    model: pysa.Model, cache: PrefixCache, held: Callable[..., pysa.Session], fields: dict[str, Any]
) -> None:
    tokens = text(100, 12)
    cache.put(held(tokens))
    own, other = (settings_of(model.session(**{**FIELDS, **f})) for f in ({}, fields))
    assert cache.find(model, [*tokens, 3], other) is None
    assert cache.find(model, [*tokens, 3], own) is not None


def test_other_plans_and_models_do_not_match(
    model: pysa.Model,
    cache: PrefixCache,
    held: Callable[..., pysa.Session],
    tiny_gguf: Callable[..., Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    tokens = text(100, 13)
    cache.put(held(tokens))
    plan = random_plan(4, 6, 2, seed=4, n_sink=4, n_recent=24)
    assert cache.find(model, [*tokens, 3], settings_of(model.session(**FIELDS, plan=plan))) is None
    with pysa.Model(tiny_gguf("llama", n_layer=4, vocab="llama", seed=1), n_threads=N_THREADS) as other:
        settings = settings_of(other.session(**FIELDS))
        assert settings == settings_of(model.session(**FIELDS))  # all but the weights are the same
        assert cache.find(other, [*tokens, 3], settings) is None
    assert cache.find(model, [*tokens, 3], settings) is not None  # nobody has taken it for damaged
    assert caplog.records == []


def test_short_sessions_and_short_prefixes_are_left_out(
    model: pysa.Model, cache: PrefixCache, held: Callable[..., pysa.Session]
) -> None:
    settings = settings_of(model.session(**FIELDS))
    cache.put(held(text(15, 14)))
    assert files(cache) == []
    tokens = text(40, 15)
    cache.put(held(tokens))
    assert cache.find(model, tokens[:16] + text(9, 16), settings) is not None
    assert cache.find(model, [*tokens[:15], 260, 260], settings) is None


def test_a_session_replaces_what_it_extends(
    model: pysa.Model, cache: PrefixCache, held: Callable[..., pysa.Session]
) -> None:
    tokens = text(200, 17)
    session = held(tokens[:100])
    for n in (100, 140, 200):
        evaluate_prompt(session, tokens[:n])
        cache.put(session)
        assert len(files(cache, "*.json")) == len(files(cache, "*.state")) == 1
    found = cache.find(model, [*tokens, 3], settings_of(session))
    assert found is not None
    assert found.n_past == 200
    before = files(cache)
    for same in (tokens, tokens[:120], tokens[:190] + text(15, 18)):  # held already, but for less than min_tokens
        cache.put(held(same))
    assert files(cache) == before


def test_the_least_recently_used_go_when_it_is_full(
    model: pysa.Model, tmp_path: Path, held: Callable[..., pysa.Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(model.session(**FIELDS))
    prompts = [text(100, seed) for seed in range(30, 35)]
    n_others: list[int] = []  # bytes of the others while one is written
    save = pysa.Session.save

    def watched(session: pysa.Session, path: Path) -> None:
        n_others.append(sum(other.stat().st_size for other in path.parents[1].glob("*-*.*")))
        save(session, path)

    monkeypatch.setattr(pysa.Session, "save", watched)
    PrefixCache(tmp_path / "one", min_tokens=16).put(held(prompts[0]))
    n_entry = PrefixCache(tmp_path / "one").size_bytes

    cache = PrefixCache(tmp_path / "four", max_bytes=int(3.5 * n_entry), min_tokens=16)
    for age, prompt in zip((40, 30, 20), prompts, strict=False):
        before = set(files(cache))
        cache.put(held(prompt))
        for path in set(files(cache)) - before:
            os.utime(path, (time.time() - age, time.time() - age))
    assert cache.find(model, [*prompts[0], 3], settings) is not None  # the oldest has been used now
    for prompt in prompts[3:]:
        cache.put(held(prompt))
        assert cache.size_bytes <= 3.5 * n_entry
        assert n_others[-1] <= 2.6 * n_entry  # room was made before
    kept = [cache.find(model, [*prompt, 3], settings) is not None for prompt in prompts]
    assert kept == [True, False, False, True, True]
    assert cache.size_bytes == sum(path.stat().st_size for path in files(cache))

    tight = PrefixCache(tmp_path / "four", max_bytes=n_entry // 2, min_tokens=16)
    before = files(tight)
    tight.put(held(text(100, 36)))  # larger than the whole cache: the others need not go for it
    assert files(tight) == before
    cache.clear()
    assert files(cache) == []


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _other_tokens(path: Path) -> None:
    data = json.loads(path.read_text())
    data["tokens"][-1] ^= 1  # as good as before for a prompt that goes on
    path.write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("suffix", "damage"),
    [
        ("state", _truncate),
        ("state", _flip),
        ("state", lambda path: path.write_bytes(b"")),
        ("json", _truncate),
        ("json", _other_tokens),
        ("json", lambda path: path.write_bytes(b"\xff\xfe")),
        ("json", lambda path: path.write_text("[]")),
        ("json", lambda path: path.write_text('{"tokens": [[1]], "spans": [], "state_bytes": 3}')),
        ("json", lambda path: path.write_text('{"tokens": [1e99], "spans": 3, "state_bytes": 3}')),
        ("json", lambda path: path.write_text("[" * 100_000)),
    ],
)
def test_a_damaged_entry_goes_with_one_warning(
    model: pysa.Model,
    cache: PrefixCache,
    held: Callable[..., pysa.Session],
    caplog: pytest.LogCaptureFixture,
    suffix: str,
    damage: Callable[[Path], Any],
) -> None:
    caplog.set_level(logging.WARNING, "pysa")
    tokens = text(100, 19)
    cache.put(held(tokens))
    cache.put(held(tokens[:60] + text(100, 20)))
    settings = settings_of(model.session(**FIELDS))
    best = next(path for path in files(cache, "*.json") if json.loads(path.read_text())["tokens"] == tokens)
    damage(best.with_suffix(f".{suffix}"))

    for _ in range(2):
        found = cache.find(model, [*tokens, 3], settings)
        assert found is not None
        assert found.tokens[:60] == tokens[:60]  # the next best
    assert found.n_past == 160
    warned = [record.getMessage() for record in caplog.records]
    assert len(warned) == 1
    assert "dropping a damaged entry" in warned[0]
    assert not best.exists()
    assert not best.with_suffix(".state").exists()


@pytest.mark.parametrize("suffix", ["state", "json"])
def test_a_vanished_file_is_a_silent_miss(
    model: pysa.Model,
    cache: PrefixCache,
    held: Callable[..., pysa.Session],
    caplog: pytest.LogCaptureFixture,
    suffix: str,
) -> None:
    tokens = text(100, 21)
    cache.put(held(tokens))
    files(cache, f"*.{suffix}")[0].unlink()
    assert cache.find(model, [*tokens, 3], settings_of(model.session(**FIELDS))) is None
    assert caplog.records == []
    cache.put(held(tokens))
    assert cache.find(model, [*tokens, 3], settings_of(model.session(**FIELDS))) is not None


def test_a_disk_that_refuses_is_a_warning(
    cache: PrefixCache,
    held: Callable[..., pysa.Session],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object) -> None:
        raise pysa.StateFileError("state: cannot be written: No space left on device")

    session = held(text(100, 22))
    monkeypatch.setattr(pysa.Session, "save", full)
    cache.put(session)
    assert [record.getMessage() for record in caplog.records if "was not kept" in record.getMessage()]
    assert files(cache) == []
    monkeypatch.undo()
    cache._folder.rmdir()
    cache.put(session)
    assert len(caplog.records) == 2


@pytest.mark.skipif(os.name != "posix", reason="rights of files as POSIX has them")
def test_only_the_owner_may_read(tmp_path: Path, held: Callable[..., pysa.Session]) -> None:
    before = os.umask(0)
    try:
        cache = PrefixCache(tmp_path / "a" / "b", min_tokens=16)
        cache.put(held(text(100, 23)))
        shared = tmp_path / "shared"
        shared.mkdir(mode=0o755)
        PrefixCache(shared, min_tokens=16).put(held(text(100, 23)))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700
    assert stat.S_IMODE(shared.stat().st_mode) == 0o755  # somebody else's decision
    made = files(cache) + sorted(shared.iterdir())
    assert len(made) == 4
    assert {stat.S_IMODE(path.stat().st_mode) for path in made} == {0o600}


def test_what_an_ended_process_left_goes_in_time(cache: PrefixCache, held: Callable[..., pysa.Session]) -> None:
    left = [cache._folder / "writing-old", cache._folder / "writing-new", cache._folder / "0-1.state"]
    for folder in left[:2]:
        folder.mkdir()
        (folder / "x-y.state").write_bytes(b"half")
    left[2].write_bytes(b"half")
    for path in (left[0], left[2]):
        os.utime(path, (1, 1))
    cache.put(held(text(100, 24)))
    assert [path.exists() for path in left] == [False, True, False]


TOGETHER = """
import random, sys
import numpy as np
import pysa
from pysa.prefix import evaluate_prompt
from pysa.prefix_cache import settings_of

path, folder, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
rng = random.Random(seed)
n_found = 0
with pysa.Model(path, n_threads=1) as model:
    cache = pysa.PrefixCache(folder, max_bytes=2_000_000, min_tokens=16)
    session = model.session(n_ctx=512, n_ubatch=64)
    settings = settings_of(session)
    for _ in range(40):
        tokens = np.random.default_rng(rng.randrange(6)).integers(3, 259, rng.randrange(20, 120)).tolist()
        found = cache.find(model, tokens + [3], settings)
        if found is not None:
            n_found += 1
            _, reuse = evaluate_prompt(found, tokens + [3])
            assert reuse.n_reused >= 16 and found.tokens == tokens + [3]
        evaluate_prompt(session, tokens)
        cache.put(session)
print(n_found)
"""


def test_processes_share_a_folder(dense_gguf: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", TOGETHER, str(dense_gguf), str(tmp_path / "sessions")]
    running = [
        subprocess.Popen([*command, str(seed)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for seed in range(3)
    ]
    ended = [process.communicate(timeout=100) for process in running]
    assert [(process.returncode, err) for process, (_, err) in zip(running, ended, strict=True)] == [(0, "")] * 3
    assert all(int(out) > 0 for out, _ in ended)
    assert sum(path.stat().st_size for path in (tmp_path / "sessions").iterdir()) <= 2_000_000
    assert {path.suffix for path in (tmp_path / "sessions").iterdir()} == {".json", ".state"}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [({"max_bytes": -1}, "max_bytes"), ({"min_tokens": 0}, "min_tokens"), ({"folder": 3}, "folder")],
)
def test_wrong_arguments_are_named(tmp_path: Path, arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(pysa.ArgumentError, match=named):
        PrefixCache(**{"folder": tmp_path, **arguments})
