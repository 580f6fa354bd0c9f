"""Figures of a server in Prometheus' text form."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

import pysa
from pysa.scheduler import Stats

BUCKETS_S = (0.05, 0.2, 1.0, 5.0, 20.0, 60.0, 300.0)
COUNTERS = {
    "n_prompt_tokens": ("prompt_tokens", "Tokens of prompts."),
    "n_reused_tokens": ("prompt_tokens_reused", "Tokens of prompts that a cache held."),
    "n_reevaluated_tokens": ("prompt_tokens_reevaluated", "Tokens of prompts that a window had forgotten."),
    "n_generated_tokens": ("generated_tokens", "Tokens generated."),
    "n_steps": ("steps", "Steps of the batch."),
    "n_step_tokens": ("step_tokens", "Tokens evaluated in steps of the batch."),
    "busy_s": ("busy_seconds", "Time spent on requests."),
}
GAUGES = {
    "n_lanes": ("lanes", "Requests that can be served at once."),
    "n_busy": ("lanes_busy", "Requests that are being served."),
    "n_queued": ("queue_length", "Requests that wait."),
    "cache_bytes": ("cache_bytes", "Bytes of all KV caches and their checkpoints."),
}
OUTCOMES = {"n_finished": "finished", "n_cancelled": "cancelled", "n_failed": "failed"}


class Metrics:
    """Counts requests; the rest is the scheduler's.

    Args:
        paths: of the routes; requests for others are counted together.
        model: its name.
    """

    def __init__(self, paths: tuple[str, ...], model: str) -> None:
        self._paths, self._model = paths, model
        self._requests: Counter[tuple[str, int]] = Counter()
        self._buckets: Counter[tuple[str, float]] = Counter()
        self._seconds: dict[str, float] = {}

    def request(self, path: str, status: int, seconds: float) -> None:
        """Counts one request."""
        path = path if path in self._paths else "other"
        self._requests[path, status] += 1
        self._seconds[path] = self._seconds.get(path, 0.0) + seconds
        self._buckets[path, next((bound for bound in BUCKETS_S if seconds <= bound), math.inf)] += 1

    def retry_after_s(self, stats: Stats) -> int:
        """When the queue is likely to have moved on: an answer's mean time over the lanes, 1..30 s."""
        n_answers = stats.n_finished + stats.n_cancelled + stats.n_failed
        seconds = stats.busy_s / n_answers if n_answers else 1.0
        return min(30, max(1, math.ceil(seconds)))

    def text(self, stats: Stats) -> str:
        """Everything, as a scraper reads it."""
        return "\n".join(self._lines(stats)) + "\n"

    def _lines(self, stats: Stats) -> Iterator[str]:
        yield from _head("info", "gauge", "The version and the model.")
        yield f'pysa_info{{version="{_escaped(pysa.__version__)}",model="{_escaped(self._model)}"}} 1'
        yield from _head("requests_total", "counter", "HTTP requests.")
        for (path, status), n in sorted(self._requests.items()):
            yield f'pysa_requests_total{{path="{path}",status="{status}"}} {n}'
        yield from _head("request_seconds", "histogram", "Time from a request to the end of its answer.")
        for path in sorted(self._seconds):
            n = 0
            for bound in (*BUCKETS_S, math.inf):
                n += self._buckets[path, bound]
                name = "+Inf" if bound == math.inf else f"{bound:g}"
                yield f'pysa_request_seconds_bucket{{path="{path}",le="{name}"}} {n}'
            yield f'pysa_request_seconds_sum{{path="{path}"}} {self._seconds[path]:.6f}'
            yield f'pysa_request_seconds_count{{path="{path}"}} {n}'
        yield from _head("answers_total", "counter", "Answers of the model; a request may ask for several.")
        for field, outcome in OUTCOMES.items():
            yield f'pysa_answers_total{{outcome="{outcome}"}} {getattr(stats, field)}'
        for field, (name, meaning) in COUNTERS.items():
            yield from _head(f"{name}_total", "counter", meaning)
            yield f"pysa_{name}_total {getattr(stats, field):.12g}"
        for field, (name, meaning) in GAUGES.items():
            yield from _head(name, "gauge", meaning)
            yield f"pysa_{name} {getattr(stats, field)}"


def _head(name: str, kind: str, meaning: str) -> tuple[str, str]:
    return f"# HELP pysa_{name} {meaning}", f"# TYPE pysa_{name} {kind}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
