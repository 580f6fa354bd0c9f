"""`pysa chat`: a conversation in the terminal, or one answer where there is none."""

from __future__ import annotations

import argparse

from pysa.chat.saved import chat_path, load_chat
from pysa.cli.chat_keys import keys_held_back
from pysa.cli.chat_once import answer_once
from pysa.cli.chat_setup import is_interactive, only_message, open_chat
from pysa.cli.console import Console
from pysa.cli.options import open_model


def run(options: argparse.Namespace, console: Console) -> int:
    """Talks, or answers once; the exit status."""
    if is_interactive(options):
        with keys_held_back():
            return _talk(options, console)
    with open_model(options, options.ctx_size) as model:
        chat = open_chat(model, options)
        if options.load is not None:
            load_chat(chat, options.load)
        return answer_once(chat, only_message(options), console, options.json, options.status)


def _talk(options: argparse.Namespace, console: Console) -> int:
    # The line editor takes its time to import.
    from pysa.cli.chat_screen import Screen  # noqa: PLC0415
    from pysa.cli.chat_settings import Shown  # noqa: PLC0415
    from pysa.cli.chat_talk import Talk, open_reader  # noqa: PLC0415
    from pysa.cli.chat_view import greeting_lines  # noqa: PLC0415

    screen = Screen(console)
    try:
        screen.progress(f"loading {options.model}")
        with open_model(options, options.ctx_size) as model:
            chat = open_chat(model, options)
            reader = open_reader(screen, with_history=not options.no_history)
            talk = Talk(chat, screen, reader, Shown(options.thinking, options.status))
            screen.notes(greeting_lines(chat))
            if options.load is not None:
                talk.load(chat_path(options.load))
            for path in options.file:
                talk.attach(path)
            return talk.run()
    finally:
        screen.end_progress()
