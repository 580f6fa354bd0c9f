"""Saved conversations: NAME.json has the messages and their tokens, NAME.state beside it what the engine holds.

The state spares evaluating everything again; without it, or with a damaged one, the messages are all that is needed.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pysa._arguments import PathLike, check_path
from pysa.chat.held import Held, Segment
from pysa.chat.turn import Turn
from pysa.errors import ArgumentError, PysaError, StateFileError

if TYPE_CHECKING:
    from pysa.chat.conversation import Conversation

VERSION = 1


def chat_path(path: PathLike) -> Path:
    """The JSON file of a saved chat, whether its name was given with or without `.json`."""
    name = Path(check_path("path", path)).expanduser()
    return name if name.suffix == ".json" else name.with_name(name.name + ".json")


def save_chat(chat: Conversation, path: PathLike, force: bool = False) -> Path:
    """Writes a conversation.

    Args:
        chat: it stays as it is.
        path: NAME or NAME.json; the state goes to NAME.state. Both are written beside their names, then renamed.
        force: replace existing files.

    Returns:
        The JSON file.

    Raises:
        ArgumentError: a file exists and `force` is False.
        StateFileError: the state cannot be written.
        OSError: the JSON cannot be written.
    """
    path = chat_path(path)
    state = path.with_suffix(".state")
    for file in (path, state):
        if file.exists() and not force:
            raise ArgumentError(f"{file}: exists: expected a new name; choose another one, or add --force")
    text = json.dumps(_to_json(chat), ensure_ascii=False, indent=1)
    if chat.session.n_past:
        chat.session.save(state, force=True)
    else:
        state.unlink(missing_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    return path


def load_chat(chat: Conversation, path: PathLike) -> str | None:
    """Makes a conversation the saved one.

    Args:
        chat: what it was is gone, unless this raises.
        path: NAME or NAME.json.

    Returns:
        What is wrong with the state, so that the messages are evaluated again; None if it is used.

    Raises:
        StateFileError: the JSON is damaged or not one of ours.
        OSError: it cannot be read.
    """
    path = chat_path(path)
    try:
        saved = json.loads(path.read_bytes().decode("utf-8"))
        system, turns, n_dropped, held = _from_json(saved, chat.session.model.n_vocab)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        what = f"{type(error).__name__}: {error}"
        raise StateFileError(f"{path}: damaged: expected a chat that /save wrote, got {what}") from error
    model = chat.session.model
    same_model = saved.get("model") == model.native.fingerprint
    problem, session = None, chat.session
    if not same_model:
        # Its tokens mean something else here.
        problem, held = "it belongs to another model", Held()
        turns = [replace(turn, start=0, n_segments=0) for turn in turns]
    elif held.tokens:
        try:
            session = model.load_session(path.with_suffix(".state"), chat.session.kv_offload)
        except (PysaError, OSError) as error:
            problem = str(error)
    if session is chat.session:
        session.reset()
    chat.system = system
    chat.restore(turns, n_dropped, held, session)
    return problem if turns else None


def _to_json(chat: Conversation) -> dict[str, Any]:
    return {
        "pysa_chat": VERSION,
        "model": chat.session.model.native.fingerprint,
        "model_file": Path(chat.session.model.path).name,
        "system": chat.system,
        "n_dropped": chat.n_dropped,
        "turns": [{key: value for key, value in asdict(turn).items() if key != "speed"} for turn in chat.turns],
        "held": {"n_evaluated": chat.held.n_evaluated, "segments": [asdict(one) for one in chat.held.segments]},
    }


def _from_json(saved: Any, n_vocab: int) -> tuple[str, list[Turn], int, Held]:
    """System message, turns, dropped ones and what is held.

    Raises:
        ValueError: a value is not what _to_json() writes; KeyError, TypeError likewise.
    """
    if not isinstance(saved, dict) or saved.get("pysa_chat") != VERSION:
        raise ValueError(f"no pysa_chat: {VERSION}")
    turns = []
    for turn in saved["turns"]:
        texts = {name: _a(str, turn[name]) for name in ("user", "answer", "thinking", "stopped")}
        turns.append(Turn(**texts, **{name: _a(int, turn[name]) for name in ("start", "n_segments")}))
    segments = [
        Segment(_a(str, one["text"]), [_a(int, token) for token in one["tokens"]]) for one in saved["held"]["segments"]
    ]
    if any(token >= n_vocab for segment in segments for token in segment.tokens):
        raise ValueError(f"a token beyond the vocabulary's {n_vocab}")
    n_dropped = _a(int, saved["n_dropped"])
    if n_dropped > len(turns):
        raise ValueError(f"n_dropped: {n_dropped} of {len(turns)} turns")
    return _a(str, saved["system"]), turns, n_dropped, Held(segments, _a(int, saved["held"]["n_evaluated"]))


def _a(kind: type, value: Any) -> Any:
    """The value, if it is of this kind: text that UTF-8 can hold, or a number that is not negative."""
    if type(value) is not kind or (isinstance(value, int) and value < 0):
        raise TypeError(f"expected {kind.__name__}, got {value!r:.40}")
    if isinstance(value, str):
        value.encode("utf-8")
    return value
