"""From a model and texts to a judged plan: cuts the text, runs a strategy, holds what comes out to the budget.

The strategies are in strategies/, the gate in gate.py; `pysa plan` (pysa/cli/plan.py) is this with options and lines of
text.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from pysa.errors import ArgumentError
from pysa.model import Model
from pysa.plan import Plan
from pysa.planning.budget import Budget
from pysa.planning.calibration import Calibration, calibrate
from pysa.planning.gate import Gate, Sizes, Verdict, n_samples_in
from pysa.planning.holdout import split
from pysa.planning.settings import Settings, default_recent, resolved
from pysa.planning.strategies.groups import Shape, saving_at
from pysa.planning.strategies.limits import Limits, parse_spans
from pysa.planning.strategies.pod import LEAST_SIMILARITY, pod_for_saving, pod_plan
from pysa.planning.strategies.sa import LEAST_COSINE, sa_plan, spans_by_count, spans_by_threshold
from pysa.planning.strategies.search import search
from pysa.planning.strategies.setup import Texts, identity, make_ground, matcher_of, open_meter
from pysa.planning.strategies.state import check_settings
from pysa.planning.strategies.steps import Goal, Step
from pysa.planning.strategies.streaming import streaming_plan
from pysa.planning.texts import Corpus, samples

GATE_SHARE = 0.2  # of the time
N_BACK = 2  # plans before the last one that the gate looks at
MARGIN = 0.9  # of the budget, that a plan to step back to should keep to


@dataclass
class Outcome:
    """A judged plan.

    Attributes:
        plan: with what was measured in its `calibration`.
        verdict: the gate's figures.
        faults: what is over the budget; empty: the plan keeps to it.
        saving, at: share of the dense cache's bytes saved at so many tokens.
        reason: how the strategy came to this plan.
        path: the plans of a search, each saving more than the one before.
    """

    plan: Plan
    verdict: Verdict
    faults: list[str]
    saving: float
    at: int
    reason: str
    path: Sequence[Step] = ()


class Planner:
    """Finds one plan.

    Args:
        model: any model with a dense mode.
        corpus: the user's text; a quarter of it is kept for judging.
        settings: what is asked.
        state: a folder for what has been measured; None: nothing outlives the process.
        say: is told what is done and decided, a line each.
        progress: is told what is being done, and the share of the allowed time that is used, where that is known.

    Raises:
        ArgumentError: settings that do not go together, or too short a text.
    """

    def __init__(
        self,
        model: Model,
        corpus: Corpus,
        settings: Settings,
        state: Path | None = None,
        say: Callable[[str], None] = lambda line: None,
        progress: Callable[[str, float | None], None] = lambda what, share: None,
    ) -> None:
        self.model, self._state, self._say, self._progress = model, state, say, progress
        self.settings, self.n_tokens, self.n_recent, self.at = resolved(settings, model)
        self.shape, self.saving = Shape.of(model), saving_at(model, self.at)
        s = self.settings
        self.limits = Limits.of(self.shape, s.only_layers, s.keep_layers, s.only_heads, s.keep_heads)
        self._chosen, self._held = split(corpus, self.n_tokens)
        self.n_samples = min(s.n_samples, n_samples_in(model, self._chosen, self.n_tokens))
        self._calibration: Calibration | None = None
        if state is not None:
            check_settings(state, identity(model, corpus, self.n_tokens))

    # ---- calibration

    def calibration(self, path: Path | None = None) -> Calibration:
        """Attention statistics of the model, from `path` (None: one in the state) if it is there, else kept there."""
        if self._calibration is None:
            # SA has no window; its cosine does not depend on one.
            n_recent = self.n_recent or default_recent(self.n_tokens, 0)
            name = f"calibration-{self.settings.n_sink}-{n_recent}-{self.settings.n_queries}-{self.n_samples}"
            if path is None and self._state is not None:
                path = self._state / f"{name}.npz"
            found = Calibration.load(path) if path is not None and path.exists() else None
            self._calibration = self._calibrate(n_recent, name) if found is None else self._checked(found, path)
            if found is None and path is not None:
                self._calibration.save(path)
        return self._calibration

    def _calibrate(self, n_recent: int, name: str) -> Calibration:
        n_sink = self.settings.n_sink
        self._say(f"calibrating: {self.n_samples} samples of {self.n_tokens:,} tokens, window {n_sink} + {n_recent}")
        return calibrate(
            self.model,
            samples(self.model, self._chosen, self.n_samples, self.n_tokens),
            n_sink,
            n_recent,
            self.settings.n_queries,
            state=None if self._state is None else self._state / f"{name}.part.npz",
            corpus_sha256=self._chosen.sha256,
            progress=lambda done, of: self._progress(f"calibrating: sample {done} of {of}", None),
        )

    def _checked(self, found: Calibration, path: Path | None) -> Calibration:
        if (found.n_layer, found.n_head) != (self.shape.n_layer, self.shape.n_head):
            raise ArgumentError(
                f"{path}: of another model: expected {self.shape.n_layer} layers of {self.shape.n_head} heads, got "
                f"{found.n_layer} of {found.n_head}"
            )
        if self.n_recent and (found.n_sink, found.n_recent) != (self.settings.n_sink, self.n_recent):
            raise ArgumentError(
                f"{path}: of another window: expected {self.settings.n_sink} + {self.n_recent}, got {found.n_sink} + "
                f"{found.n_recent}; name another file, or give that window with --sinks and --recent"
            )
        return found

    # ---- strategies

    def find(self, calibration_path: Path | None = None) -> Outcome:
        """Runs the strategy and the gate."""
        strategy = self.settings.strategy
        if strategy == "search":
            return self._searched()
        if strategy == "pod":
            plan, reason = self._pod(self.calibration(calibration_path))
        elif strategy == "sa":
            plan, reason = self._sa(calibration_path)
        else:
            plan, reason = streaming_plan(self.limits, self.settings.n_sink, self.n_recent), "every head local"
        self._say(f"{strategy}: {reason}; saves {self.saving(plan):.1%} at {self.at:,} tokens")
        return self._outcome(plan, reason, self._gate(self._evaluation_s()))

    def _pod(self, found: Calibration) -> tuple[Plan, str]:
        s = self.settings
        if s.save is not None and s.threshold is None:
            plan, threshold = pod_for_saving(
                found.similarity, self.limits, s.n_sink, self.n_recent, self.saving, s.save
            )
            return plan, f"threshold {threshold:.4f}, the highest that saves {s.save:.1%}"
        threshold = LEAST_SIMILARITY if s.threshold is None else s.threshold
        plan = pod_plan(found.similarity, self.limits, s.n_sink, self.n_recent, threshold)
        return plan, f"threshold {threshold:g}"

    def _sa(self, calibration_path: Path | None) -> tuple[Plan, str]:
        s = self.settings
        if s.layers:
            spans, reason = parse_spans(s.layers, self.shape.n_layer, "--layers"), f"layers {s.layers} as given"
        elif s.n_follow is not None:
            cosine = self.calibration(calibration_path).layer_cosine
            spans, threshold = spans_by_count(cosine, self.limits, s.n_follow)
            reason = f"cosine {threshold:.4f}, the highest at which {s.n_follow} layers follow"
        else:
            threshold = LEAST_COSINE if s.threshold is None else s.threshold
            spans = spans_by_threshold(self.calibration(calibration_path).layer_cosine, self.limits, threshold)
            reason = f"cosine at least {threshold:g}"
        return sa_plan(self.shape, spans, s.n_sink, self.n_recent), reason

    def _searched(self) -> Outcome:
        s = self.settings
        texts = Texts(self._chosen, s.n_samples, self.n_tokens, s.n_sink, self.n_recent)
        search_s = (1.0 - GATE_SHARE) * s.time_s
        with ExitStack() as stack:
            window = None if self._state is None else self._state / f"window-{s.n_sink}-{self.n_recent}"
            meter = open_meter(
                self.model,
                texts,
                search_s,
                s.memory_bytes,
                window,
                stack,
                lambda: self._tell(meter.n_measured, search_s, meter.seconds),
            )
            matcher = matcher_of(self.model, meter, texts, window)
            goal = Goal(s.save, s.budget, s.share_only)
            found = search(make_ground(meter, matcher, self.saving, self.limits, goal, search_s, self._say))
            evaluation_s = meter.dense_seconds(0)
        gate = self._gate(evaluation_s)
        outcome = self._outcome(found.step.plan, found.reason, gate)
        # What fits on the search's text may not fit on other text: a smaller saving will do if none was asked for.
        step, n_left = found.step, N_BACK if s.save is None else 0
        while outcome.faults and n_left and (before := _before(found.path, step, outcome.verdict, s.budget)):
            step, n_left = before, n_left - 1
            self._say(f"over the budget on held-out text ({'; '.join(outcome.faults)}): back to {step.saving:.1%}")
            outcome = self._outcome(step.plan, f"{found.reason}; stepped back for held-out text", gate)
        outcome.path = found.path
        return outcome

    def _tell(self, n_measured: int, search_s: float, seconds: float) -> None:
        self._progress(f"measured {n_measured} times", min(seconds / search_s, 1.0))

    # ---- the gate

    def _evaluation_s(self) -> float:
        """Seconds that evaluating one text takes; where no search has measured it."""
        tokens = samples(self.model, self._chosen, 1, self.n_tokens)[0]
        with self.model.session(self.n_tokens, plan="dense") as session:
            start = time.perf_counter()
            session.eval(tokens, logits="none")
            return time.perf_counter() - start

    def _gate(self, evaluation_s: float) -> Gate:
        sizes = Sizes.of(
            GATE_SHARE * self.settings.time_s / max(evaluation_s, 1e-9),
            n_samples_in(self.model, self._held, self.n_tokens),
        )
        path = None if self._state is None else self._state / "verdicts.json"
        return Gate(self.model, self._held, self.n_tokens, sizes, path)

    def _outcome(self, plan: Plan, reason: str, gate: Gate) -> Outcome:
        self._progress("judging on held-out text", None)
        verdict = gate.judge(plan)
        saving = self.saving(plan)
        plan.calibration = verdict.calibration(self._held.sha256, saving, self.at)
        return Outcome(plan, verdict, verdict.faults(self.settings.budget), saving, self.at, reason)


def _before(path: Sequence[Step], step: Step, verdict: Verdict, budget: Budget) -> Step | None:
    """The plan on the path that saves most and costs so much less that the budget should be kept; or the first one."""
    earlier = [one for one in path if one.saving < step.saving]
    over = max(verdict.ppl_increase / max(budget.max_ppl_increase, 1e-9), verdict.kl / max(budget.max_kl, 1e-9))
    share = MARGIN / over if over > 1.0 else 1.0
    kept = [one for one in earlier if one.cost.total <= share * step.cost.total]
    return kept[-1] if kept else next(iter(earlier), None)
