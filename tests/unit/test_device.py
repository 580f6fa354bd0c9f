"""Where models go: devices(), the arguments of Model and Llama, the options of the commands, pysa.fit's arithmetic.

test_offload.py has what becomes of it in the engine.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.gpus import EMULATED, emulated_gpu
from helpers.plans import GQA2, build_plan

import pysa
from pysa import _native, device
from pysa._footprint import read_shape
from pysa._gpu_footprint import Load, attention_cut
from pysa.cli import placement
from pysa.cli.bench import free_on, taken_on
from pysa.cli.devices import device_lines
from pysa.cli.main import main
from pysa.cli.options import build_parser
from pysa.cli.placement import Placement
from pysa.device import Device, device_support, find_device, nth_device
from pysa.llama import LLAMA_SPLIT_MODE_NONE, Llama, llama_supports_gpu_offload
from pysa.llama.offload import Offload, choose_offload

GIB = 1 << 30
CARDS = [
    {"name": "CUDA0", "description": "small", "is_integrated": False, "total_bytes": 8 * GIB, "free_bytes": 7 * GIB},
    {"name": "CUDA1", "description": "large", "is_integrated": False, "total_bytes": 24 * GIB, "free_bytes": 9 * GIB},
    {"name": "Vulkan0", "description": "chip", "is_integrated": True, "total_bytes": 60 * GIB, "free_bytes": 50 * GIB},
]


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with two cards and a chip."""
    monkeypatch.setattr(_native, "devices", lambda: [{**card, "attention": "fused"} for card in CARDS])
    monkeypatch.setattr(_native, "device_support", lambda: "")


@pytest.fixture
def no_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build with CUDA on a machine without a card."""
    monkeypatch.setattr(_native, "devices", list)
    monkeypatch.setattr(_native, "device_support", lambda: "this build has CUDA, but found no GPU")


@pytest.fixture(autouse=True)
def nothing_said() -> Iterator[None]:
    """As in a new process."""
    device._said.clear()
    yield
    device._said.clear()


# ---- devices()


def test_the_best_device_is_chosen_as_the_engine_does(cards: None) -> None:
    assert [found.name for found in pysa.devices()] == ["CUDA0", "CUDA1", "Vulkan0"]
    assert find_device("cpu") is None
    best = find_device("auto")
    assert best is not None
    assert best.name == "CUDA1"  # of those that are not integrated, the one with most memory free
    assert best.room_bytes == 9 * GIB - 256 * 2**20
    assert Device("x", "", "fused", False, 1600, 1600).room_bytes == 1500
    assert nth_device("main_gpu", 2) == "Vulkan0"
    with pytest.raises(pysa.ArgumentError, match=r"main_gpu: out of range: expected 0..2 \(CUDA0, .*Vulkan0\), got 3"):
        nth_device("main_gpu", 3)
    with pytest.raises(pysa.DeviceError, match=r'expected one of auto, cpu, CUDA0, CUDA1, Vulkan0, got "CUDA2"$'):
        find_device("CUDA2")
    assert device_support() == ""
    assert llama_supports_gpu_offload()


def test_without_a_card_the_reason_is_told(no_cards: None) -> None:
    assert pysa.devices() == []
    assert find_device("auto") is None
    assert device_support() == "this build has CUDA, but found no GPU"
    assert not llama_supports_gpu_offload()
    with pytest.raises(pysa.DeviceError, match='auto, cpu, got "CUDA0"; this build has CUDA, but found no GPU'):
        find_device("CUDA0")


def test_the_emulated_gpu_is_taken_by_name_alone() -> None:
    emulated_gpu()
    found = find_device(EMULATED)
    assert found is not None
    assert 0 < found.free_bytes <= found.total_bytes
    best = find_device("auto")
    assert best is None or best.name != EMULATED


def test_libraries_of_pypis_packages_are_told_to_the_engine_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("cu13/lib", "cublas/lib", "cu13/include", "nvrtc"):
        (tmp_path / folder).mkdir(parents=True)
    spec = importlib.machinery.ModuleSpec("nvidia", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    told: list[list[str]] = []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: {"nvidia": spec}[name])
    monkeypatch.setattr(_native, "add_device_library_dirs", told.append)
    device._prepare.cache_clear()
    try:
        pysa.devices()
        pysa.devices()
        assert told == [[str(tmp_path / "cu13/lib"), str(tmp_path / "cublas/lib")]]
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        device._prepare.cache_clear()
        device.check_device("auto")  # what Model asks
        assert told[1:] == [[]]
        device._prepare.cache_clear()
        device.check_device("cpu")
        assert len(told) == 2
    finally:
        device._prepare.cache_clear()


# ---- Model


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device": 3}, "device: wrong type: expected str, got int"),
        ({"n_gpu_layers": -2}, r"n_gpu_layers: out of range: expected -1\.\.2147483647, got -2"),
        ({"n_gpu_layers": True}, "n_gpu_layers: wrong type"),
        ({"n_ctx": -1}, "n_ctx: out of range"),
        ({"type_k": "f8"}, "type_k: unknown value"),
        ({"type_v": "f8"}, "type_v: unknown value"),
        ({"n_ubatch": 0}, "n_ubatch: out of range"),
        ({"kv_offload": 1}, "kv_offload: wrong type: expected True or False, got int 1"),
    ],
)
def test_model_refuses(dense_gguf: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(pysa.ArgumentError, match=message):
        pysa.Model(dense_gguf, **arguments)


def test_an_unknown_device_is_refused_also_where_no_layer_is_to_go_there(dense_gguf: Path) -> None:
    for n_gpu_layers in (-1, 0, 3):
        with pytest.raises(pysa.DeviceError, match=r'expected one of auto, cpu.*, got "CUDA7"'):
            pysa.Model(dense_gguf, device="CUDA7", n_gpu_layers=n_gpu_layers)


def test_a_model_says_where_it_is(dense_gguf: Path) -> None:
    with pysa.Model(dense_gguf, n_threads=1, device="cpu", n_gpu_layers=5) as model:
        assert (model.device, model.n_gpu_layers, model.device_bytes) == ("cpu", 0, 0)
        session = model.session(64, kv_offload=False)
        assert (session.first_gpu_layer, session.memory()["device"]) == (4, 0)
        assert Placement.of(session).text() is None
        with pytest.raises(pysa.ArgumentError, match="kv_offload: wrong type"):
            model.session(kv_offload="no")  # type: ignore[arg-type]


def test_what_keeps_a_model_on_the_cpu_is_said_once(
    dense_gguf: Path, no_cards: None, caplog: pytest.LogCaptureFixture
) -> None:
    def said(**arguments: Any) -> list[str]:
        caplog.clear()
        with caplog.at_level(logging.WARNING, "pysa"):
            device.say_if_cpu("m.gguf", **{"device": "auto", "n_gpu_layers": -1, "n_on_gpu": 0, **arguments})
        return caplog.messages

    assert said(n_gpu_layers=0) == said(device="cpu") == said(n_on_gpu=3) == []
    assert said() == ["m.gguf: running on the CPU: this build has CUDA, but found no GPU"]
    assert said() == said(n_gpu_layers=4) == []


def test_a_build_without_backends_says_so_only_if_layers_were_asked_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_native, "devices", list)
    monkeypatch.setattr(_native, "device_support", lambda: "this build has no GPU backend; build another")
    device.say_if_cpu("m.gguf", "auto", -1, 0)
    assert not caplog.messages
    device.say_if_cpu("m.gguf", "auto", 99, 0)
    assert caplog.messages == ["m.gguf: running on the CPU: this build has no GPU backend; build another"]


def test_too_small_a_gpu_is_said(cards: None, caplog: pytest.LogCaptureFixture) -> None:
    device.say_if_cpu("m.gguf", "CUDA0", -1, 0)
    assert caplog.messages == ["m.gguf: running on the CPU: no layer fits into CUDA0's free memory beside the cache"]


# ---- Llama


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((0, 1, 1, None), Offload("cpu", 0)),
        ((-1, 0, 1, None), Offload("auto", -1)),
        ((7, 0, LLAMA_SPLIT_MODE_NONE, None), Offload("CUDA0", 7)),
        ((7, 1, 1, None), Offload("CUDA1", 7)),
        ((7, 1, 1, "CUDA0"), Offload("CUDA0", 7)),
        ((7, 1, 1, "cpu"), Offload("cpu", 7)),
        ((0, 0, 1, "auto"), Offload("auto", 0)),
    ],
)
def test_llama_cpps_arguments_name_a_device(
    cards: None, arguments: tuple[int, int, int, str | None], expected: Offload
) -> None:
    assert choose_offload(*arguments) == expected


def test_wrong_ones_are_refused(cards: None) -> None:
    with pytest.raises(pysa.ArgumentError, match=r"main_gpu: out of range: expected 0..2 .*, got 5"):
        choose_offload(1, 5, 1, None)
    with pytest.raises(pysa.ArgumentError, match="n_gpu_layers: out of range"):
        choose_offload(-2, 0, 1, None)
    with pytest.raises(pysa.DeviceError, match="CUDA9"):
        choose_offload(1, 0, 1, "CUDA9")


def test_llama_passes_what_the_estimate_needs(dense_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pysa.llama.llama as module
    from pysa.llama.async_base import Requests

    asked: list[dict[str, Any]] = []

    class Watched(pysa.Model):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            asked.append(named)
            super().__init__(*arguments, **{**named, "n_gpu_layers": 0})

    monkeypatch.setattr(module, "Model", Watched)
    monkeypatch.setattr(module, "choose_offload", lambda *_: Offload("auto", -1))
    given: dict[str, Any] = {"n_threads": 1, "n_gpu_layers": -1, "type_k": "q8_0", "n_ubatch": 96, "offload_kqv": False}
    Llama(dense_gguf, n_ctx=700, **given).close()
    Requests(dense_gguf, 3, n_ctx=700, **given).close()
    Requests(dense_gguf, 3, n_ctx=0, **given).close()
    Llama(dense_gguf, vocab_only=True, n_ctx=0, **given).close()
    cache = {"type_k": "q8_0", "type_v": "f16", "n_ubatch": 96, "kv_offload": False}
    for named, n_ctx in zip(asked, (700, 2100, 3 * 2048, 0), strict=True):
        assert {name: named[name] for name in cache} == cache
        assert named["n_ctx"] == n_ctx
    assert [named["n_gpu_layers"] for named in asked] == [-1, -1, -1, 0]


def test_llama_computes_on_a_gpu_and_may_be_copied(dense_gguf: Path) -> None:
    import pickle

    emulated_gpu()
    options: dict[str, Any] = {"n_ctx": 64, "n_threads": 1, "attention": "composed"}
    with Llama(dense_gguf, **options) as llm:
        expected = llm("the thing", max_tokens=3, temperature=0)["choices"][0]["text"]
        assert (llm.model.device, llm.model.n_gpu_layers) == ("cpu", 0)
    with Llama(dense_gguf, n_gpu_layers=-1, device=EMULATED, **options) as llm:
        assert (llm.model.device, llm.model.n_gpu_layers, llm.session.first_gpu_layer) == (EMULATED, 5, 0)
        assert llm("the thing", max_tokens=3, temperature=0)["choices"][0]["text"] == expected
        with pickle.loads(pickle.dumps(llm)) as copy:
            assert copy.model.device == EMULATED
    with Llama(dense_gguf, n_gpu_layers=2, device=EMULATED, offload_kqv=False, **options) as llm:
        assert (llm.model.n_gpu_layers, llm.session.first_gpu_layer) == (2, 4)


# ---- commands


@pytest.mark.parametrize("command", ["generate", "chat", "serve", "bench", "perplexity", "compare", "recall", "needle"])
def test_all_commands_with_sessions_have_the_options(command: str) -> None:
    needed = {"generate": ["-p", "x"], "perplexity": ["--text", "t"], "compare": ["--text", "t"]}.get(command, [])
    plain = build_parser().parse_args([command, "m.gguf", *needed])
    assert (plain.device, plain.gpu_layers, plain.kv_offload) == ("auto", -1, True)
    given = ["--device", "CUDA1", "-ngl", "12", "--no-kv-offload"]
    options = build_parser().parse_args([command, "m.gguf", *needed, *given])
    assert (options.device, options.gpu_layers, options.kv_offload) == ("CUDA1", 12, False)
    for text, n in (("all", 2**31 - 1), ("auto", -1), ("0", 0)):
        assert build_parser().parse_args([command, "m.gguf", *needed, "--gpu-layers", text]).gpu_layers == n


def test_wrong_options_are_one_line(dense_gguf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, status, message in (
        (["generate", "m.gguf", "-p", "x", "-ngl", "-1"], 2, "expected an integer of 0 or more, all or auto, got '-1'"),
        (["generate", "m.gguf", "-p", "x", "-ngl", "many"], 2, "-ngl/--gpu-layers: expected"),
        (["generate", str(dense_gguf), "-p", "x", "--device", "CUDA7"], 1, 'got "CUDA7"'),
        (["plan", "m.gguf", "--text", "t", "-o", "p", "--device", "cpu"], 2, "unrecognized arguments: --device"),
        (["inspect", "m.gguf", "-ngl", "1"], 2, "unrecognized arguments: -ngl"),
    ):
        assert main(arguments) == status
        err = capsys.readouterr().err
        assert message in err
        assert err.count("\n") == 1


def test_devices_are_listed(cards: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["name", "memory", "free", "attention", "card"]
    assert rows[2] == ["CUDA1", "24.00", "GiB", "9.00", "GiB", "fused", "large"]
    assert rows[3][-2:] == ["chip,", "integrated"]
    assert main(["devices", "--json"]) == 0
    out = json.loads(capsys.readouterr().out)
    assert out == {"devices": [{**card, "attention": "fused"} for card in CARDS], "support": ""}
    lines = device_lines(pysa.devices())
    assert len({line.index("fused") for line in lines[1:]}) == 1


def test_no_device_has_a_reason(no_cards: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices"]) == 0
    assert capsys.readouterr().out == "no GPU: this build has CUDA, but found no GPU\n"


def test_what_lies_where_is_one_line() -> None:
    whole = Placement("CUDA0", 33, 33, 4 * GIB, 32, GIB)
    assert whole.text() == "CUDA0: 33 of 33 layers (4.00 GiB) and the cache of 32 (1.00 GiB)"
    assert Placement("CUDA0", 1, 33, GIB, 0, 0).text() == "CUDA0: 1 of 33 layers (1.00 GiB) and no cache"
    assert Placement("CUDA0", 9, 33, GIB, 8, 0).text() == "CUDA0: 9 of 33 layers (1.00 GiB) and the cache of 8"


def test_card_and_driver_are_asked_for(cards: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert placement.card_facts("cpu") == {"card": "", "driver": ""}
    monkeypatch.setenv("PATH", str(tmp_path))
    assert placement.card_facts("CUDA1") == {"card": "large", "driver": ""}
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 570.86.15\necho 570.86.15\n")
    program.chmod(0o755)
    assert placement.card_facts("CUDA1")["driver"] == "570.86.15"


def test_memory_taken_is_what_the_driver_misses(cards: None, monkeypatch: pytest.MonkeyPatch) -> None:
    before = free_on("CUDA1")
    assert (free_on("cpu"), taken_on("cpu", None)) == (None, None)
    monkeypatch.setitem(CARDS[1], "free_bytes", 8 * GIB)
    assert taken_on("CUDA1", before) == GIB


# ---- fit


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return GQA2.write(tmp_path_factory.mktemp("models"), n_ctx=4096)


@pytest.fixture(scope="module")
def plan() -> pysa.Plan:
    return build_plan("mixed", GQA2, 4, 20, seed=5, bias=True)


def test_what_is_counted_is_what_the_engine_puts_there(path: Path, plan: pysa.Plan) -> None:
    emulated_gpu()
    n_all = GQA2.n_layer + 1
    for choice in (None, plan):
        for n in range(1, n_all + 1):
            found = pysa.fit(path, "1G", device=EMULATED, n_gpu_layers=n, n_ctx_max=600, plan=choice)
            with pysa.Model(path, n_threads=1, device=found.device, n_gpu_layers=found.n_gpu_layers) as model:
                session = model.session(found.n_ctx, plan=choice, attention="composed")
                session.eval([7])
                session._fill(600)
                memory = session.memory()
                assert found.n_gpu_layers == n
                assert found.gpu_weights_bytes == model.device_bytes
                assert found.gpu_cache_bytes == pytest.approx(memory["device"], abs=4096)
                assert found.gpu_cache_bytes + found.cache_bytes == memory["total"]
                assert attention_cut(choice or pysa.Plan.dense(GQA2.n_layer, GQA2.n_head), n_all - n) == (
                    session.first_gpu_layer
                )
            assert found.total_bytes + found.gpu_total_bytes > found.gpu_weights_bytes + found.gpu_cache_bytes


def test_an_embedding_that_is_the_output_is_on_both_sides(tiny_gguf: Callable[..., Path]) -> None:
    emulated_gpu()
    path = tiny_gguf("llama", tied=True, dtype="q4_0", n_vocab=5000)
    found = pysa.fit(path, "1G", device=EMULATED)
    with pysa.Model(path, n_threads=1, device=EMULATED, n_gpu_layers=99) as model:
        assert found.gpu_weights_bytes == model.device_bytes
        stored = sum(n_bytes for *_, n_bytes in _native.gguf_read(str(path))["tensors"])
        embedding = read_shape(str(path))[0].tied_bytes
        assert found.weights_bytes + found.gpu_weights_bytes == stored + embedding


def loads(path: Path, n_ctx: int, n_layers: int) -> int:
    """Bytes that so many layers take on a GPU."""
    shape, _ = read_shape(str(path))
    dense = pysa.Plan.dense(shape.n_layer, shape.n_head)
    return Load(shape, dense, n_ctx, ("f16", "f16"), 1, 512, 256 << 20).on_gpu(n_layers).total_bytes


def test_both_memories_hold_the_context(path: Path) -> None:
    n_all = GQA2.n_layer + 1
    plenty = pysa.fit(path, "1T", gpu_memory="1T")
    assert (plenty.n_ctx, plenty.limited_by) == (4096, "n_ctx_train")
    assert (plenty.device, plenty.n_gpu_layers, plenty.cache_bytes) == ("auto", n_all, 0)
    assert plenty.gpu_total_bytes == loads(path, 4096, n_all)

    # As many layers as fit beside that context, and no more.
    two = pysa.fit(path, "1T", gpu_memory=loads(path, 4096, 3) - 1)
    assert (two.n_ctx, two.n_gpu_layers) == (4096, 2)
    assert two.gpu_total_bytes == loads(path, 4096, 2)
    assert two.cache_bytes + two.gpu_cache_bytes == plenty.gpu_cache_bytes

    # A host that is short has a longer context with a GPU.
    alone = pysa.fit(path, "70M")
    helped = pysa.fit(path, "70M", gpu_memory="1G")
    assert (alone.limited_by, alone.gpu_total_bytes, alone.device) == ("memory", 0, "cpu")
    assert alone.n_ctx < helped.n_ctx

    # Too small for a layer: as without.
    none = pysa.fit(path, "1T", gpu_memory=1000)
    assert (none.n_gpu_layers, none.gpu_total_bytes, none.weights_bytes) == (0, 0, pysa.fit(path, "1T").weights_bytes)


def test_layers_that_must_be_there_limit_the_context(path: Path) -> None:
    n_all = GQA2.n_layer + 1
    found = pysa.fit(path, "1T", gpu_memory=loads(path, 1024, n_all), n_gpu_layers=99)
    assert (found.n_ctx, found.limited_by, found.n_gpu_layers) == (1024, "gpu_memory", n_all)
    assert pysa.fit(path, "1T", gpu_memory=loads(path, 1024, n_all) - 1, n_gpu_layers=99).n_ctx == 768
    with pytest.raises(pysa.ArgumentError, match=r"gpu_memory: not enough: expected at least \d+ .*fewer n_gpu_layers"):
        pysa.fit(path, "1T", gpu_memory=1000, n_gpu_layers=1)
    assert pysa.fit(path, "1T", gpu_memory=1000, n_gpu_layers=0).n_gpu_layers == 0


def test_the_device_is_asked(path: Path, cards: None) -> None:
    assert pysa.fit(path, "1G", device="CUDA0").gpu_memory_bytes == 7 * GIB - 256 * 2**20
    assert pysa.fit(path, "1G", device="auto").device == "CUDA1"
    assert pysa.fit(path, "1G", device="CUDA0", gpu_memory="2G").gpu_memory_bytes == 2 * GIB
    assert pysa.fit(path, "1G", device="cpu") == pysa.fit(path, "1G")
    with pytest.raises(pysa.DeviceError, match="CUDA5"):
        pysa.fit(path, "1G", device="CUDA5")


def test_without_a_device_nothing_is_there(path: Path, no_cards: None) -> None:
    assert pysa.fit(path, "1G", device="auto") == pysa.fit(path, "1G")
    for arguments, named in (
        ({"device": "auto", "gpu_memory": "1G"}, "gpu_memory: there is no GPU"),
        ({"n_gpu_layers": 3}, "n_gpu_layers: there is no GPU"),
        ({"gpu_memory": "much"}, "gpu_memory: no size"),
        ({"n_gpu_layers": -2, "gpu_memory": "1G"}, "n_gpu_layers: out of range"),
        ({"device": 3}, "device: wrong type"),
    ):
        with pytest.raises(pysa.ArgumentError, match=named):
            pysa.fit(path, "1G", **arguments)  # type: ignore[arg-type]


def test_the_table_has_the_gpus_part(path: Path) -> None:
    lines = str(pysa.fit(path, "1G", gpu_memory="1G")).splitlines()
    at = lines.index(f"{GQA2.n_layer + 1} layers on a GPU")
    assert [line.split()[0] for line in lines[at + 1 :]] == ["weights", "cache", "compute", "total", "of"]
    assert "layers on" not in str(pysa.fit(path, "1G"))
