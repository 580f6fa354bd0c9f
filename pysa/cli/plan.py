"""`pysa plan`: from options to pysa.planning.planner, to a file or a refusal. plan_table.py makes the lines."""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from pysa.cli.console import Console
from pysa.cli.errors import EXIT_FAILURE, UsageError
from pysa.cli.plan_table import curve_json, outcome_lines, refusal
from pysa.errors import ArgumentError
from pysa.model import Model
from pysa.planning.budget import Budget
from pysa.planning.pictures import check_picture, plan_picture, save_picture, similarity_picture
from pysa.planning.planner import Outcome, Planner
from pysa.planning.settings import Settings
from pysa.planning.texts import read_corpus


class Status:
    """What is being done: lines on stderr, and on a terminal a bar of the time used."""

    def __init__(self, console: Console, limit_s: float) -> None:
        from tqdm import tqdm  # noqa: PLC0415  only here, and pysa starts quickly

        self._console = console
        self._start = time.monotonic()
        self._limit_s = limit_s
        layout = "{desc} {bar} {percentage:3.0f} % of the time"
        self._bar = tqdm(total=1.0, bar_format=layout, file=console.err, disable=None, leave=False)

    def __enter__(self) -> Status:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def say(self, line: str) -> None:
        """One line."""
        self._bar.clear()
        seconds = int(time.monotonic() - self._start)
        self._console.note([f"{seconds // 60:4}:{seconds % 60:02}  {line}"])
        self._bar.refresh()

    def progress(self, what: str, share: float | None) -> None:
        """What is being done, and the share of the time that is used where that is known."""
        self._bar.set_description_str(what, refresh=False)
        self._bar.n = self._bar.n if share is None else share
        self._bar.refresh()


def settings_of(options: argparse.Namespace) -> Settings:
    """The options as the planner takes them.

    Raises:
        UsageError: an option that another strategy has.
    """
    owners = {
        "share_only": ("search",),
        "threshold": ("pod", "sa"),
        "layers": ("sa",),
        "n_layers": ("sa",),
        "save": ("search", "pod"),
    }
    for name, strategies in owners.items():
        if getattr(options, name) and options.strategy not in strategies:
            option = "--" + name.replace("_", "-")
            raise UsageError(f"{option}: expected --strategy {' or '.join(strategies)}, got {options.strategy}")
    if options.save is not None and options.threshold is not None:
        raise UsageError("--threshold: not with --save, which finds the threshold: expected one of them, got both")
    budget = Budget(
        math.inf if options.max_kl is None else options.max_kl, options.max_ppl_increase, options.max_recall_drop
    )
    return Settings(
        options.strategy,
        options.sinks,
        options.recent,
        options.samples,
        options.tokens,
        options.queries,
        options.save,
        options.at,
        options.threshold,
        options.layers,
        options.n_layers,
        options.only_layers,
        options.keep_layers,
        options.only_heads,
        options.keep_heads,
        options.share_only,
        budget,
        60.0 * options.time,
        int(options.memory * 2**30),
    )


def check_outputs(options: argparse.Namespace) -> Path:
    """The plan's path, if everything can be written, so that nobody measures for nothing.

    Raises:
        ArgumentError: a file exists and there is no --force, or there is no such folder.
    """
    output = Path(options.output)
    if output.exists() and not options.force:
        raise ArgumentError(f"{output}: exists: expected a new file; --force replaces it")
    if not output.parent.is_dir():
        raise ArgumentError(f"{output}: no such folder: expected {output.parent} to be there; make it first")
    for png in (options.png, options.similarity_png):
        if png:
            check_picture(png, options.force)
    return output


def run(options: argparse.Namespace, console: Console) -> int:
    """Finds, judges, writes; the exit status: 1 where the plan is over its budget and was not written."""
    settings, output = settings_of(options), check_outputs(options)
    state = Path(options.state) if options.state else output.with_name(f"{output.name}.state")
    calibration = Path(options.calibration) if options.calibration else None
    # Trials, which choose a plan, are computed by the CPU alone.
    model = Model(options.model, n_threads=options.threads, device="cpu")
    with Status(console, settings.time_s) as status, model:
        corpus = read_corpus(model, options.text)
        planner = Planner(model, corpus, settings, state, status.say, status.progress)
        try:
            attention = planner.calibration(calibration) if calibration or options.similarity_png else None
            outcome = planner.find(calibration)
        except KeyboardInterrupt:
            status.say(f"{state} has what was measured: the same command goes on from there")
            raise
    is_written = not outcome.faults or options.force
    if is_written:
        outcome.plan.save(output, force=options.force)
    if options.png:
        save_picture(plan_picture(outcome.plan), options.png, options.force)
    if attention is not None and options.similarity_png:
        figure = similarity_picture(attention.similarity, attention.n_layer, attention.n_head)
        save_picture(figure, options.similarity_png, options.force)
    return _report(options, console, outcome, output if is_written else None, state)


def _report(options: argparse.Namespace, console: Console, outcome: Outcome, written: Path | None, state: Path) -> int:
    if options.json:
        console.json(_to_json(outcome, written))
    else:
        console.lines(outcome_lines(outcome, written, console))
    if written is None:
        console.note([f"pysa: error: {refusal(outcome, Path(options.output), state)}"])
        return EXIT_FAILURE
    return 0


def _to_json(outcome: Outcome, written: Path | None) -> dict[str, Any]:
    return {
        "written": None if written is None else str(written),
        "faults": outcome.faults,
        "reason": outcome.reason,
        "saving": outcome.saving,
        "saving_at": outcome.at,
        "measured": outcome.plan.calibration,
        "curve": curve_json(outcome.path),
        "plan": outcome.plan.to_json(),
    }
