"""Where a benchmark of this folder runs: its options, and what its results say about GPU, driver and commit."""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path
from typing import Any

import pysa
from pysa.cli.options import gpu_layers
from pysa.cli.placement import card_facts


def add_device_options(parser: argparse.ArgumentParser) -> None:
    """--device and -ngl; the CPU unless told otherwise."""
    parser.add_argument("--device", default="cpu", help="a GPU of `pysa devices`, auto, or cpu (default cpu)")
    parser.add_argument(
        "-ngl",
        "--gpu-layers",
        type=gpu_layers,
        default=-1,
        metavar="N",
        help="layers on it; all, or auto (default auto)",
    )


def open_model(args: argparse.Namespace, n_ctx: int, cache_type: str) -> pysa.Model:
    """As add_device_options() and --threads want it, with room on the GPU for n_ctx tokens in all sessions together."""
    return pysa.Model(
        args.model,
        args.threads,
        device=args.device,
        n_gpu_layers=args.gpu_layers,
        n_ctx=n_ctx,
        type_k=cache_type,
        type_v=cache_type,
    )


def machine_facts(model: pysa.Model) -> dict[str, Any]:
    """Device and layers on it, card, driver, and the commit of this folder's repository, -dirty if it was changed."""
    return {
        "device": model.device,
        "n_gpu_layers": model.n_gpu_layers,
        **card_facts(model.device),
        "commit": commit(),
    }


def commit() -> str:
    """Empty where git or the repository is not there."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def device_text(facts: dict[str, Any]) -> str:
    """For the title of a table: empty for the CPU."""
    if not facts["n_gpu_layers"]:
        return ""
    driver = f", driver {facts['driver']}" if facts["driver"] else ""
    commit_text = f", commit {facts['commit']}" if facts["commit"] else ""
    return f"; {facts['device']} ({facts['card']}{driver}), {facts['n_gpu_layers']} layers there{commit_text}"
