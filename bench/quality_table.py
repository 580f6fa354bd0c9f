"""What saving costs: plans on one model, and adapted models beside a control, in one table and picture.

    python bench/quality_table.py M.gguf --text HELD_OUT... --plans NAME=plan.json... \
        --control control.gguf --adapted NAME=adapted.gguf... --json quality.json --png quality.png

Plans are compared with the dense model M.gguf; adapted files run their own plan and are compared with the dense control
that was trained on the same tokens. Recall and needles are at the model's full context, with the text as filler.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from pysa import Model, Plan
from pysa.planning.compare import compare_plans
from pysa.planning.needle import needle
from pysa.planning.pictures import Point, quality_picture, save_picture
from pysa.planning.recall import recall
from pysa.planning.scoring import Engine, Estimate, losses, nothing, scored_rows
from pysa.planning.tasks import Tasks
from pysa.planning.texts import Ids, read_corpus, samples

DEPTHS = (0.05, 0.25, 0.45, 0.65, 0.85)  # beyond the window of 256 at 2,048 tokens and more


@dataclass(frozen=True)
class Row:
    """One line of the table; shares and ratios as numbers, NaN where nothing is compared."""

    name: str
    saving: float
    perplexity: float
    increase: float
    increase_error: float
    kl: float
    same_top1: float
    recall: float
    needle: float

    def line(self) -> str:
        """As a row of markdown."""
        if self.increase != self.increase:
            compared = "| | | "
        else:
            kl = "| | " if self.kl != self.kl else f"| {self.kl:.4f} | {self.same_top1:.1%} "
            compared = f"| {self.increase:+.2%} (± {self.increase_error:.2%}) {kl}"
        return (
            f"| {self.name} | {self.saving:.1%} | {self.perplexity:.3f} {compared}"
            f"| {self.recall:.1%} | {self.needle:.1%} |"
        )


@dataclass(frozen=True)
class Exam:
    """What every model is asked."""

    texts: list[str]
    n_ctx: int
    n_samples: int
    n_questions: int
    repeats: int

    def of(self, model: Model) -> tuple[list[Ids], Tasks]:
        """The samples and tasks in a model's tokens."""
        corpus = read_corpus(model, self.texts)
        return samples(model, corpus, self.n_samples, self.n_ctx), Tasks(model, corpus.tokens)

    def retrieval(self, model: Model, tasks: Tasks, plans: dict[str, Plan]) -> dict[str, tuple[float, float]]:
        """Recall and needles of `dense` and of each plan."""
        asked = recall(model, tasks, [self.n_ctx], plans, n_questions=self.n_questions)
        found = needle(model, tasks, [self.n_ctx], DEPTHS, plans, repeats=self.repeats)
        return {side: (asked.share(side).value, found.share(side).value) for side in asked.sides}


def plan_rows(model: Model, exam: Exam, plans: dict[str, Plan]) -> list[Row]:
    """The dense model, then the plans on it."""
    texts, tasks = exam.of(model)
    compared = compare_plans(model, texts, plans)
    scores = exam.retrieval(model, tasks, plans)
    nan = float("nan")
    dense = next(iter(compared.values())).ppl_dense
    rows = [Row("dense", 0.0, dense, nan, nan, nan, nan, *scores["dense"])]
    for name, c in compared.items():
        rows.append(
            Row(name, c.saving, c.ppl_shared, c.ppl_ratio - 1, c.ppl_ratio_error, c.kl, c.same_top1, *scores[name])
        )
    return rows


def paired(control: Model, model: Model, plan: Plan, texts: list[Ids]) -> tuple[float, float, Estimate]:
    """Perplexity of the dense control and of a model under its plan, and their ratio from paired predictions."""
    engine, n_ctx = Engine(), max(len(tokens) for tokens in texts)
    ours, theirs = [], []
    with (
        engine.session(control, n_ctx, Plan.dense(control.n_layer, control.n_head)) as dense,
        engine.session(model, n_ctx, plan) as shared,
    ):
        for tokens in texts:
            for part, rows in scored_rows([dense, shared], tokens, nothing):
                for to, one in zip((theirs, ours), rows, strict=True):
                    to.append(losses(one, tokens, part))
    reference, nll = np.concatenate(theirs), np.concatenate(ours)
    return *(Estimate.of(x).exp().value for x in (reference, nll)), Estimate.of(nll - reference).exp()


def adapted_rows(control: Model, exam: Exam, adapted: dict[str, str]) -> list[Row]:
    """The dense control, then the adapted files under their own plans."""
    texts, tasks = exam.of(control)
    nan = float("nan")
    scores = exam.retrieval(control, tasks, {})["dense"]
    rows = []
    for name, path in adapted.items():
        with Model(path, n_threads=control.n_threads) as model:
            plan = model.plan
            if plan is None:
                raise SystemExit(f"--adapted: {path}: expected a file with a plan, got none; see pysa-convert --plan")
            reference, own, ratio = paired(control, model, plan, texts)
            if not rows:
                rows.append(Row("dense control", 0.0, reference, nan, nan, nan, nan, *scores))
            saving = Engine().saving(model, exam.n_ctx, plan)
            answered = exam.retrieval(model, tasks, {"own": plan})["own"]
            rows.append(Row(name, saving, own, ratio.value - 1, ratio.error, nan, nan, *answered))
    return rows


def named(text: str) -> tuple[str, str]:
    """`NAME=PATH`."""
    name, _, path = text.partition("=")
    if not path:
        raise argparse.ArgumentTypeError(f"expected NAME=FILE, got {text!r}")
    return name, path


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--text", nargs="+", required=True, help="files that no plan was searched on")
    parser.add_argument("--plans", nargs="*", type=named, default=[], metavar="NAME=plan.json")
    parser.add_argument("--control", metavar="FILE.gguf")
    parser.add_argument("--adapted", nargs="*", type=named, default=[], metavar="NAME=FILE.gguf")
    parser.add_argument("--windows", type=int, default=20, help="stretches of text (20)")
    parser.add_argument("--questions", type=int, default=300, help="of recall (300)")
    parser.add_argument("--repeats", type=int, default=20, help="needles at each of five depths (20)")
    parser.add_argument("--threads", type=int, default=0, help="of the engine (0: the physical cores)")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--png", type=Path)
    args = parser.parse_args()
    if bool(args.control) != bool(args.adapted):
        parser.error("--control and --adapted go together")
    return args


def main() -> None:
    """Measures and prints."""
    args = parsed()
    with Model(args.model, n_threads=args.threads) as model:
        exam = Exam(args.text, model.n_ctx_train, args.windows, args.questions, args.repeats)
        rows = plan_rows(model, exam, {name: Plan.load(path) for name, path in args.plans})
    adapted = []
    if args.control:
        with Model(args.control, n_threads=args.threads) as control:
            adapted = adapted_rows(control, exam, dict(args.adapted))
    print("| | cache saved | perplexity | change | KL, nats | same first choice | recall | needle |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for row in rows + adapted:
        print(row.line())
    if args.json:
        args.json.write_text(
            json.dumps({"plans": [asdict(r) for r in rows], "adapted": [asdict(r) for r in adapted]}, indent=1)
        )
    if args.png:
        points = [Point(r.name, r.saving, r.increase, r.recall, r.increase_error) for r in rows + adapted if r.saving]
        save_picture(quality_picture(points), args.png, force=True)


if __name__ == "__main__":
    main()
