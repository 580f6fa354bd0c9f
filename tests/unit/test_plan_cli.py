"""`pysa plan` on a tiny model, end to end: what it writes, refuses, remembers and complains about."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pysa_convert.cli import main as convert_main

import pysa
from pysa.cli.main import main
from pysa.planning import gate as gate_module
from pysa.planning.budget import Budget
from pysa.planning.gate import Sizes, Verdict
from pysa.planning.holdout import split
from pysa.planning.texts import Corpus

Run = Callable[..., int]
WINDOW = ["--sinks", "4", "--recent", "28", "--tokens", "512", "--samples", "2", "-t", "1"]

ANYTHING = ["--max-ppl-increase", "1e6", "--max-recall-drop", "1"]  # a random model has a lot to lose


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    words = np.array("the thing and a house of words that go on in an old town".split())  # noqa: SIM905
    rng = np.random.default_rng(0)
    path.write_text(" ".join(rng.choice(words, 2000)), encoding="utf-8")
    return path


@pytest.fixture
def plan(tmp_path: Path, dense_gguf: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `pysa plan` with a small window, and a gate that measures little."""
    monkeypatch.setattr(gate_module.Sizes, "of", classmethod(lambda cls, n, m: cls(2, 1, 2)))

    def run(*arguments: Any, output: str = "plan.json") -> int:
        given = [str(a) for a in arguments]
        window = [] if "--tokens" in given else WINDOW
        return main(["plan", str(dense_gguf), "--text", str(text), "-o", str(tmp_path / output), *window, *given])

    return run


def read(path: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return result


def test_a_search_is_written_with_what_was_measured(
    plan: Run, tmp_path: Path, dense_gguf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan("--save", "0.3", *ANYTHING, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    with pysa.Model(dense_gguf) as model:
        found = pysa.Plan.load(tmp_path / "plan.json")
        found.validate(model.n_head_kv, model.n_layer, model.n_head)
        sizes = model.cache_bytes(2048, found)
    assert report["plan"] == found.to_json()
    assert report["saving"] == pytest.approx(1 - sizes["total"] / sizes["dense"])
    assert report["saving"] >= 0.3
    measured = found.calibration
    assert measured["saving"] == report["saving"]
    assert measured["saving_at"] == 2048
    assert measured["perplexity_increase"] == pytest.approx(
        measured["perplexity_shared"] / measured["perplexity_dense"] - 1  # type: ignore[operator]
    )
    assert set(measured) == {
        "corpus_sha256",
        "tokens",
        "perplexity_dense",
        "perplexity_shared",
        "perplexity_increase",
        "kl_divergence",
        "same_top1",
        "recall_dense",
        "recall_shared",
        "needle_dense",
        "needle_shared",
        "saving",
        "saving_at",
    }
    assert measured["tokens"] == 2 * 255


def test_the_gate_refuses_and_force_writes_without_measuring_again(
    plan: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--strategy", "streaming", "--max-kl", "0", *ANYTHING]
    assert plan(*arguments) == 1
    captured = capsys.readouterr()
    assert not (tmp_path / "plan.json").exists()
    error = captured.err.splitlines()[-1]
    assert re.search(
        r"plan\.json: not written: over the budget on held-out text: KL divergence \d\.\d{4}, allowed 0; "
        r"try --strategy search, allow more with --max-ppl-increase, or --force; .*plan\.json\.state has",
        error,
    ), error
    monkeypatch.setattr(gate_module, "compare", None)  # whoever measures again fails
    assert plan(*arguments, "--force") == 0
    assert "written" in capsys.readouterr().out
    assert (read(tmp_path / "plan.json")["calibration"]["kl_divergence"]) > 0
    assert (pysa.Plan.load(tmp_path / "plan.json").kinds() == "local").all()


def test_a_second_search_measures_nothing(
    plan: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--save", "0.2", "--share-only", *ANYTHING, "--state", str(tmp_path / "state")]
    assert plan(*arguments) == 0
    monkeypatch.setattr("pysa.planning.strategies.setup.Trial", None)
    assert plan(*arguments, output="again.json") == 0
    assert read(tmp_path / "again.json") == read(tmp_path / "plan.json")
    assert plan(*arguments, "--tokens", "400", "-t", "1", output="other.json") == 1
    assert "measured with other settings: n_tokens: expected 400, got 512" in capsys.readouterr().err


def test_pod_and_sa_take_their_calibration_from_a_file(
    plan: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "m.npz"
    common = ["--calibration", kept, "--force", "--json"]
    assert plan("--strategy", "pod", "--threshold", "0.2", *common) == 0
    written = kept.stat().st_mtime_ns
    pod = json.loads(capsys.readouterr().out)
    assert pod["plan"]["method"] == "pod"
    assert pod["reason"] == "threshold 0.2"
    assert plan("--strategy", "pod", "--save", "0.2", *common) == 0
    saved = json.loads(capsys.readouterr().out)
    assert saved["saving"] >= 0.2
    assert plan("--strategy", "sa", "--n-layers", "2", *common, "--tokens", "512", "-t", "1") == 0
    sa = json.loads(capsys.readouterr().out)
    assert (sa["plan"]["n_recent"], sa["plan"]["method"]) == (0, "sa")
    assert sum(row[0] != il for il, row in enumerate(sa["plan"]["score_layer"])) >= 2
    assert plan("--strategy", "sa", "--layers", "2-3", *common, "--tokens", "512", "-t", "1") == 0
    given = json.loads(capsys.readouterr().out)
    assert [row[0] for row in given["plan"]["score_layer"]] == [0, 1, 1, 1]
    assert kept.stat().st_mtime_ns == written
    assert plan("--strategy", "pod", *common, "--recent", "60") == 1
    assert "m.npz: of another window: expected 4 + 60, got 4 + 28" in capsys.readouterr().err


def test_pictures(plan: Run, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    png, heat = tmp_path / "p.png", tmp_path / "s.png"
    assert plan("--strategy", "streaming", "--force", "--png", png, "--similarity-png", heat) == 0
    for path in (png, heat):
        assert path.read_bytes().startswith(b"\x89PNG")


ERRORS = [
    (["--strategy", "pod", "--share-only"], 2, "--share-only: expected --strategy search, got pod"),
    (["--strategy", "pod", "--threshold", "0.5", "--save", "0.2"], 2, "--threshold: not with --save"),
    (["--threshold", "0.5"], 2, "--threshold: expected --strategy pod or sa, got search"),
    (["--save", "1.5"], 2, "--save: expected a number in 0..1, got '1.5'"),
    (["--save", "0"], 2, "--save: expected a share above 0 and below 1, as 0.35, got '0'"),
    (["--strategy", "magic"], 2, "invalid choice: 'magic'"),
    (["--tokens", "512", "--recent", "400"], 1, "--tokens: texts too short for the window of 16 + 400"),
    (["--tokens", "4096"], 1, "--tokens: expected at most the model's context of 2048, got 4096"),
    (["--tokens", "2048", "-t", "1"], 1, "too short: expected at least 8192 tokens, four samples of 2048"),
    (["--only-layers", "9"], 1, "--only-layers: expected a range within 0-3, got '9'"),
    (["--strategy", "pod", "--recent", "0"], 1, "--recent: expected at least 1 token, got 0"),
    (["--png", "nosuch/p.png"], 1, "no such folder"),
]


@pytest.mark.parametrize(("arguments", "status", "message"), ERRORS)
def test_errors_are_one_line(
    plan: Run, arguments: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan(*arguments) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err.splitlines()[-1]
    assert captured.err.splitlines()[-1].startswith("pysa: error: ")


def test_an_existing_plan_is_not_measured_for(plan: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "plan.json").write_text("{}")
    assert plan() == 1
    assert "plan.json: exists: expected a new file; --force replaces it" in capsys.readouterr().err


def test_over_budget_on_held_out_text_it_steps_back(
    plan: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def judge(self: Any, plan: pysa.Plan, advance: Any = None) -> Verdict:
        n_local = int((plan.kinds() == "local").sum())
        return Verdict(**{**VERDICT.__dict__, "ppl_increase": 0.002 * n_local})

    monkeypatch.setattr(gate_module.Gate, "judge", judge)
    wide = ["--max-ppl-increase", "1e6", "--max-recall-drop", "1", "--json"]
    assert plan(*wide) == 0
    most = json.loads(capsys.readouterr().out)
    n_most = sum(layer == -1 for row in most["plan"]["score_layer"] for layer in row)
    assert n_most >= 12
    # The searches are the same; only the gate allows less.
    faults = Verdict.faults
    monkeypatch.setattr(
        Verdict, "faults", lambda self, _: faults(self, Budget(max_ppl_increase=0.002 * n_most - 0.001))
    )
    assert plan(*wide, output="less.json") == 0
    captured = capsys.readouterr()
    less = json.loads(captured.out)
    assert "over the budget on held-out text (perplexity" in captured.err
    assert "stepped back" in less["reason"]
    assert less["saving"] < most["saving"]
    assert any(step["saving"] == pytest.approx(less["saving"]) for step in less["curve"])
    # Where a saving was asked for, less will not do.
    assert plan(*wide, "--save", str(most["saving"] - 0.01), output="no.json") == 1
    assert not (tmp_path / "no.json").exists()


# ---- the gate's own rules

VERDICT = Verdict(1000, 20.0, 20.1, 0.005, 0.001, 0.01, 0.95, 96, 90, 89, 20, 20, 20)


@pytest.mark.parametrize(
    ("change", "faults"),
    [
        ({}, []),
        ({"ppl_increase": 0.0101}, ["perplexity +1.01%, allowed +1.00%"]),
        ({"kl": 0.021}, ["KL divergence 0.0210, allowed 0.02"]),
        ({"n_recall_shared": 88}, []),
        ({"n_recall_shared": 87}, ["recall 87 of 96 against 90 dense, allowed 2 less"]),
        ({"n_needle_shared": 19}, []),
        ({"n_needle_shared": 18}, ["needle 18 of 20 against 20 dense, allowed 1 less"]),
    ],
)
def test_what_is_over_the_budget(change: dict[str, Any], faults: list[str]) -> None:
    verdict = Verdict(**{**VERDICT.__dict__, **change})
    assert verdict.faults(Budget(max_kl=0.02)) == faults


def test_time_decides_how_much_the_gate_measures() -> None:
    assert Sizes.of(1e6, 50) == Sizes(12, 16, 20)
    assert Sizes.of(1e6, 3) == Sizes(3, 16, 20)
    assert Sizes.of(0.0, 50) == Sizes(2, 3, 3)
    assert Sizes.of(40.0, 50) == Sizes(8, 7, 5)


def test_held_out_text_is_a_quarter_and_of_all_parts() -> None:
    corpus = Corpus(np.arange(1600, dtype=np.int32), "sha", ("a.txt",))
    chosen, held = split(corpus, 100)
    assert len(held.tokens) == 400
    assert sorted([*chosen.tokens.tolist(), *held.tokens.tolist()]) == list(range(1600))
    assert [int(part.min()) for part in np.split(held.tokens, 4)] == [200, 600, 1000, 1400]
    assert held.sha256 == "sha"
    chosen, held = split(corpus, 390)
    assert len(held.tokens) == 400


# ---- in the file, and shown


def test_what_was_measured_goes_into_the_file_and_is_shown(
    tmp_path: Path, dense_gguf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = pysa.Plan.streaming(4, 6, 4, 28)
    plan.calibration = VERDICT.calibration("ab" * 32, 0.625, 2048)
    plan.save(tmp_path / "plan.json")
    shared = tmp_path / "shared.gguf"
    assert convert_main([str(dense_gguf), "-o", str(shared), "--plan", str(tmp_path / "plan.json")]) == 0
    with pysa.Model(shared) as model:
        assert model.plan is not None
        assert model.plan.calibration == plan.calibration
        assert model.metadata["pysa.calibration.needle_shared"] == 1.0
        assert model.metadata["pysa.calibration.saving_at"] == 2048
    capsys.readouterr()
    assert main(["inspect", str(shared)]) == 0
    shown = capsys.readouterr().out
    for name, value in (("perplexity_increase", "0.005"), ("recall_shared", "0.927083"), ("saving_at", "2,048")):
        assert re.search(rf"{name} +{re.escape(value)}$", shown, re.MULTILINE), shown
    saves = "plan        streaming: saves 62.5 % of the cache at 2,048, "
    note = saves + "measured +0.50 % perplexity, recall 93 % (dense 94 %)"
    assert main(["generate", str(shared), "-p", "the", "-n", "1", "-t", "1"]) == 0
    assert capsys.readouterr().err.splitlines()[0] == note
    assert main(["generate", str(shared), "-p", "the", "-n", "1", "-t", "1", "--plan", "dense"]) == 0
    assert "measured" not in capsys.readouterr().err
