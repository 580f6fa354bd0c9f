"""What a chat says about itself: greeting, status, figures, what has to be evaluated again. Lines of text only."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from pysa.chat.turn import Again, Dropped
from pysa.cli.placement import Placement
from pysa.cli.render import plan_note, size_text

if TYPE_CHECKING:
    from pysa.chat.conversation import Conversation
    from pysa.cli.console import Console

REASONS = {
    "window": "the window had moved on",
    "thinking": "earlier thinking is left out",
    "rewritten": "the template writes earlier turns differently now",
    "system": "the system message is another one",
    "dropped": "what stood before is gone",
    "loaded": "the saved state was not to be had",
}
STOPPED = {
    "interrupted": "stopped",
    "max_tokens": "stopped after {n}; /set max_tokens 0 takes the limit away",
    "context_full": "stopped: the context is full; /clear forgets the conversation",
}


SPACE = "\u00a0"  # where no line may end; Screen shows a space


def count(n: int, what: str) -> str:
    """`1 token`, `2,048 tokens`."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def greeting_lines(chat: Conversation) -> list[str]:
    """What is running, in two to four lines."""
    session, model = chat.session, chat.session.model
    name = str(model.metadata.get("general.name", "")) or Path(model.path).stem
    lines = [f"{name}: {model.arch}, {count(session.n_ctx, 'token')} of context"]
    if (where := Placement.of(session).text()) is not None:
        lines.append(where)
    saving = _saving(chat, session.n_ctx)
    if saving > 0:
        lines.append(f"shared attention saves {100 * saving:.1f} % of the cache when that is full")
        if (note := plan_note(session.plan)) is not None:
            lines[-1] = " ".join(note.split())
    return [*lines, "/help lists the commands, Ctrl-D leaves", ""]


def event_line(event: Again | Dropped) -> str:
    """What the user should know before the answer comes."""
    if isinstance(event, Again):
        return f"evaluating {count(event.n_tokens, 'token')} again: {REASONS[event.reason]}"
    turns = "the oldest turn" if event.n_turns == 1 else f"the {event.n_turns} oldest turns"
    return f"the context is full: dropped {turns} ({count(event.n_tokens, 'token')})"


def stopped_line(chat: Conversation) -> str | None:
    """Why the last answer ended where it did, if that is worth a line."""
    turn = chat.turns[-1]
    if turn.stopped == "end" and not turn.answer:
        return "the model had nothing to say"
    line = STOPPED.get(turn.stopped)
    return None if line is None else line.format(n=count(turn.speed.n_answer, "token"))


def status_line(chat: Conversation, console: Console) -> str:
    """One line about context, speed and cache after an answer."""
    memory = chat.session.memory()
    parts = [
        f"{chat.n_used:,} of {count(chat.session.n_ctx, 'token')}",
        f"{chat.turns[-1].speed.answer_per_s:.1f} tokens/s" if chat.turns else "",
        f"cache {_size(memory['total'])} ({', '.join(_cache_parts(memory))})",
        _saved(chat),
    ]
    return (" · " if console.unicode else "; ").join(part for part in parts if part)


def stats_lines(chat: Conversation, width: int) -> list[str]:
    """Everything that is known about the conversation's cost."""
    session, memory, turns = chat.session, chat.session.memory(), chat.turns
    share = 100 * chat.n_used / session.n_ctx
    dropped = f", {chat.n_dropped} of them dropped" if chat.n_dropped else ""
    facts = {
        "context": f"{chat.n_used:,} of {count(session.n_ctx, 'token')} ({share:.0f} %), "
        f"{count(len(turns), 'turn')}{dropped}",
        "cache": f"{_size(memory['total'])} with room for {count(memory['n_rows'], 'token')}: "
        + ", ".join(_cache_parts(memory)),
        "device": Placement.of(session).text() or "",
        "plan": _saved(chat) + " of a dense cache" if _saved(chat) else "",
        "going back": f"{_size(memory['checkpoints'])} of checkpoints" if memory["checkpoints"] else "",
    }
    if turns:
        speed = turns[-1].speed
        n_reused, n_again = (sum(getattr(turn.speed, name) for turn in turns) for name in ("n_reused", "n_again"))
        facts |= {
            "prompt": f"{count(speed.n_prompt, 'token')}, {speed.n_reused:,} of them held already; "
            f"{speed.prompt_per_s:.1f} tokens/s",
            "answer": f"{count(speed.n_answer, 'token')}, {speed.answer_per_s:.1f} tokens/s",
            "all turns": f"{count(n_reused, 'token')} held already, {n_again:,} evaluated again",
        }
    return table_lines(facts.items(), width)


def table_lines(rows: Iterable[tuple[str, str]], width: int) -> list[str]:
    """Names and what they stand for, side by side, or below each other where that is too narrow; no empty rows."""
    rows = [(name, text) for name, text in rows if text]
    n_name = max((len(name) for name, _ in rows), default=0) + 2
    lines: list[str] = []
    for name, text in rows:
        if n_name + 24 > width:
            lines += [name, *textwrap.wrap(text, width, initial_indent="  ", subsequent_indent="  ")]
        else:
            first, *more = textwrap.wrap(text, width - n_name)
            lines += [f"{name:<{n_name}}{first}", *(" " * n_name + line for line in more)]
    return lines


def _size(n_bytes: int) -> str:
    return size_text(n_bytes).replace(" ", SPACE)


def _cache_parts(memory: dict[str, int]) -> list[str]:
    # Heads that share weights keep the keys of their window only.
    parts = {
        "own keys": memory["keys"],
        "shared heads' window": memory["window_keys"] + memory["window_values"],
        "values": memory["values"],
    }
    return [f"{name} {_size(n)}" for name, n in parts.items() if n]


def _saved(chat: Conversation) -> str:
    """What the plan saves now, or would with a full context: a short conversation has little to share."""
    memory = chat.session.memory()
    saving, where = 1.0 - memory["total"] / max(memory["dense"], 1), ""
    if saving <= 0:
        saving, where = _saving(chat, chat.session.n_ctx), f" at {count(chat.session.n_ctx, 'token')}"
    return f"saves {100 * saving:.1f}{SPACE}%{where}" if saving > 0 else ""


def _saving(chat: Conversation, n: int) -> float:
    native = chat.session.native
    report = chat.session.model.native.cache_bytes(n, native.plan, native.type_k, native.type_v)
    return 1.0 - report["total"] / report["dense"] if report["dense"] else 0.0
