"""What the property tests have in common."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a module's tiny models are written, each once."""
    return tmp_path_factory.mktemp("models")
