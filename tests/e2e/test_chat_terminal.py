"""`pysa chat` as a person uses it: on a pseudo-terminal, key by key, and in pipes."""

from __future__ import annotations

import json
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from helpers.talking_gguf import END, START, write_talking_gguf
from helpers.terminal import PYSA, Terminal
from wcwidth import wcswidth

import pysa
from pysa.chat_template import chat_tokens

TEXT = "a streamed answer of words that differ in length, extraordinarily so"
WORDS = tuple(f" {word}" for word in TEXT.split(" "))
COLOUR = re.compile(rb"\x1b\[[\d;]*m")
FAMILY = "👨‍👩‍👧"


def chain(*texts: str) -> dict[str, str]:
    return dict(pairwise(texts))


@pytest.fixture(scope="module")
def talking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thinks, answers in some lines of words, and ends."""
    says = chain(
        START,
        "<think>",
        " let",
        " me",
        " see",
        "</think>",
        *(f"{word}" for word in WORDS),
        *(f"{word.upper()}" for word in WORDS),
        " 你好",
        " 🙂",
        " \x1b[31m",
        " end",
        END,
    )
    return write_talking_gguf(tmp_path_factory.mktemp("talking") / "talking.gguf", says, n_ctx=4096)


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Says the same words over and over."""
    path = tmp_path_factory.mktemp("endless") / "endless.gguf"
    return write_talking_gguf(path, {START: WORDS[0], **chain(*WORDS, WORDS[0])}, n_ctx=1 << 20)


ANSWER = ["a", *(word.strip() for word in WORDS[1:]), *(word.strip().upper() for word in WORDS), "你好", "🙂"]

Talk = Callable[..., Terminal]


@pytest.fixture
def talk(tmp_path: Path) -> Any:
    """Starts a chat whose history is in the test's folder."""
    opened: list[Terminal] = []

    def start(model: Path, *options: str | Path, columns: int = 80, **environment: str | None) -> Terminal:
        environment = {"XDG_STATE_HOME": str(tmp_path / "state"), **environment}
        terminal = Terminal(["chat", model, "-t", "1", "--temp", "0", *options], columns, cwd=tmp_path, **environment)
        opened.append(terminal)
        return terminal

    yield start
    for terminal in opened:
        terminal.__exit__()


def saved(folder: Path, name: str = "talk") -> dict[str, Any]:
    chat: dict[str, Any] = json.loads((folder / f"{name}.json").read_text("utf-8"))
    return chat


def messages(folder: Path, name: str = "talk") -> list[str]:
    return [turn["user"] for turn in saved(folder, name)["turns"]]


@pytest.mark.parametrize("columns", [80, 40])
def test_a_conversation(talk: Talk, talking: Path, tmp_path: Path, columns: int) -> None:
    terminal = talk(talking, columns=columns)
    terminal.wait_prompt()
    greeting = " ".join(terminal.lines)
    assert "tiny-llama: llama, 4,096 tokens of context" in greeting
    assert "/help lists the commands, Ctrl-D leaves" in greeting

    terminal.say("well?")
    at = terminal.lines.index("> well?") + 1
    shown = terminal.lines[at:-1]
    assert shown[0] == "let me see"
    assert shown[1] == ""
    # No word is split at the edge, and lines are filled.
    rows = [line for line in shown[2:] if line]
    assert " ".join(rows).split() == [*ANSWER, "\ufffd[31m", "end"]
    assert all(wcswidth(f"{row} {after.split()[0]}") > columns for row, after in pairwise(rows))
    assert max(map(wcswidth, terminal.lines)) <= columns
    assert b"\x1b[2mlet" in terminal.answered  # dim
    assert b"\x1b[31m" not in terminal.raw  # the model's own escape codes do not reach the terminal

    terminal.say("/stats")
    assert re.search(r"context +\d\d of 4,096 tokens", terminal.text) or columns == 40
    for word in ("own keys", "values", "tokens/s"):
        assert word in " ".join(terminal.lines)
    terminal.say("/save talk")
    assert (tmp_path / "talk.state").exists()
    turn = saved(tmp_path)["turns"][0]
    assert (turn["user"], turn["thinking"], turn["stopped"]) == ("well?", "let me see", "end")
    assert turn["answer"].split()[:-2] == ANSWER
    terminal.say("/clear")
    terminal.say("/load talk")
    assert "loaded: 1 turn" in " ".join(terminal.lines)
    terminal.say("/undo")
    assert "taken back: well? (0 turns left)" in " ".join(terminal.lines)
    terminal.say("/regenn")
    assert "/regenn: unknown command: did you mean" in " ".join(terminal.lines)
    terminal.type("/bye\r")
    assert terminal.status() == 0


@pytest.mark.parametrize("columns", [80, 40])
def test_ctrl_c_stops_an_answer_and_keeps_it(talk: Talk, endless: Path, tmp_path: Path, columns: int) -> None:
    terminal = talk(endless, columns=columns)
    terminal.wait_prompt()
    terminal.type("go\r")
    terminal.wait("extraordinarily")
    terminal.type("\x03")
    terminal.wait_prompt()
    assert terminal.lines[-3:] == ["stopped", "", ">"]
    terminal.say("/save talk")
    turn = saved(tmp_path)["turns"][0]
    said = turn["answer"].split()
    assert turn["stopped"] == "interrupted"
    assert said == [WORDS[i % len(WORDS)].strip() for i in range(len(said))]
    assert len(said) >= len(WORDS) - 1
    terminal.type("/regen\r")
    terminal.wait("extraordinarily", 3)
    terminal.type("\x03")
    terminal.wait_prompt()
    terminal.say("/undo")
    assert "taken back: go (0 turns left)" in terminal.text
    # Ctrl-C at the prompt: a line is discarded, then it says how to leave, then it leaves.
    terminal.type("half a line")
    terminal.wait_screen(lambda: terminal.lines[-1] == "> half a line", "what was typed")
    terminal.type("\x03")
    terminal.wait_prompt()
    assert "Ctrl-C again" not in terminal.text
    terminal.type("\x03")
    terminal.wait_prompt()
    assert "Ctrl-C again or Ctrl-D leaves" in " ".join(terminal.lines)
    terminal.type("\x03")
    assert terminal.status() == 130


def test_sigterm_leaves_a_terminal_as_it_was(talk: Talk, endless: Path) -> None:
    for message in ("", "go\r"):
        terminal = talk(endless)
        terminal.wait_prompt()
        terminal.type(message)
        if message:
            terminal.wait("extraordinarily")
        terminal.signal(signal.SIGTERM)
        assert terminal.status() == 128 + signal.SIGTERM


def test_what_is_typed_while_it_answers_waits(talk: Talk, endless: Path) -> None:
    terminal = talk(endless, "-n", "400")
    terminal.wait("loading ")
    terminal.type("/set top_p\r")  # while it loads
    terminal.wait("top_p  0.95")
    assert terminal.text.count("/set top_p") == 1
    terminal.wait_screen(lambda: terminal.lines[-1] == ">", "a prompt")
    terminal.type("go\r")
    terminal.wait("extraordinarily")
    terminal.type("/set top_k\r")
    terminal.wait("top_k  40")
    assert terminal.text.count("/set top_k") == 1  # not in the middle of the answer
    terminal.type("\x04")
    assert terminal.status() == 0


@pytest.mark.parametrize("columns", [80, 40])
def test_lines_wide_characters_and_editing(talk: Talk, talking: Path, tmp_path: Path, columns: int) -> None:
    terminal = talk(talking, "-n", "3", columns=columns)
    terminal.wait_prompt()
    terminal.type('"""\r')
    terminal.wait_screen(lambda: terminal.lines[-1] == ".", "the second line")
    terminal.type("line one\r")
    terminal.wait_screen(lambda: terminal.lines[-2:] == [". line one", "."], "the third line")
    terminal.say('line two"""')
    # Two wide characters, and a family that is one; backspace takes one away, and the cursor is where it belongs.
    terminal.type("你好x\x7f" + FAMILY + "\x7f🙂🙂\x7f")
    terminal.wait_screen(lambda: terminal.lines[-1] == "> 你好🙂", "what was typed")
    assert terminal.cursor[1] == 2 + 6
    terminal.say("")
    # Left, left, backspace; a line longer than the window.
    terminal.say("abc\x1b[D\x1b[D\x7fé" + " word" * 20)
    # A paste of several lines is one message.
    terminal.type("\x1b[200~pasted\nin two lines\x1b[201~")
    terminal.wait("two lines")
    terminal.say("")
    terminal.say("//bin/ls is a file")
    terminal.say("/bin/ls is one too")
    terminal.say("/save talk")
    expected = ["line one\nline two", "你好🙂", "é" + " word" * 20 + "bc", "pasted\nin two lines"]
    assert messages(tmp_path) == [*expected, "/bin/ls is a file", "/bin/ls is one too"]
    assert [turn["stopped"] for turn in saved(tmp_path)["turns"]] == ["max_tokens"] * 6
    terminal.type("\x04")
    assert terminal.status() == 0


def test_files_system_edit_and_settings(talk: Talk, talking: Path, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("from a file\n", "utf-8")
    (tmp_path / "latin1.txt").write_bytes(b"caf\xe9")
    terminal = talk(talking, "-f", "note.txt", "-sys", "be brief", "-n", "8", "--thinking", "hide")
    terminal.wait_prompt()
    terminal.say("first")
    assert "let me see" not in terminal.text
    terminal.say("/read note.txt")
    assert re.search(r"note\.txt: \d+ tokens, before your next message", terminal.text)
    terminal.say("second")
    assert "again: earlier thinking is left out" in terminal.text
    terminal.say("/read latin1.txt")
    assert "latin1.txt: not UTF-8 at byte 3" in terminal.text
    terminal.say("/read absent.txt")
    assert "absent.txt" in terminal.lines[-3]
    terminal.type("/edit\r")
    terminal.wait_screen(lambda: terminal.lines[-3:] == ["> from a file", ".", ". second"], "the text")
    terminal.say(" thought")
    terminal.say("/system be long")
    terminal.say("/set temp 0.7")
    assert "temperature 0.7" in terminal.text
    terminal.say("/set temp warm")
    assert "temperature: expected a number, got 'warm'" in terminal.text
    terminal.say("/set nothing 1")
    assert "nothing: unknown setting: expected one of temperature, top_k" in terminal.text
    terminal.say("/save talk")
    chat = saved(tmp_path)
    assert chat["system"] == "be long"
    assert messages(tmp_path) == ["from a file\n\nfirst", "from a file\n\nsecond thought"]
    terminal.say("/save talk")  # its own file, again
    (tmp_path / "other.json").write_text("{}")
    terminal.say("/save other")
    assert "other.json: exists" in terminal.text
    terminal.say("/load other")
    assert "other.json: damaged" in terminal.text
    terminal.type("\x04")
    assert terminal.status() == 0


def test_history_and_completion(talk: Talk, talking: Path, tmp_path: Path) -> None:
    terminal = talk(talking, "-n", "2")
    terminal.wait_prompt()
    terminal.say("remember me")
    terminal.type("\x04")
    assert terminal.status() == 0
    history = tmp_path / "state" / "pysa" / "chat_history"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    assert stat.S_IMODE(history.parent.stat().st_mode) == 0o700
    terminal = talk(talking, "-n", "2")
    terminal.wait_prompt()
    terminal.type("\x1b[A")
    terminal.wait_screen(lambda: terminal.lines[-1] == "> remember me", "the last chat's line")
    terminal.type("\x15/st\t")
    terminal.wait_screen(lambda: terminal.lines[-1] == "> /stats", "the command")
    terminal.type("\x15/re\t")
    terminal.wait_screen(lambda: terminal.lines[-2:] == ["/regen /read", "> /re"], "two commands")
    terminal.type("\x15/set thi\t")
    terminal.wait_screen(lambda: terminal.lines[-1] == "> /set thinking", "the setting")
    terminal.type("\x15\x04")
    assert terminal.status() == 0
    terminal = talk(talking, "--no-history", XDG_STATE_HOME=str(tmp_path / "elsewhere"))
    terminal.wait_prompt()
    terminal.say("/help")
    terminal.type("\x04")
    assert terminal.status() == 0
    assert not (tmp_path / "elsewhere").exists()


def test_an_answer_without_words_is_told(talk: Talk, tmp_path: Path) -> None:
    terminal = talk(write_talking_gguf(tmp_path / "silent.gguf", {START: END}))
    terminal.wait_prompt()
    terminal.say("well?")
    assert terminal.lines[-4:] == ["> well?", "the model had nothing to say", "", ">"]


def test_the_window_may_change(talk: Talk, talking: Path) -> None:
    terminal = talk(talking, "--thinking", "hide", columns=80)
    terminal.wait_prompt()
    terminal.resize(30)
    terminal.type("well?")
    terminal.wait_screen(lambda: terminal.lines[-1] == "> well?", "what was typed")
    terminal.say("")
    rows = terminal.lines[terminal.lines.index("> well?") + 1 : -2]
    assert "".join("".join(rows).split()) == "".join([*ANSWER, "\ufffd[31m", "end"])
    assert max(map(wcswidth, rows)) <= 30
    assert len(rows) >= 5


def test_no_color_has_no_colours(talk: Talk, talking: Path) -> None:
    coloured = talk(talking)
    coloured.wait_prompt()
    assert COLOUR.search(coloured.raw)
    terminal = talk(talking, "--status", NO_COLOR="1")
    terminal.wait_prompt()
    terminal.say("well?")
    terminal.say("/nonsense")
    assert "(thinking)\nlet me see\n(answer)\na streamed answer" in terminal.text
    terminal.type("\x04")
    assert terminal.status() == 0
    assert COLOUR.search(terminal.raw) is None


def test_a_dumb_terminal_gets_plain_lines(talk: Talk, talking: Path, tmp_path: Path) -> None:
    terminal = talk(talking, TERM="dumb")
    terminal.wait("> ")
    terminal.type("well?\n")
    terminal.wait("end\r\n")
    terminal.wait("> ")
    terminal.type('"""\none\ntwo"""\n')
    terminal.wait("end\r\n")
    terminal.type("/save talk\n")
    terminal.wait("saved: ")
    assert messages(tmp_path) == ["well?", "one\ntwo"]
    terminal.wait("> ")
    terminal.type("\x03")
    terminal.wait("Ctrl-C again")
    terminal.type("\x03")
    assert terminal.status() == 130
    assert b"\x1b" not in terminal.raw


# ---- without a terminal


def run(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [*PYSA, "chat", *map(str, arguments)]
    defaults: dict[str, Any] = {"capture_output": True, "encoding": "utf-8", "timeout": 120}
    return subprocess.run(command, check=False, **{**defaults, **options})


def expected_answer(path: Path, message: str) -> str:
    """What the model says in a session of its own, thinking left out."""
    with pysa.Model(path, n_threads=1) as model, model.session() as session:
        tokens = chat_tokens(model, [{"role": "user", "content": message}])
        text = model.detokenize(list(session.generate(tokens, max_tokens=500)))
    return text.partition("</think>")[2].strip()


def test_in_a_pipe_there_is_nothing_but_the_answer(talking: Path, tmp_path: Path) -> None:
    expected = expected_answer(talking, "hi") + "\n"
    assert expected.split()[:-2] == ANSWER
    (tmp_path / "question.txt").write_text("hi\n", "utf-8")
    options = (talking, "-t", "1", "--temp", "0")
    with (tmp_path / "question.txt").open() as file:
        done = [
            run(*options, input="hi\n"),
            run(*options, stdin=file),
            run(*options, "-p", "hi", stdin=subprocess.DEVNULL),
            run(*options, "-f", tmp_path / "question.txt", stdin=subprocess.DEVNULL),
            run(*options, "-f", "-", input="hi"),
        ]
    assert [(one.stdout, one.stderr, one.returncode) for one in done] == [(expected, "", 0)] * 5
    both = run(*options, "-f", tmp_path / "question.txt", "-p", "there", "--json", stdin=subprocess.DEVNULL)
    out = json.loads(both.stdout)
    assert out["answer"].split()[:-2] == ANSWER
    assert (out["thinking"], out["stopped"]) == ("let me see", "end")
    with pysa.Model(talking) as model:
        n_prompt = len(chat_tokens(model, [{"role": "user", "content": "hi\n\nthere"}]))
    assert out["speed"]["n_prompt"] == n_prompt
    status = run(*options, "-p", "hi", "--status")
    assert status.stdout == expected
    assert "of 4,096 tokens" in status.stderr


def test_what_goes_wrong_is_one_line(talking: Path, tmp_path: Path) -> None:
    damaged, plain = tmp_path / "damaged.gguf", tmp_path / "plain.gguf"
    damaged.write_bytes(talking.read_bytes()[:-100])
    write_talking_gguf(plain, {START: END}, template=None)
    (tmp_path / "latin1").write_bytes(b"caf\xe9")
    cases: list[tuple[list[Any], int, str]] = [
        ([tmp_path / "absent.gguf"], 1, "absent.gguf"),
        ([damaged], 1, "damaged.gguf"),
        ([plain], 1, "it has no chat template: expected tokenizer.chat_template, got none; give one with --chat-templ"),
        ([talking, "--chat-template", "nonsense"], 1, "nonsense: expected a file or one of"),
        ([talking, "-f", tmp_path / "absent.txt"], 1, "absent.txt"),
        ([talking, "-f", tmp_path / "latin1"], 2, "not UTF-8 at byte 3"),
        ([talking, "-p", " \n"], 2, "the message is empty"),
        ([talking, "-p", "word " * 100, "-c", "64"], 1, "message: too long for the context: expected at most 64"),
        ([talking, "-p", "hi", "-sys", "a", "--system-file", "b"], 2, "not allowed with argument"),
        ([talking, "-p", "hi", "--load", tmp_path / "absent"], 1, "absent.json"),
    ]
    for arguments, status, message in cases:
        done = run(*arguments, input="hi")
        assert (done.stdout, done.returncode) == ("", status), arguments
        assert message in done.stderr
        assert re.fullmatch(r"pysa: error: [^\n]+\n", done.stderr), done.stderr
    assert run(talking, input="").returncode == 2
    latin1 = run(talking, input=b"caf\xe9", encoding=None)
    assert latin1.returncode == 2
    assert b"stdin: not UTF-8 at byte 3" in latin1.stderr


def test_a_reader_that_goes_away_is_no_error(endless: Path) -> None:
    command = [*PYSA, "chat", str(endless), "-t", "1", "-p", "go"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(1) == b"a"
        process.stdout.close()
        assert process.wait(timeout=60) == 141
        assert process.stderr.read() == b""


# A test run in the background ignores SIGINT, and so would its children.
INTERRUPTIBLE = """
import signal, sys
from pysa.cli.main import main
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(main(sys.argv[1:]))
"""


def test_ctrl_c_in_a_pipe_ends_with_status_130(endless: Path) -> None:
    command = [sys.executable, "-c", INTERRUPTIBLE, "chat", str(endless), "-t", "1", "-p", "go"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(1) == b"a"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out.endswith(b"\n")
    assert err == b"pysa: error: interrupted\n"


def test_a_terminal_on_one_side_only(talking: Path, tmp_path: Path) -> None:
    # stdin is a pipe, stdout a terminal: the answer alone, and no escape codes of the model's.
    script = f"echo hi | {' '.join(PYSA)} chat {talking} -t 1 --temp 0; echo status $?"
    with Terminal([], cwd=tmp_path, command=["/bin/sh", "-c", script]) as terminal:
        terminal.wait("status 0")
        assert terminal.text.split()[:-4] == ANSWER
        assert b"\x1b" not in terminal.raw
    # stdout is a file, stdin a terminal: what is typed up to Ctrl-D is the message.
    script = f"{' '.join(PYSA)} chat {talking} -t 1 --temp 0 > out.txt; echo status $?"
    with Terminal([], cwd=tmp_path, command=["/bin/sh", "-c", script]) as terminal:
        terminal.type("hi\n\x04")
        terminal.wait("status 0")
    assert (tmp_path / "out.txt").read_text("utf-8") == expected_answer(talking, "hi") + "\n"
