"""The gate: measures a finished plan on text that it was not chosen by, and says whether it keeps to its budget."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pysa.errors import StateFileError
from pysa.model import Model
from pysa.plan import CalibrationValue, Plan
from pysa.planning.budget import Budget
from pysa.planning.compare import compare
from pysa.planning.needle import needle
from pysa.planning.recall import N_PER_DOCUMENT, recall
from pysa.planning.scoring import Advance, Engine, nothing
from pysa.planning.strategies.state import plan_digest
from pysa.planning.tasks import Tasks
from pysa.planning.texts import Corpus, leading_tokens, samples

SEED = 4  # of the documents; the search's are others
DENSE, SHARED = "dense", "plan"
TEXT_SHARE, RECALL_SHARE = 0.4, 0.35  # of the evaluations; the rest is needles
ENOUGH = 0.7  # of what is wanted, for an earlier verdict to do


@dataclass(frozen=True)
class Sizes:
    """How much is measured: texts, recall documents of six questions, and needles."""

    n_samples: int
    n_documents: int
    n_needles: int

    @classmethod
    def of(cls, n_evaluations: float, n_samples: int) -> Sizes:
        """What about so many evaluations of one text, dense and shared together, are best spent on.

        Args:
            n_evaluations: as time allows; few are done in any case.
            n_samples: how many the held-out text has.
        """
        pairs = n_evaluations / 2
        needles = int(np.clip((1.0 - TEXT_SHARE - RECALL_SHARE) * pairs, 3, 20))
        return cls(
            min(int(np.clip(TEXT_SHARE * pairs, 2, 12)), n_samples),
            int(np.clip(RECALL_SHARE * pairs, 3, 16)),
            needles // 5 * 5 or needles,
        )

    @property
    def n_evaluations(self) -> int:
        """Texts evaluated for one plan, the dense model's included."""
        return 2 * (self.n_samples + self.n_documents + self.n_needles)


@dataclass(frozen=True)
class Verdict:
    """The figures of one plan, as Plan.calibration keeps them, and the counts behind the shares."""

    n_tokens: int
    ppl_dense: float
    ppl_shared: float
    ppl_increase: float
    ppl_error: float
    kl: float
    same_top1: float
    n_recall: int
    n_recall_dense: int
    n_recall_shared: int
    n_needle: int
    n_needle_dense: int
    n_needle_shared: int

    @property
    def recall_dense(self) -> float:
        """Share of recall questions that the dense model answers."""
        return self.n_recall_dense / self.n_recall

    @property
    def recall_shared(self) -> float:
        """Share of recall questions answered with the plan."""
        return self.n_recall_shared / self.n_recall

    def faults(self, budget: Budget) -> list[str]:
        """What is over the budget: what was measured and what was allowed."""
        found = []
        if self.ppl_increase > budget.max_ppl_increase:
            found.append(f"perplexity {self.ppl_increase:+.2%}, allowed {budget.max_ppl_increase:+.2%}")
        if self.kl > budget.max_kl:
            found.append(f"KL divergence {self.kl:.4f}, allowed {budget.max_kl:g}")
        for name, n, dense, shared in (
            ("recall", self.n_recall, self.n_recall_dense, self.n_recall_shared),
            ("needle", self.n_needle, self.n_needle_dense, self.n_needle_shared),
        ):
            if dense - shared > budget.n_lost(n):
                found.append(f"{name} {shared} of {n} against {dense} dense, allowed {budget.n_lost(n)} less")
        return found

    def calibration(self, corpus_sha256: str, saving: float, saving_at: int) -> dict[str, CalibrationValue]:
        """As a plan keeps it (`pysa.calibration.*`)."""
        return {
            "corpus_sha256": corpus_sha256,
            "tokens": self.n_tokens,
            "perplexity_dense": self.ppl_dense,
            "perplexity_shared": self.ppl_shared,
            "perplexity_increase": self.ppl_increase,
            "kl_divergence": self.kl,
            "same_top1": self.same_top1,
            "recall_dense": self.recall_dense,
            "recall_shared": self.recall_shared,
            "needle_dense": self.n_needle_dense / self.n_needle,
            "needle_shared": self.n_needle_shared / self.n_needle,
            "saving": saving,
            "saving_at": saving_at,
        }


class Gate:
    """Judges plans of one model on one held-out text; what was judged once is remembered in a file.

    Args:
        held: text that plans were not chosen by.
        n_tokens: length of every text measured.
        sizes: how much is measured.
        path: where verdicts are kept; None: nowhere.
    """

    def __init__(self, model: Model, held: Corpus, n_tokens: int, sizes: Sizes, path: Path | None = None) -> None:
        self._model, self._held, self._n_tokens, self._sizes = model, held, n_tokens, sizes
        self._tasks = Tasks(model, held.tokens)
        self._path = path
        self._known = _read(path)

    def judge(self, plan: Plan, advance: Advance = nothing) -> Verdict:
        """Measures a plan, or remembers what was measured.

        Raises:
            PlanError: the plan does not fit the model.
        """
        key, wanted = plan_digest(plan), self._sizes.n_evaluations
        if key not in self._known or self._known[key]["n_evaluations"] < ENOUGH * wanted:
            self._known[key] = {"n_evaluations": wanted, "verdict": asdict(self._measure(plan, advance))}
            if self._path is not None:
                _write(self._path, self._known)
        return Verdict(**self._known[key]["verdict"])

    def _measure(self, plan: Plan, advance: Advance) -> Verdict:
        model, n, sizes = self._model, self._n_tokens, self._sizes
        engine = Engine()
        text = compare(model, samples(model, self._held, sizes.n_samples, n), plan, engine=engine, advance=advance)
        asked = recall(
            model,
            self._tasks,
            [n],
            {SHARED: plan},
            n_questions=sizes.n_documents * N_PER_DOCUMENT,
            seed=SEED,
            engine=engine,
            advance=advance,
        )
        n_depths = min(5, sizes.n_needles)
        depths = np.linspace(0.0, 1.0, n_depths + 1)[:-1].tolist()  # the last would stand within the window
        found = needle(
            model,
            self._tasks,
            [n],
            depths,
            {SHARED: plan},
            repeats=sizes.n_needles // n_depths,
            seed=SEED,
            engine=engine,
            advance=advance,
        )
        shares = [measured.share(side) for measured in (asked, found) for side in (DENSE, SHARED)]
        return Verdict(
            text.n_tokens,
            text.ppl_dense,
            text.ppl_shared,
            text.ppl_increase,
            text.ppl_ratio_error,
            text.kl,
            text.same_top1,
            *(shares[0].n_asked, shares[0].n_right, shares[1].n_right),
            *(shares[2].n_asked, shares[2].n_right, shares[3].n_right),
        )


def n_samples_in(model: Model, corpus: Corpus, n_tokens: int) -> int:
    """Samples of this length that a corpus has, not overlapping."""
    return len(corpus.tokens) // (n_tokens - len(leading_tokens(model)))


def _read(path: Path | None) -> dict[str, Any]:
    if path is None or not path.exists():
        return {}
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        for entry in known.values():
            Verdict(**entry["verdict"])
            int(entry["n_evaluations"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise StateFileError(f"{path}: damaged: expected the verdicts of a gate: {error}; remove it") from error
    return dict(known)


def _write(path: Path, known: Mapping[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    temporary.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)
