"""Figures of a scheduler."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Counts:
    """What has happened so far.

    Attributes:
        n_finished: requests that ended by themselves.
        n_cancelled: requests that were given up.
        n_failed: requests that an error ended.
        n_prompt_tokens: of prompts that were begun.
        n_reused_tokens: of which were held, and kept.
        n_reevaluated_tokens: of which were held, but forgotten by the window.
        n_generated_tokens: picked.
        n_steps: of the batch.
        n_step_tokens: evaluated in them.
        busy_s: seconds spent on all that.
    """

    n_finished: int = 0
    n_cancelled: int = 0
    n_failed: int = 0
    n_prompt_tokens: int = 0
    n_reused_tokens: int = 0
    n_reevaluated_tokens: int = 0
    n_generated_tokens: int = 0
    n_steps: int = 0
    n_step_tokens: int = 0
    busy_s: float = 0.0


@dataclass
class Stats(Counts):
    """What a scheduler has done, and does now.

    Attributes:
        n_lanes: sessions.
        n_busy: of which serve a request.
        n_queued: requests that wait.
        cache_bytes: of all lanes with their checkpoints; at most a second old.
    """

    n_lanes: int = 0
    n_busy: int = 0
    n_queued: int = 0
    cache_bytes: int = 0
