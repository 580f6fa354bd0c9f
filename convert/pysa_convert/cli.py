"""The `pysa-convert` command: options to `pipeline.Options`, a report to text. Nothing is computed here."""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from pysa.errors import PysaError
from pysa_convert import plans
from pysa_convert.keys import FILE_TYPES
from pysa_convert.pipeline import Options, run
from pysa_convert.quantize_worker import TYPES

EPILOG = """examples:
  pysa-convert path/to/checkpoint                              f16, dense
  pysa-convert path/to/checkpoint --plan plan.json --outtype q8_0 -o model.gguf
  pysa-convert org/name --share sa --layers 23-26,27-30        layers 23 to 30 follow layer 22
  pysa-convert model.gguf --share pod --block 4 -o pod.gguf    every byte kept, a plan added
  pysa-convert pod.gguf --strip -o model.gguf                  and removed again
"""


class Parser(argparse.ArgumentParser):
    """Usage errors in one line, exit status 2."""

    def error(self, message: str) -> NoReturn:
        """Prints the line and exits."""
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def build_parser() -> argparse.ArgumentParser:
    """Every option, once."""
    parser = Parser(
        prog="pysa-convert",
        description="Converts a Hugging Face checkpoint or a GGUF to a GGUF with a sharing plan.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="a checkpoint's folder, a hub id like organisation/name, or a .gguf file")
    add("-o", "--output", metavar="OUT.gguf", type=Path, help="default: NAME-OUTTYPE.gguf in the current folder")
    add("--outtype", choices=[*FILE_TYPES, *TYPES], metavar="TYPE", type=str.lower,
        help=f"default f16, or a GGUF as it is: {' '.join([*FILE_TYPES, *TYPES])}")  # fmt: skip
    sharing = parser.add_argument_group("sharing plan")
    add = sharing.add_argument
    add("--share", choices=plans.METHODS, help="none (default), sa, pod, or streaming: every head local, the baseline")
    add("--layers", metavar="A-B,C-D", help="followers, from 0; each span follows the layer before it")
    add("--plan", metavar="plan.json", type=Path, help="a measured plan")
    add("--block", metavar="N", type=int, help="pod: uniform blocks of N layers; nothing is measured")
    add("--sinks", metavar="N", type=int, help=f"first tokens that every head scores itself (default {plans.N_SINK})")
    add("--recent", metavar="N", type=int, help=f"last tokens likewise (default {plans.N_RECENT})")
    add("--distant", choices=("scores", "keys"), help="pod: what followers take from their source (default scores)")
    add(
        "--skip-gate", metavar="G", type=float, help="skip distant tokens where the window holds this share of the mass"
    )
    add("--prune", action="store_true", help="sa: drop unused q and k weights; stock llama.cpp then refuses the file")
    add("--strip", action="store_true", help="remove the plan of a GGUF")
    other = parser.add_argument_group("other")
    add = other.add_argument
    add("--pre", metavar="NAME", help="libllama's pre-tokenizer, in place of the one found")
    add("--threads", metavar="N", type=int, default=0, help="threads of the quantiser (default: all cores)")
    add("--force", action="store_true", help="replace an existing output")
    add("--dry-run", action="store_true", help="read and check everything, write nothing")
    add("--json", action="store_true", help="the report as JSON")
    add("--quiet", action="store_true", help="no progress bar, no report")
    add("--verbose", action="store_true", help="a traceback for errors")
    return parser


def options_of(given: argparse.Namespace) -> Options:
    """The options of one conversion; UsageError for values that do not parse."""
    if given.threads < 0:
        raise plans.UsageError(f"--threads: expected 0 or more, got {given.threads}")
    sharing = plans.PlanOptions(
        share=given.share,
        plan=given.plan,
        layers=None if given.layers is None else plans.parse_layers(given.layers),
        block=given.block,
        sinks=given.sinks,
        recent=given.recent,
        distant=given.distant,
        skip_gate=given.skip_gate,
    )
    return Options(
        model=given.model,
        output=given.output,
        outtype=given.outtype,
        sharing=sharing,
        prune=given.prune,
        strip=given.strip,
        force=given.force,
        dry_run=given.dry_run,
        pre=given.pre,
        n_threads=given.threads,
        quiet=given.quiet or given.json,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0, 1 for a failure or 2 for a usage error."""
    given = build_parser().parse_args(arguments)
    return guarded(
        "pysa-convert",
        lambda: convert(given),
        verbose=given.verbose,
        interrupted=lambda: "interrupted, nothing was written",
    )


def convert(given: argparse.Namespace) -> None:
    """Converts and reports."""
    report = run(options_of(given))
    if given.json:
        print_lines(json.dumps(report.to_json(), ensure_ascii=False, indent=2))
    elif not given.quiet:
        print_lines("\n".join(report.lines()))


def guarded(prog: str, work: Callable[[], None], *, verbose: bool, interrupted: Callable[[], str]) -> int:
    """Runs a command; a failure is one line on stderr, with `verbose` after a traceback.

    Returns:
        0, 1 for a failure, 2 for a usage error, 130 for Ctrl-C, which prints what `interrupted` says.
    """
    try:
        work()
    except (PysaError, OSError, MemoryError) as error:
        if verbose:
            traceback.print_exc()
        print(f"{prog}: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        return 2 if isinstance(error, plans.UsageError) else 1
    except KeyboardInterrupt:
        print(f"{prog}: {interrupted()}", file=sys.stderr)
        return 130
    return 0


def print_lines(text: str) -> None:
    """Prints; a reader that closed the pipe early is no failure."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
