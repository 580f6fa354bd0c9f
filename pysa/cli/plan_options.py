"""The options of `pysa plan`."""

from __future__ import annotations

import argparse
from typing import Any

from pysa.cli.options import common_options, integer, number

STRATEGIES = ("search", "pod", "sa", "streaming")


def add_commands(commands: Any) -> None:
    """Adds `plan` to the parser's subcommands."""
    parser = commands.add_parser(
        "plan",
        help="find a sharing plan for a model and judge it",
        usage="pysa plan MODEL.gguf --text FILE... -o plan.json [options]",
        description="Finds a sharing plan, judges it on text that it was not chosen by, and writes it if it keeps to "
        "the budget. See docs/planning.md.",
        allow_abbrev=False,
    )
    parser.add_argument("--text", nargs="+", action="extend", required=True, metavar="FILE", help="UTF-8 files")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="the plan.json to write")
    parser.add_argument("--strategy", choices=STRATEGIES, default="search", help="how a plan is found (search)")
    _goal(parser.add_argument_group("what the plan is to reach"))
    _budget(parser.add_argument_group("budget: over it, a plan is not written"))
    _window(parser.add_argument_group("window"))
    _limits(parser.add_argument_group("heads: LAYERS as 0,4-6, HEADS as 11:2-3,4-6:0 (layers and their heads)"))
    _measuring(parser.add_argument_group("measuring"))
    output = parser.add_argument_group("output")
    output.add_argument("--png", metavar="FILE", help="write a picture of the plan; needs pysa[plots]")
    output.add_argument(
        "--similarity-png", metavar="FILE", help="write a heat map of how alike the heads attend; takes a calibration"
    )
    output.add_argument("--force", action="store_true", help="write a plan over its budget too; replace existing files")
    common_options(parser)


def _goal(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--save", type=_share, metavar="S", help="share of the cache's bytes, as 0.35 (as much as the budget allows)"
    )
    group.add_argument(
        "--at", type=integer(1), metavar="N", help="tokens at which bytes are counted (the model's context)"
    )
    group.add_argument("--share-only", action="store_true", help="search: no local heads")
    group.add_argument(
        "--threshold", type=number(0.0, 1.0), metavar="X", help="pod: least similarity (0.5); sa: least cosine (0.9)"
    )
    spans = group.add_mutually_exclusive_group()
    spans.add_argument("--layers", default="", metavar="LAYERS", help="sa: the layers that follow, as 23-26,27-30")
    spans.add_argument("--n-layers", type=integer(1), metavar="N", help="sa: how many layers follow")


def _budget(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--max-ppl-increase", type=number(0.0), default=0.01, metavar="X", help="perplexity, relative (0.01: 1 %%)"
    )
    group.add_argument("--max-kl", type=number(0.0), metavar="X", help="KL divergence on text, nats (no limit)")
    group.add_argument(
        "--max-recall-drop",
        type=number(0.0, 1.0),
        default=0.02,
        metavar="X",
        help="share of recall answers, and of needles, lost (0.02)",
    )


def _window(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--sinks", type=integer(0), default=16, metavar="N", help="leading tokens (16)")
    group.add_argument(
        "--recent",
        type=integer(0),
        metavar="N",
        help="last tokens (an eighth of --tokens less the sinks, at most 4080; sa: none)",
    )


def _limits(group: argparse._ArgumentGroup) -> None:
    for kind, form in (("layers", "LAYERS"), ("heads", "HEADS")):
        group.add_argument(f"--only-{kind}", default="", metavar=form, help=f"only these {kind} may follow or be local")
        group.add_argument(f"--keep-{kind}", default="", metavar=form, help=f"these {kind} stay owners")


def _measuring(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--samples", type=integer(1), default=8, metavar="N", help="texts at most (8)")
    group.add_argument(
        "--tokens", type=integer(64), metavar="N", help="tokens of a text (the model's context, at most 4096)"
    )
    group.add_argument("--queries", type=integer(1), default=16, metavar="N", help="of each text, for calibration (16)")
    group.add_argument("--calibration", metavar="FILE.npz", help="calibration to use, or to keep if it is not there")
    group.add_argument("--time", type=number(0.01), default=60.0, metavar="MINUTES", help="at most, about (60)")
    group.add_argument("--memory", type=number(0.01), default=2.0, metavar="GIB", help="for texts held (2)")
    group.add_argument("--state", metavar="FOLDER", help="what has been measured, to go on from (OUTPUT.state)")
    group.add_argument(
        "-t", "--threads", type=integer(0, 512), default=0, metavar="N", help="0: the physical cores (0)"
    )


def _share(text: str) -> float:
    value = number(0.0, 1.0)(text)
    if not 0.0 < value < 1.0:
        raise argparse.ArgumentTypeError(f"expected a share above 0 and below 1, as 0.35, got {text!r}")
    return value
