"""`pysa chat`: a conversation in the terminal, or one answer where there is none."""

from __future__ import annotations

import argparse

from pysa.chat.saved import chat_path, load_chat
from pysa.cli.chat_once import answer_once
from pysa.cli.chat_setup import first_texts, is_interactive, only_message, open_chat
from pysa.cli.console import Console
from pysa.model import Model


def run(options: argparse.Namespace, console: Console) -> int:
    """Talks, or answers once; the exit status."""
    with Model(options.model, n_threads=options.threads) as model:
        chat = open_chat(model, options)
        if not is_interactive(options):
            if options.load is not None:
                load_chat(chat, options.load)
            return answer_once(chat, only_message(options), console, options.json, options.status)

        from pysa.cli.chat_screen import Screen  # noqa: PLC0415  the line editor comes with them, and takes its time
        from pysa.cli.chat_settings import Shown  # noqa: PLC0415
        from pysa.cli.chat_talk import Talk, open_reader  # noqa: PLC0415
        from pysa.cli.chat_view import greeting_lines  # noqa: PLC0415

        screen = Screen(console)
        reader = open_reader(screen, with_history=not options.no_history)
        talk = Talk(chat, screen, reader, Shown(options.thinking, options.status))
        talk.attached = first_texts(options)
        screen.notes(greeting_lines(chat))
        if options.load is not None:
            talk.load(chat_path(options.load))
        return talk.run()
