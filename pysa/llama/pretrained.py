"""A GGUF from the Hugging Face hub, by a pattern of its name. Needs huggingface_hub, imported when it is used."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from pysa._arguments import PathLike, check_text
from pysa.errors import ArgumentError

_WILDCARDS = "*?["


def download(
    repo_id: str,
    filename: str | None,
    additional_files: Sequence[str] | None = None,
    local_dir: PathLike | None = None,
    cache_dir: PathLike | None = None,
) -> str:
    """Downloads a model, and files that belong to it, unless they are there already.

    Args:
        repo_id: `owner/name`.
        filename: its name in the repository, or a pattern with *, ? or [] that fits one file.
        additional_files: names or patterns of more files.
        local_dir: where to put them; None: the hub's own cache.
        cache_dir: another folder for the hub's cache.

    Returns:
        Path of the model's file.

    Raises:
        ImportError: huggingface_hub is not installed.
        ArgumentError: no file or several fit a pattern.
    """
    try:
        import huggingface_hub as hub  # noqa: PLC0415
    except ImportError as error:
        raise ImportError("Llama.from_pretrained: huggingface_hub is missing; pip install 'pysa[hf]'") from error
    names = [check_text("filename", filename or "*.gguf"), *(additional_files or ())]
    # A name without wildcards needs no list, so what is in the cache already is found without a network.
    listed: list[str] = []
    if any(_is_pattern(name) for name in names):
        listed = list(hub.list_repo_files(repo_id))
    folders: dict[str, Any] = {"local_dir": local_dir, "cache_dir": cache_dir}
    paths = [hub.hf_hub_download(repo_id, _one_file(repo_id, name, listed), **folders) for name in names]
    return str(paths[0])


def _is_pattern(name: str) -> bool:
    return any(character in name for character in _WILDCARDS)


def _one_file(repo_id: str, name: str, listed: Sequence[str]) -> str:
    if not _is_pattern(name):
        return str(PurePosixPath(name))
    fitting = [file for file in listed if fnmatch.fnmatch(file, name)]
    if len(fitting) != 1:
        of = fitting or [file for file in listed if file.endswith(".gguf")] or list(listed)
        found = f"{len(fitting)} files" if fitting else "no file"
        raise ArgumentError(f"filename: {name!r} fits {found} of {repo_id}: expected one of: {', '.join(of)}")
    return fitting[0]
