"""`pysa perplexity`, `compare`, `recall` and `needle`: from options to what pysa.planning measures, to a report.

Nothing is drawn here: measure_table.py makes lines of it, pysa.planning.measure_pictures a figure.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from pysa.cli import measure_table
from pysa.cli.console import Console
from pysa.cli.measure_options import MAX_CTX, read_plan, read_plans
from pysa.cli.options import open_model
from pysa.errors import ArgumentError
from pysa.model import Model
from pysa.plan import Plan
from pysa.planning import measure_pictures
from pysa.planning import needle as needles
from pysa.planning import recall as recalls
from pysa.planning.compare import compare_plans
from pysa.planning.perplexity import chunks, perplexity
from pysa.planning.pictures import check_picture, save_picture
from pysa.planning.retrieval import DENSE
from pysa.planning.scoring import Advance, Engine, n_evaluated
from pysa.planning.tasks import Tasks
from pysa.planning.texts import Corpus, read_corpus

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass
class Facts:
    """What ran, for the head of a report."""

    model: Model
    options: argparse.Namespace
    corpus: Corpus | None
    n_ctx: int  # at which savings are stated, in tokens
    plans: Mapping[str, Plan]
    engine: Engine = field(init=False)

    def __post_init__(self) -> None:
        o = self.options
        self.engine = Engine(o.type_k, o.type_v, o.ubatch, o.attention, o.v_skip, o.kv_offload)

    def to_json(self) -> dict[str, Any]:
        """As one JSON object."""
        model, corpus = self.model, self.corpus
        text = None
        if corpus is not None:
            text = {"files": list(corpus.paths), "sha256": corpus.sha256, "n_tokens": len(corpus.tokens)}
        return {
            "model": {
                "file": model.path,
                "architecture": model.arch,
                "n_layer": model.n_layer,
                "device": model.device,
                "n_gpu_layers": model.n_gpu_layers,
            },
            "text": text,
            "engine": {**asdict(self.engine), "n_threads": model.n_threads},
            "plans": {name: self._plan(plan) for name, plan in self.plans.items()},
        }

    def _plan(self, plan: Plan) -> dict[str, Any]:
        saving = self.engine.saving(self.model, self.n_ctx, plan)
        window = {"n_sink": plan.n_sink, "n_recent": plan.n_recent}
        return {"method": plan.method, **window, "saving": saving, "saving_at": self.n_ctx}


@dataclass
class Report:
    """What a command found: beside the facts, as JSON, as lines of a width, and as a picture."""

    facts: Facts
    found: dict[str, Any]
    lines: Callable[[int], list[str]]
    picture: Callable[[], Figure]


Progress = Callable[[int], Any]  # total tokens -> a context manager that gives an Advance


def run(options: argparse.Namespace, console: Console) -> int:
    """Measures, prints, and writes the picture; the exit status."""
    if options.png:
        check_picture(options.png, options.force)
    with open_model(options, _n_ctx_of_all(options)) as model:
        report = COMMANDS[options.command](model, options, lambda total: _bar(console, total))
        facts = report.facts.to_json()
        if options.json:
            console.json({**facts, **report.found})
        else:
            console.lines([*measure_table.facts_lines(facts), "", *report.lines(console.width)])
    if options.png:
        save_picture(report.picture(), options.png, options.force)
    return 0


def _n_ctx_of_all(options: argparse.Namespace) -> int:
    """Tokens of all sessions that are open at once, at most: one for each plan, and the dense one's."""
    longest = options.ctx_size if isinstance(options.ctx_size, int) else max(options.ctx_size or [MAX_CTX])
    n_plans = len(options.plan) if isinstance(options.plan, list) else 1
    return longest if options.command == "perplexity" else longest * (1 + n_plans)


@contextmanager
def _bar(console: Console, total: int) -> Iterator[Advance]:
    """A bar on stderr where that is a terminal."""
    from tqdm import tqdm  # noqa: PLC0415  only here, and pysa starts quickly

    layout = "{percentage:3.0f} % {bar} {n_fmt}/{total_fmt} tokens, {remaining} left"
    with tqdm(total=total, bar_format=layout, file=console.err, disable=None, leave=False) as bar:
        yield bar.update


def run_perplexity(model: Model, options: argparse.Namespace, progress: Progress) -> Report:
    """Perplexity on a text, under one plan."""
    plans = read_plans(model, [options.plan] if options.plan else None)
    name, plan = next(iter(plans.items()), (DENSE, read_plan(model, DENSE)))
    corpus = read_corpus(model, options.text)
    samples = chunks(model, corpus, options.ctx_size, options.chunks)
    facts = Facts(model, options, corpus, options.ctx_size, {name: plan})
    with progress(n_evaluated(samples, 1)) as advance:
        found = perplexity(model, samples, plan, engine=facts.engine, advance=advance)
    return Report(
        facts,
        {"perplexity": asdict(found)},
        lambda width: measure_table.perplexity_lines(found, width),
        lambda: measure_pictures.perplexity_picture(found, name),
    )


def run_compare(model: Model, options: argparse.Namespace, progress: Progress) -> Report:
    """Plans against the dense model on a text."""
    plans = read_plans(model, options.plan)
    if not plans:
        raise ArgumentError(f"{model.path}: has no plan: expected one to compare with dense; give --plan PLAN")
    corpus = read_corpus(model, options.text)
    n_ctx = options.ctx_size or min(model.n_ctx_train, MAX_CTX)
    samples = chunks(model, corpus, n_ctx, options.chunks)
    facts = Facts(model, options, corpus, n_ctx, plans)
    with progress(n_evaluated(samples, 1 + len(plans))) as advance:
        found = compare_plans(model, samples, plans, engine=facts.engine, advance=advance)
    return Report(
        facts,
        {"compare": {name: {**asdict(one), "ppl_increase": one.ppl_increase} for name, one in found.items()}},
        lambda width: measure_table.compare_lines(found, width),
        lambda: measure_pictures.compare_picture(found),
    )


def run_recall(model: Model, options: argparse.Namespace, progress: Progress) -> Report:
    """Key-value recall, dense beside the plans."""
    facts, tasks, lengths = _task_facts(model, options)
    with progress(recalls.n_evaluated(lengths, options.questions, len(facts.plans))) as advance:
        found = recalls.recall(
            model,
            tasks,
            lengths,
            facts.plans,
            n_questions=options.questions,
            seed=options.seed,
            engine=facts.engine,
            advance=advance,
        )
    return Report(
        facts,
        {"seed": options.seed, "recall": measure_table.recall_json(found)},
        lambda width: measure_table.recall_lines(found, width),
        lambda: measure_pictures.recall_picture(found),
    )


def run_needle(model: Model, options: argparse.Namespace, progress: Progress) -> Report:
    """One fact in a haystack, dense beside the plans."""
    facts, tasks, lengths = _task_facts(model, options)
    with progress(needles.n_evaluated(lengths, options.depths, options.repeats, len(facts.plans))) as advance:
        found = needles.needle(
            model,
            tasks,
            lengths,
            options.depths,
            facts.plans,
            repeats=options.repeats,
            seed=options.seed,
            engine=facts.engine,
            advance=advance,
        )
    return Report(
        facts,
        {"seed": options.seed, "needle": measure_table.needle_json(found)},
        lambda width: measure_table.needle_lines(found, width),
        lambda: measure_pictures.needle_picture(found),
    )


def _task_facts(model: Model, options: argparse.Namespace) -> tuple[Facts, Tasks, Sequence[int]]:
    plans = read_plans(model, options.plan)
    plans.pop(DENSE, None)  # it is measured anyway
    corpus = read_corpus(model, options.text) if options.text else None
    n_ctx = min(model.n_ctx_train, MAX_CTX)
    lengths = options.ctx_size or sorted({max(1, n_ctx // 4), max(1, n_ctx // 2), n_ctx})
    tasks = Tasks(model, None if corpus is None else corpus.tokens, options.fact, options.question)
    return Facts(model, options, corpus, max(lengths), plans), tasks, lengths


COMMANDS: dict[str, Callable[[Model, argparse.Namespace, Progress], Report]] = {
    "perplexity": run_perplexity,
    "compare": run_compare,
    "recall": run_recall,
    "needle": run_needle,
}
