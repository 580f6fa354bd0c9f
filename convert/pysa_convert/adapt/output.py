"""The finished checkpoint: the original's files with the trained weights, the plan and the record of the run."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from pysa.plan import Plan
from pysa_convert.adapt.models import TORCH_DTYPES
from pysa_convert.adapt.settings import AdaptError
from pysa_convert.sources import hub
from pysa_convert.sources.checkpoint import Checkpoint
from pysa_convert.writer import check_free

COPIED = [name for name in hub.FILES if not name.endswith(".safetensors")] + ["vocab.json", "merges.txt"]


def check_output(path: Path, force: bool, n_bytes: int) -> None:
    """Raises AdaptError or ConvertError if the folder cannot become the output."""
    if path.exists() and not path.is_dir():
        raise AdaptError(f"{path}: expected a folder's name, got a file")
    if path.exists() and not force:
        raise AdaptError(f"{path}: exists; pass --force to replace it")
    if not path.absolute().parent.is_dir():
        raise AdaptError(f"{path}: its folder does not exist")
    check_free(path.absolute().parent, n_bytes)


def write_output(
    path: Path,
    force: bool,
    checkpoint: Checkpoint,
    weights: Mapping[str, Tensor],
    plan: Plan | None,
    record: dict[str, Any],
    log: Path,
) -> None:
    """Writes the folder beside its name and renames it.

    Args:
        weights: by the checkpoint's names; each is stored in the file and type that it had there.
        plan: written to plan.json without its measurements, which were another model's; None writes none.
        record: for adapt.json.
        log: copied as log.jsonl.

    Raises:
        AdaptError: the folder is taken, or the system refuses.
    """
    check_output(path, force, sum(tensor.size_bytes for tensor in checkpoint.tensors.values()))
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        temporary.mkdir()
        _copy_files(checkpoint.folder, temporary)
        _write_weights(checkpoint, weights, temporary)
        if plan is not None:
            Plan.from_json({key: value for key, value in plan.to_json().items() if key != "calibration"}).save(
                temporary / "plan.json"
            )
        (temporary / "adapt.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        if log.is_file():
            shutil.copyfile(log, temporary / "log.jsonl")
        _rename(temporary, path)
    except OSError as error:
        raise AdaptError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _copy_files(source: Path, target: Path) -> None:
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source).as_posix()
        if path.is_file() and any(fnmatch(name, pattern) for pattern in COPIED):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / name)


def _write_weights(checkpoint: Checkpoint, weights: Mapping[str, Tensor], target: Path) -> None:
    files: dict[Path, list[str]] = {}
    for name, tensor in checkpoint.tensors.items():
        files.setdefault(tensor.path, []).append(name)
    for path, names in files.items():
        tensors: dict[str, Tensor] = {}
        with safe_open(path, "pt") as source:
            for name in names:
                # some old checkpoints hold rotary tables, which no model has as weights
                value = weights[name] if name in weights else source.get_tensor(name)
                dtype = TORCH_DTYPES[checkpoint.tensors[name].dtype] if name in weights else value.dtype
                # a copy: tied weights share their memory, which safetensors refuses
                tensors[name] = value.detach().to("cpu", dtype, copy=True).contiguous()
        save_file(tensors, str(target / path.name), metadata={"format": "pt"})


def _rename(temporary: Path, path: Path) -> None:
    if not path.exists():
        temporary.rename(path)
        return
    old = path.with_name(f".{path.name}.old-{os.getpid()}")
    path.rename(old)
    temporary.rename(path)
    shutil.rmtree(old)
