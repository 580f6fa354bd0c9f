"""`pysa perplexity`, `compare`, `recall` and `needle`: what they print, draw and refuse."""

from __future__ import annotations

import io
import json
import re
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pysa
from pysa.cli import measure_table
from pysa.cli.console import Console
from pysa.cli.main import main
from pysa.cli.measure_options import read_plan, read_plans
from pysa.errors import ArgumentError, PlanError
from pysa.plan import Plan
from pysa.planning import pictures
from pysa.planning.perplexity import chunks, perplexity
from pysa.planning.pictures import Point, plan_picture, quality_picture, save_picture, similarity_picture
from pysa.planning.scoring import Engine
from pysa.planning.texts import read_corpus

TASKS = ("recall", "needle")
TEXTS = ("perplexity", "compare")
SHORT = ["-t", "1", "--type-k", "f32", "--type-v", "f32"]
QUICK = {
    "perplexity": ["-c", "96", "--chunks", "2"],
    "compare": ["-c", "96", "--chunks", "2", "--plan", "streaming:4+24"],
    "recall": ["-c", "500,550", "--questions", "7", "--plan", "streaming:4+24"],
    "needle": ["-c", "120,150", "--depths", "0.5,1", "--repeats", "2", "--plan", "streaming:4+24"],
}
USAGE = [
    ("perplexity", [], "the following arguments are required: --text"),
    ("compare", [], "the following arguments are required: --text"),
    ("perplexity", ["--text", "a", "-c", "7"], "-c/--ctx-size: expected an integer in 8..2147483647, got '7'"),
    (
        "compare",
        ["--text", "a", "--plan", "streaming:16"],
        "--plan: expected streaming:SINKS+RECENT, as streaming:16+240",
    ),
    ("compare", ["--text", "a", "--plan", "blocks:4:16"], "blocks:N:SINKS+RECENT or sa:A-B,C-D"),
    ("compare", ["--text", "a", "--plan", "sa:3-"], "or sa:A-B,C-D, as sa:23-26,27-30, got 'sa:3-'"),
    ("recall", ["-c", "512,x"], "-c/--ctx-size: expected integers of 1 or more, as 512,2048, got '512,x'"),
    ("recall", ["--questions", "0"], "--questions: expected an integer in 1..2147483647, got '0'"),
    ("needle", ["--depths", "0,1.5"], "--depths: expected numbers in 0..1, as 0,0.5,1, got '0,1.5'"),
    ("needle", ["--type-k", "f8"], "--type-k: invalid choice: 'f8'"),
]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some 1,500 tokens for the tiny vocabularies."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    words = np.random.default_rng(1).choice(["the", "thing", "and", "in", "hat", "an", "end", "gin"], 700)
    path.write_text(" ".join(words.tolist()) + "\n", encoding="utf-8")
    return path


def arguments_of(command: str, model: Path, text: Path, *more: str) -> list[str]:
    texts = ["--text", str(text)] if command in TEXTS else []
    return [command, str(model), *SHORT, *texts, *QUICK[command], *more]


def json_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main([*arguments, "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    found = json.loads(out)
    assert isinstance(found, dict)
    return found


def size_of(path: Path) -> tuple[int, int]:
    """Width and height of a PNG."""
    raw = path.read_bytes()
    assert raw[:8] == b"\x89PNG\r\n\x1a\n"
    assert raw[12:16] == b"IHDR"
    return struct.unpack(">II", raw[16:24])


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("command", "arguments", "message"), USAGE)
def test_usage_errors_are_one_line_and_status_2(
    command: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "m.gguf", *arguments]) == 2
    err = capsys.readouterr().err
    assert re.fullmatch(r"pysa: error: [^\n]+\n", err), err
    assert message in err


def test_failures_are_one_line_and_status_1(
    dense_gguf: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").touch()
    (tmp_path / "bytes").write_bytes(b"\xff")
    (tmp_path / "taken.png").write_bytes(b"mine")
    Plan.streaming(5, 6).save(tmp_path / "other.json")
    model, given = str(dense_gguf), ["--text", str(text)]
    for arguments, message in (
        (["perplexity", "absent.gguf", *given], "absent.gguf"),
        (["perplexity", model, "--text", "absent"], "absent: cannot be read"),
        (["perplexity", model, "--text", str(text), "empty", "bytes"], "bytes: not UTF-8"),
        (["perplexity", model, "--text", "empty"], "empty: empty: expected some text"),
        (["perplexity", model, *given, "-c", "9000"], "too short: expected at least 9000 tokens"),
        (["recall", model, "--text", "empty"], "empty: empty: expected some text"),
        (["recall", model, *given, "-c", "4000"], "filler: too short"),
        (["recall", model, "-c", "30"], "n_tokens: too few"),
        (["needle", model, "--fact", "x"], "fact: not a template"),
        (["compare", model, *given], "has no plan: expected one to compare with dense; give --plan PLAN"),
        (["compare", model, *given, "--plan", "absent.json"], "absent.json"),
        (["compare", model, *given, "--plan", "other.json"], "other.json: does not fit"),
        (["needle", model, "--plan", "sa:2-9"], "layers 2-9"),
        (["needle", model, "--png", "taken.png"], "taken.png: exists: expected a new file; --force replaces it"),
        (["needle", model, "--png", "no/where.png"], "no such folder"),
    ):
        assert main([*arguments, "-t", "1"]) == 1, arguments
        out, err = capsys.readouterr()
        assert out == ""
        assert re.fullmatch(r"pysa: error: [^\n]+\n", err), err
        assert message in err
    assert (tmp_path / "taken.png").read_bytes() == b"mine"


def test_without_matplotlib_the_error_says_what_to_install(
    shared_gguf: Path, text: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures.importlib.util, "find_spec", lambda name: None)
    assert main(arguments_of("perplexity", shared_gguf, text, "--png", "a.png")) == 1
    assert capsys.readouterr() == (
        "",
        "pysa: error: a.png: pictures need matplotlib, which is not installed; pip install pysa[plots]\n",
    )


def test_matplotlib_is_not_loaded_unless_a_picture_is_asked_for(shared_gguf: Path, text: Path, tmp_path: Path) -> None:
    script = "import sys; from pysa.cli.main import main; main(sys.argv[1:]); print('matplotlib' in sys.modules)"
    command = [sys.executable, "-c", script, *arguments_of("perplexity", shared_gguf, text, "--json")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == "False"


# A test run in the background ignores SIGINT, and so would its children.
ENDLESS = """
import signal, sys
from pysa.cli import main, measure
signal.signal(signal.SIGINT, signal.default_int_handler)
one = measure.perplexity
def endless(*arguments, **options):
    print("go", flush=True)
    while True:
        one(*arguments, **options)
measure.perplexity = endless
sys.exit(main.main(sys.argv[1:]))
"""


def test_ctrl_c_ends_with_status_130(shared_gguf: Path, text: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", ENDLESS, *arguments_of("perplexity", shared_gguf, text, "--png", "a.png")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"go\n"
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(timeout=60) == 130
        finally:
            process.kill()
        assert process.stdout.read() == b""
        assert process.stderr.read() == b"pysa: error: interrupted\n"
    assert list(tmp_path.iterdir()) == []


# -- plans by name ---------------------------------------------------------------------------------------------------


def test_plans_by_name(shared_model: pysa.Model, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    Plan.pod_blocks(4, 6, 2, 4, 24).save(path)
    for text, expected in (
        ("dense", Plan.dense(4, 6)),
        ("streaming", Plan.streaming(4, 6, 16, 4080)),
        ("streaming:4+24", Plan.streaming(4, 6, 4, 24)),
        ("blocks:3", Plan.pod_spans(4, 6, [(1, 2)], 16, 4080)),
        ("blocks:2:4+24", Plan.pod_spans(4, 6, [(1, 1), (3, 3)], 4, 24)),
        ("sa:1,3", Plan.sa(4, 6, [(1, 1), (3, 3)])),
        ("sa:2-3", Plan.sa(4, 6, [(2, 3)])),
        (str(path), Plan.pod_blocks(4, 6, 2, 4, 24)),
    ):
        assert read_plan(shared_model, text) == expected, text
    for text, message in (("streaming:4+0", "n_recent"), ("sa:0", "layers 0-0"), ("blocks:5", "block: ")):
        with pytest.raises(PlanError, match=message):
            read_plan(shared_model, text)


def test_plans_have_short_names_unless_two_would_be_alike(shared_model: pysa.Model, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        Plan.streaming(4, 6, 4, 24).save(tmp_path / folder / "plan.json")
    first, second = str(tmp_path / "a" / "plan.json"), str(tmp_path / "b" / "plan.json")
    assert list(read_plans(shared_model, [first, "sa:3"])) == ["plan", "sa:3"]
    assert list(read_plans(shared_model, [first, second])) == [first, second]
    assert read_plans(shared_model, None) == {"plan": shared_model.plan}


# -- what is printed -------------------------------------------------------------------------------------------------


def test_perplexity_prints_what_is_measured(
    shared_gguf: Path, shared_model: pysa.Model, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = json_of(arguments_of("perplexity", shared_gguf, text, "--plan", "dense"), capsys)
    corpus = read_corpus(shared_model, [text])
    assert found["text"] == {"files": [str(text)], "sha256": corpus.sha256, "n_tokens": len(corpus.tokens)}
    engine = Engine(**{key: value for key, value in found["engine"].items() if key != "n_threads"})
    one = perplexity(shared_model, chunks(shared_model, corpus, 96, 2), Plan.dense(4, 6), engine=engine)
    assert found["perplexity"]["value"] == pytest.approx(one.value, rel=1e-5)
    assert found["perplexity"]["n_tokens"] == 2 * 47
    assert main(arguments_of("perplexity", shared_gguf, text, "--plan", "dense")) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert f"perplexity {found['perplexity']['value']:.4f} +- {found['perplexity']['error']:.5f}" in out
    assert "positions 48 to 94 of each of 2 chunks of 96 tokens: 94 predictions" in out
    shared = json_of(arguments_of("perplexity", shared_gguf, text), capsys)  # the file's own plan
    assert shared["plans"]["plan"]["n_recent"] == 24
    assert shared["perplexity"]["value"] != found["perplexity"]["value"]


def test_compare_has_a_row_per_plan_and_the_dense_plan_changes_nothing(
    shared_gguf: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--plan", "dense", "--plan", "sa:1,3"]
    found = json_of(arguments_of("compare", shared_gguf, text, *more), capsys)
    assert list(found["compare"]) == ["streaming:4+24", "dense", "sa:1,3"]
    dense = found["compare"]["dense"]
    assert (dense["kl"], dense["ppl_ratio"], dense["ppl_ratio_error"], dense["same_top1"]) == (0, 1, 0, 1)
    for name in ("streaming:4+24", "sa:1,3"):
        one = found["compare"][name]
        assert one["ppl_dense"] == dense["ppl_dense"]
        assert one["kl"] > 0.01
        assert one["saving"] == found["plans"][name]["saving"] > 0
    alone = json_of(arguments_of("perplexity", shared_gguf, text, "--plan", "dense"), capsys)
    assert alone["perplexity"]["value"] == pytest.approx(dense["ppl_shared"], rel=1e-9)
    assert main(arguments_of("compare", shared_gguf, text, *more)) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert f"{found['compare']['sa:1,3']['kl']:.4f} +- " in rows["sa:1,3"]
    assert f"{100 * found['compare']['sa:1,3']['saving']:.1f} %" in rows["sa:1,3"]
    assert f" {dense['ppl_shared']:.1f} +- " in rows["dense"]


@pytest.mark.parametrize("command", TASKS)
def test_tasks_are_the_same_for_the_same_seed(
    command: str, shared_gguf: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, again, other = (
        json_of(arguments_of(command, shared_gguf, text, "--seed", seed), capsys) for seed in ("3", "3", "4")
    )
    assert first == again
    assert first["text"] is None  # made-up sentences
    assert list(first[command]["all"]) == ["dense", "streaming:4+24"]
    if command == "recall":
        rows = first["recall"]["by_length"]
        assert [(row["n_ctx"], row["n_questions"]) for row in rows] == [(500, 7), (550, 7)]
        assert sum(row["n_questions"] for row in first["recall"]["by_distance"]) == 14
        assert first["recall"]["by_distance"] != other["recall"]["by_distance"]
    else:
        assert first["needle"]["depths"] == [0.5, 1.0]
        assert np.shape(first["needle"]["right"]["dense"]) == (2, 2)
        assert first["needle"]["all"]["dense"]["n_asked"] == 8
        assert first["needle"]["n_asked"] == 2


@pytest.mark.parametrize("command", TASKS)
def test_dense_is_asked_alone_where_no_plan_is_there(
    command: str, shared_gguf: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [argument for argument in arguments_of(command, shared_gguf, text) if argument != "streaming:4+24"]
    found = json_of([*arguments, "dense", "--text", str(text)], capsys)
    assert list(found[command]["all"]) == ["dense"]
    assert found["plans"] == {}
    assert found["text"]["files"] == [str(text)]


@pytest.mark.parametrize("command", list(QUICK))
@pytest.mark.parametrize("width", [40, 100])
def test_the_output_fits_the_width(
    command: str, width: int, shared_gguf: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    console = Console(io.StringIO(), io.StringIO(), width)
    monkeypatch.setattr(Console, "of_process", lambda: console)
    assert main(arguments_of(command, shared_gguf, text)) == 0
    out = console.out.getvalue()  # type: ignore[attr-defined]
    table = out.split("\n\n", 1)[1]
    assert max(map(len, table.splitlines())) <= width
    assert "tokens" in out
    assert console.err.getvalue() == ""  # type: ignore[attr-defined]


def test_a_table_too_wide_becomes_a_list() -> None:
    rows = [["plan", "saved", "kl"], ["mine", "41.3 %", "0.008"], ["dense", "", "0"]]
    assert measure_table.table_lines(rows, 30) == [
        "plan     saved      kl",
        "mine    41.3 %   0.008",
        "dense                0",
    ]
    assert measure_table.table_lines(rows, 20) == [
        "plan   mine",
        "saved  41.3 %",
        "kl     0.008",
        "",
        "plan   dense",
        "kl     0",
    ]


# -- pictures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", list(QUICK))
def test_every_command_writes_a_picture(
    command: str, shared_gguf: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.png"
    arguments = arguments_of(command, shared_gguf, text, "--png", str(path))
    assert main(arguments) == 0
    assert size_of(path)[0] == 900
    assert 300 <= size_of(path)[1] <= 1200
    before = path.read_bytes()
    assert main(arguments) == 1
    assert "exists" in capsys.readouterr().err
    path.write_bytes(b"old")
    assert main([*arguments, "--force"]) == 0
    assert len(path.read_bytes()) == pytest.approx(len(before), rel=0.05)
    assert list(tmp_path.iterdir()) == [path]


def test_pictures_of_plans_and_qualities(tmp_path: Path, tiny_plan: dict[str, Any]) -> None:
    similarity = np.random.default_rng(0).random((24, 24))
    points = [Point("dense", 0.0, 0.0, 0.97), Point("a", 0.3, 1.6, 0.4, 0.02), Point("b", 0.6, 0.008, None, 0.001)]
    for name, figure in (
        ("plan", plan_picture(Plan.from_json(tiny_plan))),
        ("large", plan_picture(Plan.pod_blocks(48, 64, 5))),
        ("similarity", similarity_picture(similarity, 4, 6)),
        ("quality", quality_picture(points)),
        ("text only", quality_picture([Point("a", 0.3, 0.01)])),
    ):
        save_picture(figure, tmp_path / f"{name}.png")
        width, height = size_of(tmp_path / f"{name}.png")
        assert width == 900, name
        assert 300 <= height <= 1400, name
        with pytest.raises(ArgumentError, match="exists"):
            save_picture(figure, tmp_path / f"{name}.png")


def test_the_plan_picture_says_which_head_follows_which() -> None:
    score_layer, score_head = np.array([[0, 0], [0, 1], [2, -1]]), np.array([[0, 1], [1, 1], [0, -1]])
    axes = plan_picture(Plan("custom", "scores", 4, 24, score_layer, score_head)).axes[0]
    assert [(text.get_text(), text.get_position()) for text in axes.texts] == [("0.1", (0, 1))]
    marks = {str(one.get_label()): one.get_offsets().tolist() for one in axes.collections}  # type: ignore[union-attr]
    assert marks["owner (colour of its own layer)"] == [[0, 0], [1, 0], [1, 1], [0, 2]]
    assert marks["local"] == [[1, 2]]
    assert axes.get_xlabel() == "head"
    assert axes.get_ylabel() == "layer"


def test_the_quality_picture_shows_percent() -> None:
    figure = quality_picture([Point("dense", 0.0, 0.0, 0.97), Point("a", 0.25, 0.012, 0.5)])
    above, below = figure.axes
    assert [line.get_xydata().tolist() for line in below.lines] == [[[0.0, 97.0]], [[25.0, 50.0]]]
    found = [line.get_xydata().tolist() for line in above.lines if line.get_marker() in ("o", "s")]
    assert found == [[[0.0, 0.0]], [[25.0, pytest.approx(1.2)]]]
