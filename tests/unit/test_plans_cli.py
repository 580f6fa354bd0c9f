"""From pysa-convert's options to a plan: what is built, and what is refused with which status."""

from __future__ import annotations

from pathlib import Path

import pytest
from pysa_convert.architectures.base import Dims
from pysa_convert.cli import build_parser, main, options_of
from pysa_convert.plans import PlanOptions, UsageError, build_plan, check_options, parse_layers

from pysa.errors import PlanError
from pysa.plan import Plan

DIMS = Dims(12, 2048, 192, 6, 3, 32, 32, 512, 4096)


def plan_of(*arguments: str) -> Plan | None:
    options = options_of(build_parser().parse_args(["model", *arguments])).sharing
    check_options(options)
    return build_plan(options, DIMS)


def test_layers_are_spans() -> None:
    assert parse_layers("23-26,27-30, 5") == ((23, 26), (27, 30), (5, 5))
    for text in ("", "a", "1-", "-3", "1,,2", "1-2-3"):
        with pytest.raises(UsageError, match="expected spans like 23-26,27-30"):
            parse_layers(text)


def test_each_method() -> None:
    assert plan_of() is None
    assert plan_of("--share", "none") is None
    assert plan_of("--share", "sa", "--layers", "3-5") == Plan.sa(12, 6, [(3, 5)])
    assert plan_of("--share", "pod", "--block", "4") == Plan.pod_blocks(12, 6, 4, 16, 4080)
    assert plan_of("--share", "streaming", "--sinks", "0", "--recent", "9") == Plan.streaming(12, 6, 0, 9)
    spans = plan_of("--share", "pod", "--layers", "2-3", "--distant", "keys", "--recent", "64", "--skip-gate", "0.7")
    expected = Plan.pod_spans(12, 6, [(2, 3)], 16, 64, "keys")
    expected.skip_gate = 0.7
    assert spans == expected


def test_a_plan_file_must_fit_the_model(tmp_path: Path) -> None:
    Plan.pod_blocks(12, 6, 3).save(tmp_path / "good.json")
    Plan.pod_blocks(10, 6, 3).save(tmp_path / "bad.json")
    assert plan_of("--plan", str(tmp_path / "good.json")) == Plan.pod_blocks(12, 6, 3)
    with pytest.raises(PlanError, match="expected 12 layers as the model has, got 10"):
        plan_of("--plan", str(tmp_path / "bad.json"))


@pytest.mark.parametrize(
    "arguments",
    [
        "--share sa",
        "--share pod",
        "--share pod --block 2 --layers 1-2",
        "--share pod --block 1",
        "--share sa --layers 1-2 --sinks 4",
        "--share sa --layers 1-2 --recent 4",
        "--share streaming --block 2",
        "--layers 1-2",
        "--recent 64",
        "--share none --block 2",
        "--share none --plan p.json",
        "--share sa --layers 1-2 --plan p.json",
        "--share pod --block 2 --recent 0",
        "--share pod --block 2 --sinks -1",
        "--share pod --block 2 --skip-gate 1.5",
    ],
)
def test_contradictions_are_usage_errors(arguments: str) -> None:
    with pytest.raises(UsageError):
        plan_of(*arguments.split())


def test_a_span_beyond_the_model_is_a_plan_error() -> None:
    with pytest.raises(PlanError, match="layers 9-12: expected first layer 1 or later, last layer 11"):
        plan_of("--share", "sa", "--layers", "9-12")
    with pytest.raises(PlanError, match="expected at most the model's 12 layers, got 13"):
        build_plan(PlanOptions(share="pod", block=13), DIMS)


@pytest.mark.parametrize(
    "arguments", [["--bogus"], [], ["m", "--outtype", "q9"], ["m", "--share", "all"], ["m", "--block", "x"]]
)
def test_unknown_options_exit_with_2_and_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_contradictions_exit_with_2_and_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model", "--share", "sa"]) == 2
    assert capsys.readouterr().err == "pysa-convert: --share sa needs --layers, for example --layers 23-26,27-30\n"
