"""Layers and caches on a GPU: where they lie, what crosses over, what happens when memory runs out.

On the emulated GPU, whose weights are computed with by ggml's CPU backend, so that much can be asked for bit by bit.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.gpus import check_going_back, emulated_gpu, in_child, on_gpu
from helpers.plans import GQA2, build_plan, make_plan, owners
from helpers.talking_gguf import CHATML
from numpy.typing import NDArray

import pysa
from pysa.chat import Conversation, find_renderer
from pysa.chat.saved import load_chat, save_chat
from pysa.llama import Llama
from pysa.llama.state import session_bytes, session_from_bytes
from pysa.prefix_cache import settings_of
from pysa.scheduler.lane import Lane
from pysa.scheduler.shelf import Shelf

N_LAYER = GQA2.n_layer
TOKENS = np.arange(3, 203) % 250


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return GQA2.write(tmp_path_factory.mktemp("models"), n_ctx=4096)


@pytest.fixture(autouse=True)
def device() -> str:
    return emulated_gpu()


def logits(model: pysa.Model, **options: Any) -> NDArray[np.float32]:
    session = model.session(n_ctx=512, n_ubatch=64, **options)
    first = session.eval(TOKENS, logits="all")
    return np.concatenate([first, *(session.eval(TOKENS[i : i + 1]) for i in range(3))])


@pytest.fixture(scope="module")
def plan() -> pysa.Plan:
    """Owners in the first and second layer whose followers are in the second and third."""
    return build_plan("mixed", GQA2, 4, 20, seed=5, bias=True)


@pytest.mark.parametrize("n_gpu_layers", [1, 2, N_LAYER, N_LAYER + 1])
@pytest.mark.parametrize("attention", ["composed", "fused"])
def test_any_number_of_layers_gives_what_the_cpu_does(
    path: Path, plan: pysa.Plan, n_gpu_layers: int, attention: str
) -> None:
    """Weights on the GPU, attention with the CPU: bit for bit."""
    with pysa.Model(path, n_threads=1, device="cpu") as model:
        expected = logits(model, plan=plan, attention=attention)
    with on_gpu(path, "EMU0", n_gpu_layers=n_gpu_layers) as model:
        assert (model.device, model.n_gpu_layers) == ("EMU0", n_gpu_layers)
        assert 0 < model.device_bytes < model.size_bytes
        session = model.session(kv_offload=False, plan=plan)
        assert session.first_gpu_layer == N_LAYER
        np.testing.assert_array_equal(logits(model, plan=plan, attention=attention, kv_offload=False), expected)


def test_weights_in_the_processors_layout_are_not_on_a_gpu(path: Path) -> None:
    quantised = GQA2.write(path.parent, dtype="q4_0")
    with pysa.Model(quantised, n_threads=1, device="cpu") as model:
        assert model.native.copied_bytes > 0
        assert model.device_bytes == 0


@pytest.mark.parametrize("n_gpu_layers", [2, N_LAYER, N_LAYER + 1])
def test_composed_attention_on_the_gpu_equals_the_cpus(path: Path, plan: pysa.Plan, n_gpu_layers: int) -> None:
    with pysa.Model(path, n_threads=1, device="cpu") as model:
        expected = logits(model, plan=plan, attention="composed")
    with on_gpu(path, "EMU0", n_gpu_layers=n_gpu_layers) as model:
        np.testing.assert_array_equal(logits(model, plan=plan, attention="composed"), expected)


def test_a_whole_model_is_one_split_and_its_cache_is_on_the_gpu(path: Path) -> None:
    with on_gpu(path, "EMU0") as model:
        session = model.session(n_ctx=1000)
        for n, rows in ((5, 256), (1, 256), (300, 512)):
            session.eval(TOKENS[np.arange(n) % 200])
            memory = session.memory()
            assert session.n_splits == 1
            assert memory["n_rows"] == rows
            assert memory["device"] >= memory["total"] > 0
        assert session.kernel == "emulated"


def follower_of(layer: int, of: int) -> pysa.Plan:
    """All heads own, but those of one layer follow another's."""
    score_layer, score_head = owners(N_LAYER, GQA2.n_head)
    score_layer[layer, :] = of
    return make_plan(score_layer, score_head, 4, 24)


@pytest.mark.parametrize(
    ("n_gpu_layers", "follows", "cut"),
    [
        (N_LAYER + 1, (2, 0), 0),  # everything is there
        (N_LAYER, (2, 1), 1),  # a source beside its followers
        (N_LAYER, (1, 0), 2),  # layer 1 stays with its source in layer 0
        (N_LAYER, (2, 0), 3),
        (2, (2, 1), 3),
        (2, (1, 0), 2),
    ],
)
def test_scores_do_not_cross_over(path: Path, n_gpu_layers: int, follows: tuple[int, int], cut: int) -> None:
    plan = follower_of(*follows)
    with pysa.Model(path, n_threads=1, device="cpu") as model:
        expected = logits(model, plan=plan, v_skip=0.0)
    with on_gpu(path, "EMU0", n_gpu_layers=n_gpu_layers) as model:
        session = model.session(plan=plan)
        assert session.first_gpu_layer == cut
        error = np.abs(logits(model, plan=plan, v_skip=0.0) - expected).max() / np.ptp(expected)
        assert error <= 4e-3
        kernel = session.kernel.split("+")
        assert ("emulated" in kernel) == (cut < N_LAYER)
        assert (len(kernel) == 2) == (0 < cut < N_LAYER)


def test_going_back_is_exact(path: Path, plan: pysa.Plan) -> None:
    """A ring that has overwritten the window before a checkpoint, in memory that the host must copy."""
    with on_gpu(path, "EMU0") as model:
        check_going_back(model.session(plan=plan, attention="composed"), TOKENS)


def test_a_saved_session_goes_on_on_either_side(path: Path, plan: pysa.Plan, tmp_path: Path) -> None:
    file = tmp_path / "session.pysa"
    with on_gpu(path, "EMU0") as model:
        session = model.session(plan=plan, attention="composed")
        session.eval(TOKENS[:70])
        session.save(file)
        expected = session.eval(TOKENS[70:75], logits="all")
        np.testing.assert_array_equal(model.load_session(file).eval(TOKENS[70:75], logits="all"), expected)
    with pysa.Model(path, n_threads=1, device="cpu") as model:
        np.testing.assert_array_equal(model.load_session(file).eval(TOKENS[70:75], logits="all"), expected)


@pytest.mark.parametrize("kv_offload", [True, False])
def test_what_is_loaded_lies_where_the_session_it_stands_for_does(
    path: Path, kv_offload: bool, tmp_path: Path, tiny_gguf: Callable[..., Path]
) -> None:
    def is_there(session: pysa.Session) -> bool:
        n_layer = session.model.n_layer
        assert session.first_gpu_layer == (0 if session.kv_offload else n_layer)
        assert (session.memory()["device"] > 0) is session.kv_offload
        return session.kv_offload

    options = {"n_ctx": 512, "attention": "composed", "kv_offload": kv_offload}
    with on_gpu(path, "EMU0") as model:
        session, cache = model.session(**options), pysa.PrefixCache(tmp_path / "cache", min_tokens=16)
        session.eval(TOKENS[:70])
        session.save(tmp_path / "state")
        cache.put(session)
        expected = session.eval(TOKENS[70:75], logits="all")
        found = [
            model.load_session(tmp_path / "state", kv_offload=kv_offload),
            cache.find(model, TOKENS[:75], settings_of(session), kv_offload=kv_offload),
        ]
        for loaded in found:
            assert loaded is not None
            assert is_there(loaded) is kv_offload
            np.testing.assert_array_equal(loaded.eval(TOKENS[70:75], logits="all"), expected)
        state = session_bytes(session)
        assert is_there(session_from_bytes(model.session(**options), state)) is kv_offload
        # The file does not say where the cache was.
        assert is_there(model.load_session(tmp_path / "state")) is True
        with pytest.raises(pysa.ArgumentError, match="kv_offload: wrong type"):
            model.load_session(tmp_path / "state", kv_offload=1)  # type: ignore[arg-type]

    talking = tiny_gguf("llama", n_layer=2, vocab="llama", extra_kv={"tokenizer.chat_template": CHATML})
    with on_gpu(talking, "EMU0") as model:
        chats = [Conversation(model.session(**options), find_renderer(model, None), max_tokens=3) for _ in range(2)]
        list(chats[0].say("the thing"))
        assert load_chat(chats[1], save_chat(chats[0], tmp_path / "talk")) is None
        assert chats[1].session.n_past > 0
        assert is_there(chats[1].session) is kv_offload


@pytest.mark.parametrize("kv_offload", [True, False])
def test_a_cache_folder_brings_sessions_back_where_llama_wants_them(
    dense_gguf: Path, kv_offload: bool, tmp_path: Path
) -> None:
    document = [5 + i * i % 250 for i in range(300)]
    where = {"device": "EMU0", "n_gpu_layers": 999, "attention": "composed", "offload_kqv": kv_offload}
    for n_cached in (0, 301):
        with Llama(dense_gguf, n_ctx=512, n_threads=1, cache_dir=tmp_path / "cache", **where) as llm:
            done = llm([*document, 9, 10 + n_cached % 7], max_tokens=2, temperature=0)
            assert done["usage"]["prompt_tokens_details"]["cached_tokens"] == n_cached
            session = llm._context.session
            assert (session.memory()["device"] > 0) is kv_offload


def test_a_shelf_gives_a_lane_a_session_where_its_own_was(path: Path, tmp_path: Path) -> None:
    cache, done = pysa.PrefixCache(tmp_path / "cache", min_tokens=16), threading.Event()
    with on_gpu(path, "EMU0") as model:
        read, own = (model.session(n_ctx=512, kv_offload=False) for _ in range(2))
        read.eval(TOKENS[:100])
        cache.put(read)
        lane, shelf = Lane(own), Shelf(cache, like=own)
        shelf.fetch(lane, TOKENS[:120].astype(np.int32), lambda _: done.set())
        assert done.wait(60)
        shelf.close([])
        assert (lane.session.n_past, lane.session.memory()["device"]) == (100, 0)


def test_sessions_of_a_batch_are_on_the_gpu_too(path: Path, plan: pysa.Plan) -> None:
    with on_gpu(path, "EMU0") as model:
        alone = [model.session(plan=plan), model.session(plan="dense", kv_offload=False)]
        together = [model.session(plan=plan), model.session(plan="dense", kv_offload=False)]
        batch = pysa.Batch(model)
        for at in (0, 40, 41):
            tokens = [TOKENS[at : at + (40 if at == 0 else 1)] for _ in together]
            expected = [session.eval(t) for session, t in zip(alone, tokens, strict=True)]
            counts, found = batch.step([(session, t, True) for session, t in zip(together, tokens, strict=True)])
            assert counts == [len(t) for t in tokens]
            for row, other in zip(found, expected, strict=True):
                assert np.abs(row - other[0]).max() / np.ptp(other) <= 1e-4


def test_without_kernels_for_it_attention_is_composed(tmp_path: Path) -> None:
    from helpers.plans import ODD

    with on_gpu(ODD.write(tmp_path), "EMU0") as model:
        assert model.session().attention == "composed"
        with pytest.raises(pysa.DeviceError, match="expected auto or composed: EMU0 has no kernels"):
            model.session(attention="fused")


CHILD = """
import json, sys
import numpy as np
import pysa
path, n_gpu_layers = sys.argv[1], int(sys.argv[2])
out = {}
try:
    model = pysa.Model(path, n_threads=1, device="EMU0", n_gpu_layers=n_gpu_layers)
    session = model.session(attention=sys.argv[3])
    out["attention"], out["n_gpu_layers"] = session.attention, model.n_gpu_layers
    tokens = np.arange(1500) % 250
    try:
        session.eval(tokens, logits="none")
    except pysa.DeviceError as error:
        out["error"] = str(error)
        out["n_past"] = session.n_past
    out["after"] = session.eval(tokens[:50])[0, :4].tolist()
    out["n_rows"] = session.memory()["n_rows"]
    if "n_ctx of at most" in out.get("error", ""):
        n = int(out["error"].split("at most ")[1].split(",")[0])
        out["n_fit"] = n
        session.reset()
        del session
        again = model.session(n_ctx=n)
        again.eval(tokens[:n], logits="none")
        out["fits"] = again.n_past
except pysa.DeviceError as error:
    out["model_error"] = str(error)
print(json.dumps(out))
"""


def child(path: Path, mebibytes: int, n_gpu_layers: int, attention: str = "auto", **variables: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        in_child(CHILD, path, str(n_gpu_layers), attention, PYSA_EMULATED_GPU=str(mebibytes), **variables)
    )
    return found


def test_a_full_gpu_is_an_error_that_says_what_fits(path: Path) -> None:
    found = child(path, 16, 999)
    assert "out of memory" in found["error"]
    assert found["n_past"] == 0
    assert 0 < found["n_fit"] < 1500
    assert found["fits"] == found["n_fit"]


def test_weights_that_do_not_fit_are_an_error_and_the_estimate_takes_fewer(path: Path) -> None:
    found = child(path, 2, 999)
    assert "cannot hold the weights in EMU0" in found["model_error"]
    assert "fewer n_gpu_layers" in found["model_error"]
    assert child(path, 2, -1)["n_gpu_layers"] == 0
    some = child(path, 24, -1)["n_gpu_layers"]
    assert some > 0
    assert child(path, 900, -1)["n_gpu_layers"] == N_LAYER + 1


def test_kernels_can_be_switched_off(path: Path) -> None:
    with_kernels, without = (child(path, 900, 999, PYSA_GPU_KERNELS=value) for value in ("1", "0"))
    assert (with_kernels["attention"], without["attention"]) == ("fused", "composed")
    np.testing.assert_allclose(with_kernels["after"], without["after"], atol=0.05)


SMALLER = """
import json, sys
import numpy as np
import pysa
model = pysa.Model(sys.argv[1], n_threads=1, device="EMU0", n_gpu_layers=999)
tokens = np.arange(700) % 250
session = model.session(n_ubatch=700)
session.eval(tokens[:3])
keep, errors = [], 0
for n in (700, 500, 400, 300):
    keep.append(model.session(n_ubatch=n, n_ctx=1024, kv_offload=False))
    for _ in range(2):
        try:
            keep[-1].eval(tokens[:n], logits="all")
            break
        except pysa.DeviceError as error:
            assert "compute buffer: out of memory on EMU0" in str(error), error
            errors += 1
print(json.dumps([errors, session.eval([4]).shape[0], [s.n_past for s in keep]]))
"""


def test_a_step_that_did_not_fit_can_be_tried_again(path: Path) -> None:
    """ggml's scheduler takes memory that it did not get for allocated the next time; it is made anew."""
    errors, n_rows, held = json.loads(in_child(SMALLER, path, PYSA_EMULATED_GPU="9"))
    assert errors >= 2
    assert n_rows == 1
    assert 0 in held


FORK = """
import os, sys
import pysa
model = pysa.Model(sys.argv[1], n_threads=1, device="EMU0", n_gpu_layers=999)
session = model.session()
session.eval([1, 2, 3])
child = os.fork()
if child == 0:
    del session, model
    assert pysa._native.devices() == []
    try:
        pysa.Model(sys.argv[1], device="EMU0", n_gpu_layers=1)
        os._exit(3)
    except pysa.DeviceError as error:
        assert "forked" in str(error), error
    own = pysa.Model(sys.argv[1], n_threads=1)
    os._exit(0 if own.device == "cpu" and own.session().eval([1, 2]).shape[0] == 1 else 4)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), session.eval([4]).shape[0])
"""


def test_a_forked_child_leaves_the_gpu_alone(path: Path) -> None:
    assert in_child(FORK, path).split() == ["0", "1"]


def test_a_batch_does_not_take_the_graph_of_a_session_that_is_gone(path: Path) -> None:
    """Another session may come to lie where the first one was; its tensors are others."""
    with on_gpu(path, "EMU0") as model:
        batch = pysa.Batch(model)
        for seed in range(4):
            session, alone = model.session(), model.session()
            for each in (session, alone):
                each.eval((TOKENS + seed) % 250)
            _, rows = batch.step([(session, [seed], True)])
            expected = alone.eval([seed])
            assert np.abs(rows - expected).max() / np.ptp(expected) <= 1e-4
            session.close()
            alone.close()
