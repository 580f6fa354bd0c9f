"""The options of the commands that measure a model under plans: perplexity, compare, recall, needle."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pysa.cli.options import common_options, engine_options, integer, number
from pysa.plan import Plan
from pysa.planning.templates import FACT, QUESTION

if TYPE_CHECKING:
    from pysa.model import Model

PLAN_HELP = (
    "instead of the file's own plan: a plan.json, dense, streaming:SINKS+RECENT (every head local), sa:A-B,C-D (layers "
    "A to B follow layer A - 1, no window) or blocks:N:SINKS+RECENT (uniform blocks of N layers, as PoD's); the window "
    "is 16+4080 where it is left out"
)
SEVERAL = "; may be given several times"
MAX_CTX = 8192  # tokens, where the model's own context is more than a first look needs
N_BASE = 512  # llama-perplexity's context


def add_commands(commands: Any) -> None:
    """Adds the four commands to the parser's subcommands."""
    for name, describe, short, long in (
        ("perplexity", _perplexity, "measure perplexity on a text", "Measures perplexity as llama-perplexity does."),
        (
            "compare",
            _compare,
            "measure what a plan changes on a text",
            "Compares plans with the dense model on a text.",
        ),
        ("recall", _recall, "ask for key-value pairs far back", "Asks for key-value pairs that stand far back."),
        ("needle", _needle, "ask for one fact in a haystack", "Asks for one fact in a haystack, by depth and length."),
    ):
        text = "--text FILE..." if name in ("perplexity", "compare") else "[--text FILE...]"
        parser = commands.add_parser(
            name,
            help=short,
            usage=f"pysa {name} MODEL.gguf {text} [options]",  # files would take the model for one of theirs
            description=f"{long} See docs/measuring.md.",
            allow_abbrev=False,
        )
        describe(parser)
        engine_options(parser.add_argument_group("cache and engine"))
        output = parser.add_argument_group("output")
        output.add_argument("--png", metavar="FILE", help="write a picture; needs pysa[plots]")
        output.add_argument("--force", action="store_true", help="replace an existing picture")
        common_options(parser)


def _perplexity(parser: argparse.ArgumentParser) -> None:
    _text_option(parser, required=True)
    parser.add_argument(
        "-c", "--ctx-size", type=integer(8), default=N_BASE, metavar="N", help=f"tokens of a chunk ({N_BASE})"
    )
    _chunks_option(parser)
    parser.add_argument("--plan", type=_plan_text, metavar="PLAN", help=PLAN_HELP)


def _compare(parser: argparse.ArgumentParser) -> None:
    _text_option(parser, required=True)
    parser.add_argument(
        "-c", "--ctx-size", type=integer(8), metavar="N", help=f"tokens of a chunk (the model's own, at most {MAX_CTX})"
    )
    _chunks_option(parser)
    _plans_option(parser)


def _recall(parser: argparse.ArgumentParser) -> None:
    _task_options(parser)
    parser.add_argument(
        "--questions", type=integer(1), default=48, metavar="N", help="for each context length; six in a document (48)"
    )


def _needle(parser: argparse.ArgumentParser) -> None:
    _task_options(parser)
    parser.add_argument(
        "--depths",
        type=_depths,
        default=[0.0, 0.25, 0.5, 0.75, 1.0],
        metavar="X,...",
        help="where the fact stands: 0 at the beginning, 1 just before the question (0,0.25,0.5,0.75,1)",
    )
    parser.add_argument("--repeats", type=integer(1), default=3, metavar="N", help="needles of each cell (3)")


def _text_option(parser: argparse.ArgumentParser, required: bool) -> None:
    help_text = (
        "UTF-8 files, one after the other" if required else "UTF-8 files as filler, instead of made-up sentences"
    )
    parser.add_argument("--text", nargs="+", action="extend", required=required, metavar="FILE", help=help_text)


def _chunks_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--chunks", type=integer(0), default=0, metavar="N", help="most chunks; 0: the whole text (0)")


def _plans_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--plan", type=_plan_text, action="append", metavar="PLAN", help=PLAN_HELP + SEVERAL)


def _task_options(parser: argparse.ArgumentParser) -> None:
    _text_option(parser, required=False)
    parser.add_argument(
        "-c",
        "--ctx-size",
        type=_lengths,
        metavar="N,...",
        help=f"lengths of the documents in tokens (a quarter, half and all of the model's own, at most {MAX_CTX})",
    )
    _plans_option(parser)
    parser.add_argument("--seed", type=integer(0), default=0, metavar="N", help="of words and filler (0)")
    parser.add_argument("--fact", default=FACT, metavar="TEXT", type=_template, help=_shown("a fact", FACT))
    parser.add_argument(
        "--question",
        default=QUESTION,
        metavar="TEXT",
        type=_template,
        help=_shown("a question with its answer", QUESTION),
    )


def _shown(what: str, template: str) -> str:
    return f"how {what} is written; \\n is a newline ({template.encode('unicode_escape').decode()})"


def _template(text: str) -> str:
    return text.replace("\\n", "\n")


def _lengths(text: str) -> list[int]:
    try:
        return sorted({integer(1)(part) for part in text.split(",")})
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"expected integers of 1 or more, as 512,2048, got {text!r}") from None


def _depths(text: str) -> list[float]:
    try:
        return sorted({number(0.0, 1.0)(part) for part in text.split(",")})
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"expected numbers in 0..1, as 0,0.5,1, got {text!r}") from None


# ---- plans by name

WINDOW = r"(?::(?P<n_sink>\d{1,9})\+(?P<n_recent>\d{1,9}))?"
STREAMING = re.compile(f"streaming{WINDOW}")
BLOCKS = re.compile(rf"blocks:(?P<block>\d{{1,6}}){WINDOW}")
SA = re.compile(r"sa:(?P<spans>\d{1,6}(-\d{1,6})?(,\d{1,6}(-\d{1,6})?)*)")


def _plan_text(text: str) -> str:
    """The text of --plan, if it can name a plan at all."""
    if re.match("(streaming|blocks|sa):", text) and not any(one.fullmatch(text) for one in (STREAMING, BLOCKS, SA)):
        expected = "streaming:SINKS+RECENT, as streaming:16+240, blocks:N:SINKS+RECENT or sa:A-B,C-D, as sa:23-26,27-30"
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
    return text


def read_plan(model: Model, text: str) -> Plan:
    """The plan that a --plan of these commands names, checked against the model.

    Raises:
        PlanError: it cannot be read, or does not fit.
    """
    plan: Plan | str = text
    shape = (model.n_layer, model.n_head)
    if match := STREAMING.fullmatch(text):
        plan = Plan.streaming(*shape, *_window(match))
    elif match := BLOCKS.fullmatch(text):
        plan = Plan.pod_blocks(*shape, int(match["block"]), *_window(match))
    elif match := SA.fullmatch(text):
        spans = [part.split("-") for part in match["spans"].split(",")]
        plan = Plan.sa(*shape, [(int(span[0]), int(span[-1])) for span in spans])
    resolved = model.resolve_plan(plan)
    assert resolved is not None  # only None gives None
    return resolved


def _window(match: re.Match[str]) -> tuple[int, int]:
    """Sinks and recent tokens that a name gives; PoD's own where it gives none."""
    return (int(match["n_sink"]), int(match["n_recent"])) if match["n_sink"] else (16, 4080)


def read_plans(model: Model, texts: Sequence[str] | None) -> dict[str, Plan]:
    """The plans by the names that tables and pictures give them; the file's own is `plan`, where none is asked for.

    Raises:
        PlanError: one cannot be read, or does not fit.
    """
    if not texts:
        return {} if model.plan is None else {"plan": model.plan}
    short = [Path(text).stem if text.endswith(".json") else text for text in texts]
    names = [name if short.count(name) == 1 else text for name, text in zip(short, texts, strict=True)]
    return {name: read_plan(model, text) for name, text in zip(names, texts, strict=True)}
