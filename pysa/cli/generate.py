"""`pysa generate`: from options to tokens to text to figures. Nothing is drawn here; render.py does that."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pysa.chat_template import chat_tokens
from pysa.cli.console import Console
from pysa.cli.errors import UsageError
from pysa.cli.options import open_model, open_session
from pysa.cli.placement import Placement
from pysa.cli.render import CACHE_PARTS, footer_lines, plan_note
from pysa.errors import ContextFullError
from pysa.session import Session
from pysa.text_stream import TextStream

if TYPE_CHECKING:
    from pysa.model import Model


@dataclass
class Outcome:
    """What a generation came to. Times in seconds, sizes in bytes."""

    n_prompt: int = 0
    n_generated: int = 0
    prompt_s: float = 0.0
    decode_s: float = 0.0
    stopped: str = "max_tokens"
    n_past: int = 0
    n_rows: int = 0
    attention: str = ""
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    cache: dict[str, int] = field(default_factory=dict)
    placement: Placement | None = None

    @property
    def prompt_per_s(self) -> float:
        """Prompt tokens a second."""
        return self.n_prompt / self.prompt_s if self.prompt_s > 0 else 0.0

    @property
    def decode_per_s(self) -> float:
        """Generated tokens a second; the first one belongs to the prompt."""
        return (self.n_generated - 1) / self.decode_s if self.decode_s > 0 else 0.0

    @property
    def saving(self) -> float:
        """Share of the dense cache's bytes that was not needed."""
        return 1.0 - self.cache["total"] / self.cache["dense"]


def read_prompt(options: argparse.Namespace) -> str:
    """The prompt's text, from the command line, a file or stdin."""
    if options.prompt is not None:
        text = str(options.prompt)
    else:
        raw = sys.stdin.buffer.read() if options.file == "-" else Path(options.file).read_bytes()
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UsageError(f"--file {options.file}: not UTF-8 at byte {error.start}: expected text") from None
    if not text:
        raise UsageError("the prompt is empty: expected some text")
    return text


def prompt_tokens(model: Model, text: str, chat: bool) -> list[int]:
    """The prompt's token ids, as a plain text or as a user's turn."""
    return chat_tokens(model, [{"role": "user", "content": text}]) if chat else model.tokenize(text)


def stream(session: Session, tokens: list[int], options: argparse.Namespace, outcome: Outcome) -> Iterator[str]:
    """Generates; yields text as it comes and keeps `outcome` up to date."""
    text = TextStream(session.model)
    outcome.n_prompt = len(tokens)
    start = time.perf_counter()
    generated = session.generate(
        tokens,
        max_tokens=options.max_tokens,
        temperature=options.temp,
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p,
        seed=options.seed,
    )
    try:
        for token in generated:
            now = time.perf_counter()
            if not outcome.tokens:
                outcome.prompt_s, start = now - start, now
            outcome.decode_s = now - start
            outcome.tokens.append(token)
            outcome.n_generated += 1
            yield text.feed(token)
        if outcome.n_generated < options.max_tokens:
            outcome.stopped = "end_of_generation"
    except ContextFullError:
        if not outcome.tokens:
            raise
        outcome.stopped = "context_full"
    if not outcome.tokens:
        outcome.prompt_s = time.perf_counter() - start
    yield text.finish()


def measure_cache(session: Session, outcome: Outcome) -> None:
    """Fills in the bytes allocated, by part, where they are, and what a dense cache with room for as many takes."""
    memory = session.memory()
    outcome.n_past, outcome.attention = session.n_past, session.attention
    outcome.n_rows = memory["n_rows"]
    outcome.cache = {part: memory[part] for part in CACHE_PARTS}
    outcome.placement = Placement.of(session)


def run(options: argparse.Namespace, console: Console) -> int:
    """Generates and prints; the exit status."""
    text = read_prompt(options)
    outcome = Outcome()
    with open_model(options, options.ctx_size) as model:
        plan = model.resolve_plan(options.plan)
        if plan is not None and (note := plan_note(plan)) and not options.json:
            console.note([note])
        tokens = prompt_tokens(model, text, options.chat)
        with open_session(model, options, options.ctx_size) as session:
            try:
                for piece in stream(session, tokens, options, outcome):
                    outcome.text += piece
                    if not options.json:
                        console.write(piece)
            finally:
                if outcome.text and not options.json:
                    console.write("\n")
            measure_cache(session, outcome)
    if options.json:
        figures = {"prompt_per_s": outcome.prompt_per_s, "decode_per_s": outcome.decode_per_s, "saving": outcome.saving}
        console.json({**asdict(outcome), **figures})
    else:
        console.note(footer_lines(outcome))
    return 0
