"""Measures what plans cost: holds the texts in memory, runs plans over them, remembers every result."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pysa.plan import Plan
from pysa.planning.strategies.cost import Baseline, Cost, Sample, SampleCost
from pysa.planning.strategies.state import CostStore, plan_digest

if TYPE_CHECKING:
    from pysa.planning.trial import Trial


class Bench:
    """One sample with its trial and the dense answers."""

    def __init__(self, sample: Sample, trial: Trial, dense: Plan) -> None:
        self.sample, self.trial = sample, trial
        start = time.perf_counter()
        trial.run(dense, keep=True)
        self.baseline = Baseline(sample, self.dense_logits())
        self.dense_s = time.perf_counter() - start
        self.kept = plan_digest(dense)

    def dense_logits(self) -> npt.NDArray[np.float32]:
        """Of the last run, which is the dense one here."""
        return self.trial.logits(self.sample.positions)

    def measure(self, plan: Plan, base: Plan | None) -> SampleCost:
        """Runs the plan from where it leaves `base`, which is kept from now on."""
        start = time.perf_counter()
        if base is not None and plan_digest(base) != self.kept:
            self.trial.run(base, keep=True)
            self.kept = plan_digest(base)
        self.trial.run(plan)
        cost = self.baseline.compare(self.trial.logits(self.sample.positions))
        return replace(cost, seconds=time.perf_counter() - start)


class Meter:
    """Costs of plans over samples; a context manager.

    `seconds` counts what the measurements asked for took when they were made, also those that a stored search had
    already: decisions that depend on time are the same when it is resumed.

    Args:
        samples: in the order in which they are added where more certainty is wanted.
        open_trial: makes the trial of a sample's tokens; called when a sample is first measured.
        dense: the plan of owners only, with the window that the plans have.
        store: what was measured before.
        progress: is told each measurement as it is made.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        open_trial: Callable[[npt.NDArray[np.int32]], Trial],
        dense: Plan,
        store: CostStore,
        progress: Callable[[], None] = lambda: None,
    ) -> None:
        self.samples = list(samples)
        self.dense = dense
        self.seconds = 0.0
        self.n_measured = 0
        self.n_featured = len(self.samples)  # samples whose features costs have
        self._store, self._open, self._progress = store, open_trial, progress
        self._benches: dict[int, Bench] = {}
        self._counted: set[tuple[str, int]] = set()
        self._stack = ExitStack()

    def __enter__(self) -> Meter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Lets the trials go."""
        self._stack.close()
        self._benches.clear()

    def bench(self, i: int) -> Bench:
        """Sample i, evaluated dense."""
        if i not in self._benches:
            trial = self._open(self.samples[i].tokens)
            self._stack.callback(trial.close)
            self._benches[i] = Bench(self.samples[i], trial, self.dense)
        return self._benches[i]

    def measure(self, plan: Plan, base: Plan | None = None, n_samples: int | None = None) -> Cost:
        """What a plan costs.

        Args:
            plan: any plan.
            base: a plan that it and the next ones differ little from, in late layers at best.
            n_samples: of the first so many samples; None: of all.
        """
        n = len(self.samples) if n_samples is None else n_samples
        return Cost.of([self._one(plan, base, i) for i in range(n)], self.n_featured)

    def dense_seconds(self, i: int = 0) -> float:
        """What evaluating sample i as a whole takes."""
        key = (plan_digest(self.dense), i)
        cost = self._store.get(key)
        if cost is None:
            bench = self.bench(i)
            cost = replace(bench.baseline.compare(bench.dense_logits()), seconds=bench.dense_s)
            self._store.put(key, cost)
        return cost.seconds

    def use_first(self, n_samples: int) -> None:
        """Leaves the later samples out."""
        self.samples = self.samples[:n_samples]
        self.n_featured = n_samples

    def _one(self, plan: Plan, base: Plan | None, i: int) -> SampleCost:
        key = (plan_digest(plan), i)
        cost = self._store.get(key)
        if cost is None:
            cost = self.bench(i).measure(plan, base)
            self._store.put(key, cost)
            self.n_measured += 1
            self._progress()
        if key not in self._counted:
            self._counted.add(key)
            self.seconds += cost.seconds
        return cost
