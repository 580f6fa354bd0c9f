"""The folder of a run that is not finished: settings, log and the last saved state, from which it goes on."""

from __future__ import annotations

import json
import os
import shutil
from typing import Any

import torch

from pysa.errors import ModelFileError
from pysa_convert.adapt.settings import AdaptError, Settings
from pysa_convert.sources.checkpoint import read_json

FORMAT = 1


class Unfinished:
    """OUT.unfinished: `settings.json`, `log.jsonl`, `state.pt`."""

    def __init__(self, settings: Settings) -> None:
        self.folder = settings.unfinished
        self.settings = settings
        self.log_path = self.folder / "log.jsonl"
        self._state_path = self.folder / "state.pt"

    def find(self, identity: dict[str, Any]) -> dict[str, Any] | None:
        """The state of the run to go on with, or None for a new one. Changes nothing.

        Args:
            identity: what must be the same for a run to go on: settings, plan, data.

        Raises:
            AdaptError: there is an unfinished run and neither --resume nor --force, or it is another run.
        """
        if not self.folder.exists() or (self.settings.force and not self.settings.resume):
            return None
        if not self.settings.resume:
            advice = "pass --resume to go on or --force to begin again"
            raise AdaptError(f"{self.folder}: an unfinished run is there; {advice}")
        path = self.folder / "settings.json"
        found = read_json(path)
        differing = sorted(key for key in {*found, *identity} if found.get(key) != identity.get(key))
        if differing:
            key = differing[0]
            change = f"{key}: expected {found.get(key)!r}, got {identity.get(key)!r}"
            raise AdaptError(f"{path}: another run ({len(differing)} differences): {change}; drop it with --force")
        return self._read_state()

    def begin(self, identity: dict[str, Any]) -> None:
        """Makes the folder of a new run."""
        if self.folder.exists():
            shutil.rmtree(self.folder)
        self.folder.mkdir()
        (self.folder / "settings.json").write_text(json.dumps(identity, indent=2) + "\n", encoding="utf-8")

    def go_on(self, n_steps: int) -> None:
        """Drops the log's lines after the saved step: those steps are done again."""
        if self.log_path.is_file():
            lines = self.log_path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= n_steps]
            self.log_path.write_text("".join(kept), encoding="utf-8")

    def save(self, state: dict[str, Any]) -> None:
        """Replaces the saved state."""
        aside = self._state_path.with_name(f".{self._state_path.name}.tmp-{os.getpid()}")
        try:
            with open(aside, "wb") as out:
                torch.save({"format": FORMAT, **state}, out)
                out.flush()
                os.fsync(out.fileno())
            os.replace(aside, self._state_path)
        except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError where the disk is full
            raise AdaptError(f"{self._state_path}: cannot be written: {error}") from error
        finally:
            aside.unlink(missing_ok=True)

    def log(self, record: dict[str, Any]) -> None:
        """Adds a line to the log."""
        with open(self.log_path, "a", encoding="utf-8") as out:
            out.write(json.dumps(record) + "\n")

    def last_records(self) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
        """The last step's and the last evaluation's line of the log."""
        lines = self.log_path.read_text(encoding="utf-8").splitlines() if self.log_path.is_file() else []
        records = [json.loads(line) for line in lines]
        steps = [record for record in records if "loss" in record]
        evaluations = [record for record in records if "eval_ce" in record]
        return (steps or [None])[-1], (evaluations or [None])[-1]

    def remove(self) -> None:
        """The run is finished."""
        shutil.rmtree(self.folder)

    def _read_state(self) -> dict[str, Any] | None:
        if not self._state_path.is_file():
            return None
        try:
            state: dict[str, Any] = torch.load(self._state_path, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged pickle raises what it likes
            reason = str(error).splitlines()[0]
            raise ModelFileError(f"{self._state_path}: damaged: {reason}; pass --force to begin again") from error
        if state.get("format") != FORMAT:
            raise AdaptError(f"{self._state_path}: format: expected {FORMAT}, got {state.get('format')}")
        return state
