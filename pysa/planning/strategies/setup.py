"""Sets a search up on a model: texts, trials, what was measured before, whom heads may follow."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pysa.model import Model
from pysa.plan import Plan
from pysa.planning.state import fingerprint, load_arrays, save_arrays
from pysa.planning.strategies.cost import Sample
from pysa.planning.strategies.ground import Ground
from pysa.planning.strategies.groups import Saving, Shape
from pysa.planning.strategies.limits import Limits
from pysa.planning.strategies.matching import Matcher
from pysa.planning.strategies.meter import Meter
from pysa.planning.strategies.proxy import OutputTable, output_table
from pysa.planning.strategies.samples import n_queries, proxy_rows, search_samples
from pysa.planning.strategies.state import CostStore
from pysa.planning.strategies.steps import Goal
from pysa.planning.tasks import Tasks
from pysa.planning.texts import Corpus
from pysa.planning.trial import Trial

KIND, VERSION = "pysa matching", 2
SEED = 3
MEASUREMENT_SHARE = 0.03  # of the time that measuring one whole plan may take


@dataclass(frozen=True)
class Texts:
    """What a search measures on: so many documents of the corpus, with a window that is shorter than they are."""

    corpus: Corpus
    n_samples: int
    n_tokens: int
    n_sink: int
    n_recent: int


def open_meter(
    model: Model,
    texts: Texts,
    time_s: float,
    memory_bytes: int,
    state: Path | None,
    stack: ExitStack,
    progress: Callable[[], None],
) -> Meter:
    """A meter with as many samples as time and memory allow, one at least; `stack` closes it.

    Raises:
        StateFileError: `state` belongs to another model, text or window.
        DeviceError: not enough memory for one sample.
    """
    n_window = texts.n_sink + texts.n_recent
    tasks = Tasks(model, texts.corpus.tokens)
    samples = search_samples(tasks, texts.n_samples, texts.n_tokens, n_window, model.n_vocab, SEED)
    dense = Plan.dense(model.n_layer, model.n_head)
    dense.n_sink, dense.n_recent = texts.n_sink, texts.n_recent
    settings = {**identity(model, texts.corpus, texts.n_tokens), "n_sink": texts.n_sink, "n_recent": texts.n_recent}
    n_kept = max(n_queries(sample) for sample in samples)
    meter = Meter(
        samples,
        lambda tokens: Trial(model, tokens, n_queries=n_kept),
        dense,
        CostStore(state, settings),
        progress,
    )
    stack.enter_context(meter)
    by_time = int(MEASUREMENT_SHARE * time_s / max(meter.dense_seconds(0), 1e-9))
    by_memory = memory_bytes // sample_bytes(model, samples[0])
    meter.use_first(max(1, min(len(samples), by_time, by_memory)))
    return meter


def identity(model: Model, corpus: Corpus, n_tokens: int) -> dict[str, Any]:
    """What measurements belong to, whatever the window."""
    return {"model": fingerprint(model.path), "corpus_sha256": corpus.sha256, "n_tokens": n_tokens}


def sample_bytes(model: Model, sample: Sample) -> int:
    """Memory that a sample takes: its trial (a dense cache, twice, and every layer's input) and the dense answers."""
    n = len(sample.tokens)
    dense = Plan.dense(model.n_layer, model.n_head)
    layers = 4 * model.n_layer * n * model.n_embd
    return 2 * model.cache_bytes(n, dense)["total"] + layers + 4 * model.n_vocab * len(sample.positions)


def matcher_of(model: Model, meter: Meter, texts: Texts, state: Path | None) -> Matcher:
    """Whom heads had best follow, from the meter's samples; remembered in `state`."""
    shape = Shape.of(model)
    path = state / f"matching-{len(meter.samples)}.npz" if state is not None else None
    layers = range(shape.n_layer)
    names = [f"{name}_{il}" for il in layers for name in ("errors", "biases")]
    if path is not None and path.exists():
        arrays = load_arrays(path, KIND, VERSION, {"local": "f", **dict.fromkeys(names, "f")})
        errors, biases = ([arrays[f"{name}_{il}"] for il in layers] for name in ("errors", "biases"))
        return Matcher(shape, texts.n_sink, texts.n_recent, errors, arrays["local"], biases)
    tables = []
    for i, sample in enumerate(meter.samples):
        trial = meter.bench(i).trial
        rows, is_recall = proxy_rows(sample)
        rows = rows + trial.n_queries - n_queries(sample)
        tables.append(output_table(trial, shape, texts.n_sink, texts.n_recent, rows, is_recall))
    matcher = Matcher.of(OutputTable.join(tables), texts.n_sink, texts.n_recent)
    if path is not None:
        arrays = {"local": matcher.local}
        for il in layers:
            arrays |= {f"errors_{il}": matcher.errors[il], f"biases_{il}": matcher.biases[il]}
        save_arrays(path, KIND, VERSION, arrays)
    return matcher


def make_ground(
    meter: Meter,
    matcher: Matcher,
    saving: Saving,
    limits: Limits,
    goal: Goal,
    time_s: float,
    say: Callable[[str], None],
) -> Ground:
    """What a search stands on; says what it measures on, and if the model recalls too little for that to mean much."""
    recalled = meter.measure(meter.dense).recalled
    n_text = sum(len(sample.text) for sample in meter.samples)
    n_asked = sum(len(sample.answers) for sample in meter.samples)
    say(f"{len(meter.samples)} documents: {n_text:,} text positions, {n_asked} recall questions")
    if recalled < 0.5:
        say(
            f"the dense model answers {recalled:.0%} of the recall questions: what plans cost there is what changes "
            "in its wrong answers"
        )
    return Ground(meter, matcher, saving, limits, goal, time_s, say)
