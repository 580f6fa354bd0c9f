"""Parts of the chat that need no model: thinking, input, commands, settings, and text on a screen of some width."""

from __future__ import annotations

import io
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from wcwidth import wcswidth

from pysa.chat.thinking import MARKS, ThinkingSplitter
from pysa.chat.turn import Piece
from pysa.cli.chat_commands import COMMANDS, Leave, completions, run_command, split_command
from pysa.cli.chat_history import HISTORY_BYTES, history_path, open_history
from pysa.cli.chat_input import CommandCompleter, is_open, unquoted
from pysa.cli.chat_screen import Flow, Screen, harmless
from pysa.cli.chat_settings import Shown, set_value, setting_names
from pysa.cli.chat_setup import joined
from pysa.cli.chat_view import SPACE, count, table_lines
from pysa.cli.console import Console
from pysa.errors import ArgumentError
from pysa.sampling import SamplingParams

# ---- thinking


def split(texts: list[str], prompt: str = "") -> tuple[str, str]:
    splitter = ThinkingSplitter(prompt)
    pieces = [piece for text in texts for piece in splitter.feed(text)] + splitter.finish()
    assert all(piece.text for piece in pieces)
    kinds = [piece.kind for piece in pieces]
    assert kinds == sorted(kinds, reverse=True)  # thinking, then the answer
    return tuple("".join(p.text for p in pieces if p.kind == kind) for kind in ("thinking", "answer"))  # type: ignore[return-value]


THOUGHTS = [
    ("<think>\nlet me see\n</think>\n\nYes.", "", ("let me see", "Yes.")),
    ("\n<think></think>Yes.", "", ("", "Yes.")),
    ("[THINK]a < b[/THINK]Yes </think>.", "", ("a < b", "Yes </think>.")),
    (" Yes, <think> is a mark.", "", ("", "Yes, <think> is a mark.")),
    ("<thin air", "", ("", "<thin air")),
    ("<thi", "", ("", "<thi")),
    ("let me see</think>Yes.", "...<think>\n", ("let me see", "Yes.")),
    ("<think>never ends </thi", "", ("never ends </thi", "")),
    ("<thinking>a</think>b</thinking>c", "", ("a</think>b", "c")),
    ("", "", ("", "")),
]


@pytest.mark.parametrize(("text", "prompt", "expected"), THOUGHTS)
def test_thinking_is_the_same_however_it_comes(text: str, prompt: str, expected: tuple[str, str]) -> None:
    assert split([text], prompt) == expected
    assert split(list(text), prompt) == expected
    for i in range(len(text)):
        assert split([text[:i], text[i:]], prompt) == expected


@pytest.mark.parametrize(("open_", "close"), MARKS)
def test_every_pair_of_marks(open_: str, close: str) -> None:
    assert split([f"{open_}\nso\n{close}\nYes"]) == ("so", "Yes")
    assert split(["so", close, "Yes"], f"<|assistant|>{open_}\n") == ("so", "Yes")


def test_thinking_streams() -> None:
    splitter = ThinkingSplitter()
    texts = ("<th", "ink>\n", "let", " me <", "b", " ", "</thi", "nk>", "\n\n", "Yes", "!")
    given_ = [splitter.feed(text) for text in texts]
    expected = [[], [], ["let"], [" me"], [" <b"], [], [], [], [], ["Yes"], ["!"]]
    assert [[piece.text for piece in pieces] for pieces in given_] == expected
    assert given_[-1] == [Piece("answer", "!")]


# ---- what is typed


def test_blocks_of_lines() -> None:
    quotes = '"""'
    for text in (quotes, f"{quotes}a", f"{quotes}\na", f" {quotes}\na\n", f'{quotes}"', f'{quotes}""'):
        assert is_open(text), text
    for text in ("", "a", f"a {quotes}", f"{quotes}a{quotes}", f"{quotes}\na\n{quotes} ", quotes * 2):
        assert not is_open(text), text
    assert unquoted("a") is None
    assert unquoted(f"{quotes}a{quotes}") == "a"
    assert unquoted(f"{quotes}\n a\n\nb\n{quotes}\n") == " a\n\nb"
    assert unquoted(f"{quotes}/help{quotes}") == "/help"


def test_commands_are_told_from_messages() -> None:
    assert split_command("/set temp 0.7") == ("/set", "temp 0.7")
    assert split_command("  /Edit two\nlines ") == ("/edit", "two\nlines")
    assert split_command("/?") == ("/?", "")
    assert split_command("/zzz x") == ("/zzz", "x")
    for text in (
        "hello",
        "/etc\nb",
        "/etc two\nlines",
        "//set",
        "/usr/bin/ls what is it",
        "/",
        "/ set",
        "/1",
        "a /set",
    ):
        assert split_command(text) is None, text


def test_an_unknown_command_says_the_nearest() -> None:
    talk: Any = None
    near = {"/regn": "did you mean /regen?", "/st": "did you mean /stats?", "/zzz": "/help lists them"}
    for typed, hint in near.items():
        with pytest.raises(ArgumentError, match=f"{typed}: unknown command: {hint.replace('?', '.')}"):
            run_command(talk, typed, "")
    for typed in ("/bye", "/exit", "/quit"):
        with pytest.raises(Leave):
            run_command(talk, typed, "")
    names = "help regen undo edit system read save load stats set clear bye"
    assert list(COMMANDS) == [f"/{name}" for name in names.split(" ")]


def complete(text: str) -> list[str]:
    found = CommandCompleter(completions()).get_completions(Document(text, len(text)), CompleteEvent())
    return [text[: len(text) + one.start_position] + one.text for one in found]


def test_completion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert complete("/re") == ["/regen", "/read"]
    assert complete("/set mi") == ["/set min_p", "/set mirostat_mode", "/set mirostat_tau", "/set mirostat_eta"]
    assert complete("/set temp 0.") == complete("hello /re") == complete("/undo x") == complete("/re\n/re") == []
    (tmp_path / "note.txt").touch()
    (tmp_path / "notes").mkdir()
    monkeypatch.chdir(tmp_path)
    assert complete("/read no") == ["/read note.txt", "/read notes"]
    assert complete(f"/load {tmp_path}/note.") == [f"/load {tmp_path}/note.txt"]


def test_texts_are_joined_into_one_message() -> None:
    assert joined(["a file\n", "", "\n", "what is it?"]) == "a file\n\nwhat is it?"
    assert joined(["  indented\n"]) == "  indented"


# ---- settings


class Chat:
    """What set_value() changes."""

    def __init__(self) -> None:
        self.sampling, self.max_tokens, self.renderer = SamplingParams(), 0, type("Renderer", (), {"options": {}})()


def test_settings_are_checked() -> None:
    chat: Any = Chat()
    shown = Shown()
    for name, text, expected in (
        ("temp", "0.5", 0.5),
        ("top-k", "7", 7),
        ("MIN_P", "0", 0.0),
        ("seed", "3", 3),
        ("seed", "random", None),
        ("repeat", "1.1", 1.1),
    ):
        whole_name = set_value(chat, shown, name, text)
        assert getattr(chat.sampling, whole_name) == expected
    assert set_value(chat, shown, "n", "12") == "max_tokens"
    assert chat.max_tokens == 12
    set_value(chat, shown, "thinking", "off")
    assert chat.renderer.options["enable_thinking"] is False
    set_value(chat, shown, "thinking", "hide")
    assert chat.renderer.options == {}
    set_value(chat, shown, "status", "ON")
    assert shown == Shown("hide", True, True)
    before = chat.sampling
    for name, text, message in (
        ("temp", "warm", "temperature: expected a number, got 'warm'"),
        ("temp", "nan", "temperature: out of range"),
        ("top_k", "1.5", "top_k: expected an integer, got '1.5'"),
        ("top_p", "1.5", "top_p: out of range: expected 0..1, got 1.5"),
        ("max_tokens", "-1", "max_tokens: out of range"),
        ("seed", "-1", "seed: out of range"),
        ("status", "maybe", "status: expected on or off, got 'maybe'"),
        ("thinking", "on", "thinking: expected show or hide or off"),
        ("mirostat", "2", "mirostat: unknown setting: expected one of mirostat_mode, mirostat_tau, mirostat_eta"),
        ("colour", "2", f"colour: unknown setting: expected one of {', '.join(setting_names())}"),
    ):
        with pytest.raises(ArgumentError, match=message):
            set_value(chat, shown, name, text)
    assert chat.sampling == before


# ---- history


def test_history_is_the_owners_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    path = history_path()
    assert path == tmp_path / "state" / "pysa" / "chat_history"
    history = open_history(path)
    history.append_string("one")
    history.append_string("two\nlines 🙂")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    assert list(open_history(path).load_history_strings()) == ["two\nlines 🙂", "one"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_history_stays_small_and_may_be_missing(tmp_path: Path) -> None:
    path = tmp_path / "chat_history"
    history = open_history(path)
    entries = [f"{i} " + "x" * 10_000 for i in range(150)]
    for entry in entries:
        history.store_string(entry)
    assert path.stat().st_size > HISTORY_BYTES
    kept = list(open_history(path).load_history_strings())
    assert path.stat().st_size < HISTORY_BYTES * 3 // 4
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert kept == entries[::-1][: len(kept)]
    assert len(kept) >= 70
    blocked = tmp_path / "file" / "chat_history"
    (tmp_path / "file").touch()
    memory = open_history(blocked)
    memory.append_string("one")
    assert list(memory.load_history_strings()) == ["one"]


# ---- text on a screen


def flowed(texts: list[str], width: int, kind: Any = "answer", colour: bool = False, is_wrapped: bool = True) -> str:
    out = io.StringIO()
    flow = Flow(Screen(Console(out, out, width, colour)), is_wrapped)
    for text in texts:
        flow.write(kind, text)
    flow.finish()
    return out.getvalue()


def test_words_are_not_split_at_the_edge() -> None:
    text = "the quick brown fox jumps over"
    assert flowed([text], 10) == flowed(list(text), 10) == "the quick\nbrown fox\njumps over\n"
    assert flowed(["an extraordinary word"], 8) == "an extraordinary\nword\n"  # the terminal breaks what is too long
    assert flowed(["one\n\n  two\n"], 20) == "one\n\n  two\n"
    assert flowed(["a\tb\r\nc"], 20) == "a    b\nc\n"
    assert flowed([text], 10, is_wrapped=False) == text + "\n"


def test_wide_characters_take_two_columns() -> None:
    assert flowed(["你好世界你好"], 8) == "你好世界\n你好\n"
    assert flowed(list("ab你好cd世界"), 8) == "ab你好cd\n世界\n"
    family = "👨‍👩‍👧"
    assert flowed([f"aaaaaaa{family}b"], 8) == f"aaaaaaa\n{family}b\n"
    assert flowed([*f"aaaaaaa{family}b"], 8) == f"aaaaaaa\n{family}b\n"


def test_code_is_left_to_the_terminal() -> None:
    code = "look:\n```python\nx = [1, 2, 3, 4]\n```\nit is a list"
    expected = "look:\n```python\nx = [1, 2, 3, 4]\n```\nit is a\nlist\n"
    assert flowed([code], 8) == flowed(list(code), 8) == expected


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(alphabet="ab 你🙂é\n", max_size=9), max_size=9), st.integers(8, 20))
def test_no_row_is_wider_than_the_window_and_nothing_is_lost(texts: list[str], width: int) -> None:
    shown = flowed(texts, width)
    joined_ = "".join(texts)
    words = "".join(c if wcswidth(c) < 2 else f" {c} " for c in joined_).split()
    if all(wcswidth(word) <= width for word in words):
        assert all(wcswidth(row) <= width for row in shown.split("\n"))
    assert "".join(shown.split()) == "".join(joined_.split())


def test_thinking_is_dim_in_whole_escape_codes() -> None:
    shown = flowed(["let me", " see"], 40, "thinking", colour=True)
    assert shown == "\x1b[2mlet\x1b[0m\x1b[2m me\x1b[0m\x1b[2m see\x1b[0m\n"
    assert flowed(["see"], 40, "thinking") == "(thinking)\nsee\n"


def test_control_characters_do_not_reach_a_terminal() -> None:
    assert harmless("a\x1b[31mb\x07c\x9b1md\x7f\r\ne\x00") == "a\ufffd[31mb\ufffdc\ufffd1md\ufffd\ne\ufffd"
    assert "\x1b" not in flowed(["\x1b]0;title\x07 and \x1b[2J"], 40)


def test_notes_fit_the_width() -> None:
    rows = [("/set [NAME VALUE]", "shows or changes settings, as /set temp 0.7"), ("empty", ""), ("/bye", "leaves")]
    for width in (20, 40, 80):
        lines = table_lines(rows, width)
        assert max(map(len, lines)) <= width
        assert not any("empty" in line for line in lines)
    assert table_lines(rows, 80)[1] == "/bye               leaves"
    out = io.StringIO()
    Screen(Console(out, out, 16)).notes([f"the cache takes 64{SPACE}KiB", "  and more than that"])
    assert out.getvalue() == "the cache takes\n64 KiB\n  and more than\n  that\n"
    assert (count(1, "token"), count(2048, "turn")) == ("1 token", "2,048 turns")
