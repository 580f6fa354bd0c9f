"""`pysa chat` where nobody can be asked: one message, one answer, and nothing else on stdout."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from pysa.chat import Piece
from pysa.cli.chat_screen import harmless
from pysa.cli.chat_view import status_line, stopped_line
from pysa.cli.placement import Placement

if TYPE_CHECKING:
    from pysa.chat import Conversation
    from pysa.cli.console import Console


def answer_once(chat: Conversation, message: str, console: Console, as_json: bool, with_status: bool) -> int:
    """Prints the answer to a message as it comes, thinking left out; the exit status.

    Raises:
        PysaError: the message is too long, or the template refuses it.
    """
    is_terminal = console.out.isatty()
    has_text = False
    try:
        for event in chat.say(message):
            if isinstance(event, Piece) and event.kind == "answer" and not as_json:
                has_text = True
                console.write(harmless(event.text) if is_terminal else event.text)
    finally:
        if has_text:
            console.write("\n")
    if as_json:
        turn = chat.turns[-1]
        speed = {**asdict(turn.speed), "prompt_per_s": turn.speed.prompt_per_s, "answer_per_s": turn.speed.answer_per_s}
        parts = {"answer": turn.answer, "thinking": turn.thinking, "stopped": turn.stopped}
        where = asdict(Placement.of(chat.session))
        console.json({**parts, "speed": speed, "memory": chat.session.memory(), "placement": where})
        return 0
    if chat.turns[-1].stopped == "context_full" and (line := stopped_line(chat)):
        console.note([line])
    if with_status:
        where_line = Placement.of(chat.session).text()
        console.note([status_line(chat, console), *([where_line] if where_line else [])])
    return 0
