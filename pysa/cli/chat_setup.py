"""What `pysa chat` starts with: the conversation that the options ask for, and the first message's text."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pysa.chat import Conversation, find_renderer
from pysa.cli.chat_settings import thinking_variables
from pysa.cli.errors import UsageError
from pysa.cli.options import open_session
from pysa.sampling import SamplingParams

if TYPE_CHECKING:
    from pysa.model import Model


def is_interactive(options: argparse.Namespace) -> bool:
    """Whether there is somebody to talk with."""
    return options.prompt is None and not options.json and sys.stdin.isatty() and sys.stdout.isatty()


def open_chat(model: Model, options: argparse.Namespace) -> Conversation:
    """A conversation without turns.

    Raises:
        UsageError: a file is not UTF-8.
        PysaError, OSError: whatever is wrong with the template, the plan or a file.
    """
    renderer = find_renderer(model, options.chat_template)
    renderer.options = thinking_variables(options.thinking)
    sampling = SamplingParams(
        options.temp,
        options.top_k,
        options.top_p,
        options.min_p,
        repeat_penalty=options.repeat_penalty,
        seed=options.seed,
    )
    system = read_text(options.system_file).rstrip("\n") if options.system_file else options.system
    session = open_session(model, options, options.ctx_size)
    return Conversation(session, renderer, sampling, system=system, max_tokens=options.max_tokens)


def read_text(path: str) -> str:
    """A file's text as it is; `-` is stdin.

    Raises:
        UsageError: it is not UTF-8.
        OSError: it cannot be read.
    """
    raw = sys.stdin.buffer.read() if path == "-" else Path(path).expanduser().read_bytes()
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        name = "stdin" if path == "-" else path
        raise UsageError(f"{name}: not UTF-8 at byte {error.start}: expected text") from None


def only_message(options: argparse.Namespace) -> str:
    """The message where nobody can be asked for one: files, and the prompt or what comes through stdin.

    Raises:
        UsageError: it is empty.
    """
    texts = [read_text(path) for path in options.file]
    if options.prompt is not None:
        texts.append(options.prompt)
    elif "-" not in options.file and not (texts and sys.stdin.isatty()):
        texts.append(read_text("-"))
    message = joined(texts)
    if not message:
        raise UsageError("the message is empty: expected some text from -p, -f or stdin")
    return message


def joined(texts: list[str]) -> str:
    """Texts as one message, an empty line between them."""
    return "\n\n".join(text.strip("\n") for text in texts if text.strip())
