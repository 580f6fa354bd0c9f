"""How alike the heads of a model attend: what the strategies choose from.

Each sample is evaluated densely, and the last tokens' attention is summed up by native/src/planning/attention_stats.h.
Texts are cut into samples by texts.py; plans are made of the result in strategies/.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pysa import _native
from pysa._arguments import PathLike, check_int, check_path, check_text, check_tokens
from pysa.errors import ArgumentError, StateFileError
from pysa.model import INT32_MAX, Model
from pysa.plan import Plan
from pysa.planning.state import fingerprint, load_arrays, save_arrays
from pysa.planning.trial import Trial

FloatArray = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int32]

KIND, STATE_KIND, VERSION = "pysa calibration", "pysa unfinished calibration", 1
WEIGHTS_BYTES = 256 << 20  # of one sample's attention held at once
_COUNTS = ("n_sink", "n_recent", "n_samples", "n_queries", "n_tokens")
_ARRAYS = ("similarity", "layer_cosine", "mass")
_SUMS = {"n_queries": "i", "n_distant": "i", "similarity": "f", "layer_dots": "f", "mass": "f"}


@dataclass(eq=False)
class Calibration:
    """What was measured about a model's attention, as means over the last queries of some samples.

    D(t) below is the distance of a query at position t: the positions n_sink <= j <= t - n_recent.

    Attributes:
        n_sink: leading tokens of the window.
        n_recent: last tokens of the window, the query's own included.
        n_samples: texts evaluated.
        n_queries: of each sample's last tokens, whose attention was looked at.
        n_tokens: of one sample.
        corpus_sha256: of the text that the samples are from; "" if it was not given.
        similarity: (n_layer * n_head, n_layer * n_head) 0..1, symmetric; head h of layer il is il * n_head + h.
            1 - Jensen-Shannon divergence, in bits, of two heads' softmax over D(t) alone. Source: PoD (arXiv
            2412.02252), which finds its blocks by it.
        layer_cosine: (n_layer, n_layer) 0..1, symmetric: cosine of two layers' attention weights over all positions,
            each layer one vector over (sample, query, head, position). SA (arXiv 2407.12866) finds its spans by the
            cosine of layers; heads are compared with those of equal number, not averaged first, since a follower takes
            the weights of the head of its own number: of layers that are alike only in the mean, nothing can be shared.
        mass: (n_layer, n_head, 3): share of the softmax on sinks (j < n_sink), on the recent tokens, and on D(t).
    """

    n_sink: int
    n_recent: int
    n_samples: int
    n_queries: int
    n_tokens: int
    corpus_sha256: str
    similarity: FloatArray
    layer_cosine: FloatArray
    mass: FloatArray

    @property
    def n_layer(self) -> int:
        """Layers of the model."""
        return int(self.mass.shape[0])

    @property
    def n_head(self) -> int:
        """Query heads of a layer."""
        return int(self.mass.shape[1])

    def save(self, path: PathLike) -> None:
        """Writes an .npz, whatever the name; an existing file is replaced.

        Raises:
            StateFileError: it cannot be written.
        """
        names = (*_COUNTS, "corpus_sha256", *_ARRAYS)
        save_arrays(check_path("path", path), KIND, VERSION, {name: np.array(getattr(self, name)) for name in names})

    @classmethod
    def load(cls, path: PathLike) -> Calibration:
        """Reads a file of save().

        Raises:
            StateFileError: it cannot be read, is damaged, or is no calibration.
        """
        where = check_path("path", path)
        kinds = dict.fromkeys(_COUNTS, "i") | {"corpus_sha256": "U"} | dict.fromkeys(_ARRAYS, "f")
        arrays = load_arrays(where, KIND, VERSION, kinds)
        n_layer, n_head, n_part = arrays["mass"].shape if arrays["mass"].ndim == 3 else (0, 0, 0)
        n_heads = n_layer * n_head
        shapes = {"mass": (n_layer, n_head, 3), "similarity": (n_heads, n_heads), "layer_cosine": (n_layer, n_layer)}
        shapes |= dict.fromkeys((*_COUNTS, "corpus_sha256"), ())
        for name, shape in shapes.items():
            if arrays[name].shape != shape or n_part != 3:
                raise StateFileError(f"{where}: {name}: wrong shape: expected {shape}, got {arrays[name].shape}")
        fields: dict[str, Any] = {name: int(arrays[name]) for name in _COUNTS}
        fields |= {name: arrays[name].astype(np.float32) for name in _ARRAYS}
        return cls(**fields, corpus_sha256=str(arrays["corpus_sha256"]))


def calibrate(
    model: Model,
    samples: Sequence[Ids],
    n_sink: int,
    n_recent: int,
    n_queries: int = 16,
    *,
    state: PathLike | None = None,
    corpus_sha256: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> Calibration:
    """Measures how alike the heads of a model attend, on some texts.

    The result depends on the arguments alone, not on the number of threads. Memory: a Trial of one sample and at most
    256 MiB of attention weights, or those of a single query where they are more.

    Args:
        model: any model with a dense mode.
        samples: token ids, each (n_tokens,), of one length that leaves a distance beyond the window.
        n_sink: leading tokens of the window.
        n_recent: last tokens of the window.
        n_queries: of each sample's last tokens, whose attention is looked at; 1..n_tokens.
        state: a file for what is known after each sample: a later call with the same model, samples and settings goes
            on from there. It is left behind at the end.
        corpus_sha256: whose text the samples are from; kept in the result.
        progress: called with (samples done, samples), first for those found in `state`.

    Raises:
        ArgumentError: an argument out of range, or samples of several lengths or too short.
        StateFileError: `state` is damaged, or of another model, other samples or other settings.
        DeviceError: not enough memory.
    """
    check_int("n_sink", n_sink, 0, INT32_MAX)
    check_int("n_recent", n_recent, 0, INT32_MAX)
    texts = _checked_samples(model, samples, n_sink + n_recent)
    check_int("n_queries", n_queries, 1, len(texts[0]))
    settings = {
        "n_sink": n_sink,
        "n_recent": n_recent,
        "n_queries": n_queries,
        "n_tokens": len(texts[0]),
        "n_samples": len(texts),
        "corpus_sha256": check_text("corpus_sha256", corpus_sha256),
    }
    shape = (model.n_layer, model.n_head, model.n_head_kv)
    stats = _native.AttentionStats(*shape, n_sink, n_recent, model.n_threads)
    unfinished = None
    if state is not None:
        digest = hashlib.sha256(b"".join(text.astype("<i4").tobytes() for text in texts)).hexdigest()
        identity = {**settings, "samples": digest, "model": fingerprint(model.path), "shape": list(shape)}
        unfinished = _Unfinished(Path(check_path("state", state)), identity)
    n_done = unfinished.resume(stats) if unfinished else 0
    report = progress or (lambda _done, _all: None)
    report(n_done, len(texts))
    for i in range(n_done, len(texts)):
        _add_sample(stats, model, texts[i], n_queries)
        if unfinished:
            unfinished.keep(stats, i + 1)
        report(i + 1, len(texts))
    return _result(stats.sums(), settings)


def _checked_samples(model: Model, samples: Sequence[Ids], n_window: int) -> list[Ids]:
    texts = [check_tokens(tokens, model.n_vocab, name=f"samples[{i}]") for i, tokens in enumerate(samples)]
    if not texts:
        raise ArgumentError("samples: none: expected at least one, got an empty list")
    n_tokens = len(texts[0])
    for i, text in enumerate(texts):
        if len(text) != n_tokens:
            raise ArgumentError(
                f"samples[{i}]: wrong length: expected {n_tokens} tokens as samples[0] has, got {len(text)}"
            )
    if n_tokens <= n_window:
        raise ArgumentError(
            f"samples: too short: expected more than the window's {n_window} tokens (n_sink + n_recent), got "
            f"{n_tokens}; take longer samples or a smaller window"
        )
    return texts


def _add_sample(stats: _native.AttentionStats, model: Model, tokens: Ids, n_queries: int) -> None:
    n_tokens, n_heads = len(tokens), model.n_layer * model.n_head
    n_at_once = max(1, WEIGHTS_BYTES // (n_tokens * n_heads * np.dtype(np.float32).itemsize))
    with Trial(model, tokens, n_queries=n_queries) as trial:
        trial.run(Plan.dense(model.n_layer, model.n_head))
        for begin in range(0, n_queries, n_at_once):
            end = min(begin + n_at_once, n_queries)
            n_seen = n_tokens - n_queries + end  # these queries are the last ones of so many tokens
            stats.begin_sample(n_seen, end - begin)
            for il in range(model.n_layer):
                stats.add_layer(trial.queries(il)[begin:end], trial.keys(il)[:, :n_seen], trial.kq_scale)
            stats.end_sample()


def _result(sums: dict[str, Any], settings: dict[str, Any]) -> Calibration:
    similarity, dots = (np.triu(sums[name]) + np.triu(sums[name], 1).T for name in ("similarity", "layer_dots"))
    norms = np.sqrt(np.diag(dots))
    return Calibration(
        **settings,
        similarity=(similarity / sums["n_distant"]).astype(np.float32),
        layer_cosine=(dots / np.outer(norms, norms)).astype(np.float32),
        mass=(sums["mass"] / sums["n_queries"]).astype(np.float32),
    )


class _Unfinished:
    """The file from which an interrupted calibration goes on."""

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self.path, self.identity = path, identity

    def resume(self, stats: _native.AttentionStats) -> int:
        """Takes the sums up, if there is a file; returns the samples in them."""
        if not self.path.exists():
            return 0
        arrays = load_arrays(self.path, STATE_KIND, VERSION, {"identity": "U", "n_done": "i", **_SUMS})
        try:
            found = json.loads(str(arrays.pop("identity")))
            n_done = int(arrays.pop("n_done"))
            differing = [name for name, value in self.identity.items() if found[name] != value]
            if not differing:
                sums: dict[str, Any] = {name: array if array.ndim else int(array) for name, array in arrays.items()}
                stats.set_sums(**sums)
        except (ArgumentError, ValueError, TypeError, KeyError) as error:
            raise StateFileError(f"{self.path}: damaged: {error}; remove it") from error
        if differing:
            faults = "; ".join(f"{name}: expected {self.identity[name]}, got {found[name]}" for name in differing)
            raise StateFileError(f"{self.path}: of another calibration: {faults}; remove it or name another file")
        if not 0 <= n_done <= self.identity["n_samples"]:
            raise StateFileError(f"{self.path}: damaged: n_done: expected at most the samples, got {n_done}; remove it")
        return n_done

    def keep(self, stats: _native.AttentionStats, n_done: int) -> None:
        """Writes the sums after n_done samples."""
        arrays = {"identity": np.array(json.dumps(self.identity)), "n_done": np.array(n_done)}
        sums = {name: np.asarray(value) for name, value in stats.sums().items()}
        save_arrays(self.path, STATE_KIND, VERSION, {**arrays, **sums})
