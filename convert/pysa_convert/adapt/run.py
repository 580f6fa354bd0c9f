"""The way of an adaptation on one screen: checkpoint, plan and data -> two models -> steps -> a checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from pysa.errors import ConvertError, DeviceError
from pysa.plan import Plan
from pysa_convert.adapt.data import Encoder, Rows, read_rows
from pysa_convert.adapt.models import Learner, Teacher, find_place
from pysa_convert.adapt.output import check_output, write_output
from pysa_convert.adapt.settings import AdaptError, Settings
from pysa_convert.adapt.summary import Summary
from pysa_convert.adapt.trainer import Trainer
from pysa_convert.adapt.unfinished import Unfinished
from pysa_convert.architectures.base import Dims, map_tensors, read_dims
from pysa_convert.faults import Faults
from pysa_convert.keys import model_keys
from pysa_convert.pipeline import find_row
from pysa_convert.sources import hub
from pysa_convert.sources.checkpoint import Checkpoint

N_CTX_LEAST = 2048
N_EVAL_TOKENS = 65536  # held-out tokens that an evaluation reads at most


@dataclass(frozen=True)
class Result:
    """What became of a run."""

    output: Path
    n_steps: int
    n_tokens: int
    time_s: float
    last: dict[str, float] | None
    evaluation: dict[str, float] | None


def run(settings: Settings, tell: Callable[[str], None] = lambda _: None) -> Result:
    """Adapts; `tell` gets the lines that say what is about to be done.

    Raises:
        PysaError: nothing was written but the unfinished run.
        KeyboardInterrupt: likewise; the state after the last whole step is saved.
    """
    settings.check()
    checkpoint = open_checkpoint(settings)
    dims = check_checkpoint(checkpoint)
    check_output(settings.output, settings.force, 0)
    plan = read_plan(settings, dims)
    n_ctx = choose_n_ctx(settings, plan, dims)
    settings = replace(settings, n_ctx=n_ctx)
    encoder = Encoder(lambda: _load_tokenizer(checkpoint.folder), dims.n_vocab)
    rows = read_rows(settings.data, n_ctx, encoder)
    held_out = _first_rows(read_rows(settings.eval_data, n_ctx, encoder)) if settings.eval_data else None

    unfinished = Unfinished(settings)
    identity = {**settings.deciding(), "plan": None if plan is None else plan.to_json(), "data_sha256": rows.sha256}
    state = unfinished.find(identity)
    place = find_place(settings)
    try:
        learner = Learner(checkpoint, None if settings.control else plan, settings, place)
        teacher = Teacher(checkpoint, learner, place) if settings.kl_weight else None
        trainer = Trainer(settings, learner, teacher, rows, place)
        if state is None:
            unfinished.begin(identity)
        else:
            trainer.restore(state)
            unfinished.go_on(trainer.step)
        for line in Summary(settings, checkpoint, dims, plan, rows, trainer).lines():
            tell(line)
        train(trainer, unfinished, held_out, settings)
    except torch.OutOfMemoryError as error:
        raise DeviceError(f"{place.device}: {_no_memory(error)}") from error
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        raise DeviceError(f"{place.device}: {_no_memory(error)}") from error
    last, evaluation = unfinished.last_records()
    weights = learner.merged()
    record = {
        "settings": settings.to_json(),
        "data": {"sha256": rows.sha256, "n_rows": len(rows), "n_tokens": rows.n_tokens},
        "trained": {"steps": trainer.step, "tokens": trainer.n_tokens, "seconds": round(trainer.time_s, 1)},
        "last": last,
        "evaluation": evaluation,
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }
    shared = None if settings.control else plan
    write_output(settings.output, settings.force, checkpoint, weights, shared, record, unfinished.log_path)
    unfinished.remove()
    return Result(settings.output, trainer.step, trainer.n_tokens, trainer.time_s, last, evaluation)


def train(trainer: Trainer, unfinished: Unfinished, held_out: Rows | None, settings: Settings) -> None:
    """Steps until the run is done; the log has the figures, the unfinished run the state."""
    bar = tqdm(
        total=trainer.n_steps, initial=trainer.step, unit="step", disable=True if settings.quiet else None, leave=False
    )
    saved = time.monotonic()
    try:
        with bar:
            if trainer.step == 0 and held_out is not None:
                unfinished.log(trainer.evaluate(held_out))
            while not trainer.is_done:
                record = trainer.advance(unfinished.log)
                bar.update()
                bar.set_postfix({name: f"{record[name]:.4f}" for name in ("loss", "kl", "ce")})
                is_due = trainer.is_done or trainer.step % settings.eval_every == 0
                if held_out is not None and is_due:
                    unfinished.log(trainer.evaluate(held_out))
                if time.monotonic() - saved > 60.0 * settings.save_minutes:
                    unfinished.save(trainer.state())
                    saved = time.monotonic()
    except BaseException:
        # Ctrl-C or a failure: the steps so far are kept, a step in progress is not
        if trainer.step:
            unfinished.save(trainer.state())
        else:
            unfinished.remove()
        raise
    unfinished.save(trainer.state())


def open_checkpoint(settings: Settings) -> Checkpoint:
    """The folder, or the hub's copy of it."""
    path = Path(settings.checkpoint)
    if path.is_dir():
        return Checkpoint(path)
    if path.exists() or not hub.is_hub_id(settings.checkpoint):
        raise ConvertError(f"{path}: expected a checkpoint's folder or a hub id like organisation/name")
    return Checkpoint(hub.fetch(settings.checkpoint, settings.quiet))


def check_checkpoint(checkpoint: Checkpoint) -> Dims:
    """The dimensions; refuses, with all faults at once, what pysa-convert would refuse afterwards."""
    row = find_row(checkpoint)
    faults = Faults(str(checkpoint.folder))
    dims = read_dims(checkpoint.config, faults)
    model_keys(row, dims, checkpoint.config, faults)
    map_tensors(row, dims, checkpoint.config, checkpoint.tensors, faults)
    faults.raise_if_any()
    return dims


def read_plan(settings: Settings, dims: Dims) -> Plan | None:
    """The plan, checked against the model."""
    if settings.plan is None:
        return None
    plan = Plan.load(settings.plan)
    plan.validate(dims.n_head_kv, dims.n_layer, dims.n_head)
    if not plan.enabled and not settings.control:
        raise AdaptError(f"{settings.plan}: enabled: expected true, got false: the plan runs dense; pass --control")
    return plan


def choose_n_ctx(settings: Settings, plan: Plan | None, dims: Dims) -> int:
    """Tokens of a row: as given, or twice the window, at least 2048, at most the model's own length."""
    n_window = 0 if plan is None else plan.n_sink + plan.n_recent
    n_ctx = settings.n_ctx or min(dims.n_ctx, max(N_CTX_LEAST, 2 * n_window))
    if n_ctx > dims.n_ctx:
        raise AdaptError(f"--context: expected at most the model's {dims.n_ctx} tokens, got {n_ctx}")
    if n_ctx <= n_window and not settings.control:
        raise AdaptError(f"--context: expected more than the plan's window of {n_window} tokens, got {n_ctx}")
    return n_ctx


def _first_rows(rows: Rows) -> Rows:
    n = max(1, N_EVAL_TOKENS // rows.tokens.shape[1])
    return Rows(rows.tokens[:n], rows.n_used[:n], rows.n_documents)


def _load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer  # noqa: PLC0415

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (ValueError, OSError, ImportError) as error:
        raise AdaptError(f"{folder}: its tokenizer cannot be loaded: {str(error).splitlines()[0]}") from error


def _no_memory(error: BaseException) -> str:
    advice = "lower --micro-batch or --context, or pass --checkpointing or --lora"
    return f"out of memory: {str(error).splitlines()[0][:200]}; {advice}"
