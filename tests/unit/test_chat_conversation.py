"""Conversations: what they put in the session, going back, forgetting, saving. Held against fresh sessions."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from helpers.talking_gguf import CHATML, END, START, write_talking_gguf
from helpers.tiny_gguf import random_plan

import pysa
from pysa.chat import Again, Conversation, Dropped, Piece, Turn, find_renderer
from pysa.chat.saved import load_chat, save_chat
from pysa.errors import ArgumentError, ContextFullError, ModelFileError, StateFileError
from pysa.sampling import SamplingParams

GREEDY = SamplingParams(temperature=0.0)
WINDOW = {"n_sink": 4, "n_recent": 24}  # forgets soon
SECOND_LAYER_LOCAL = random_plan(
    2, 6, 2, **WINDOW, score_layer=[[0] * 6, [-1] * 6], score_head=[[*range(6)], [-1] * 6], mass_bias=None
)
WORDS = tuple(f" {name}" for name in ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"))


def chain(*texts: str) -> dict[str, str]:
    return dict(pairwise(texts))


def with_template(template: str) -> dict[str, Any]:
    return {"extra_kv": {"tokenizer.chat_template": template}, "n_layer": 4}


@pytest.fixture(params=["dense", "plan"])
def model(request: pytest.FixtureRequest, tiny_gguf: Callable[..., Path]) -> Iterator[pysa.Model]:
    """Random weights, so that every token before counts; with a plan whose ring forgets, and without."""
    plan = random_plan(4, 6, 2, seed=3, **WINDOW) if request.param == "plan" else None
    with pysa.Model(tiny_gguf("llama", **with_template(CHATML), plan=plan), n_threads=1) as opened:
        yield opened


def start(model: pysa.Model, n_ctx: int = 0, **options: Any) -> Conversation:
    options = {"sampling": GREEDY, "max_tokens": 12, **options}
    session = model.session(n_ctx, n_ubatch=16)
    assert session.native.has_window is (model.plan is not None)
    return Conversation(session, find_renderer(model, None), **options)


def say(chat: Conversation, text: str, **options: Any) -> list[Any]:
    return list(chat.say(text, **options))


def notices(events: list[Any]) -> list[Again | Dropped]:
    return [event for event in events if not isinstance(event, Piece)]


def fresh_answer(chat: Conversation, n_before: int) -> list[int]:
    """What a session that never held anything answers to the first `n_before` tokens of the conversation."""
    with chat.session.model.session(n_ubatch=16) as session:
        return list(session.generate(chat.held.tokens[:n_before], max_tokens=chat.max_tokens))


def last_answer(chat: Conversation) -> list[int]:
    return chat.held.segments[-1].tokens


def check_last(chat: Conversation) -> None:
    tokens, answer = chat.held.tokens, last_answer(chat)
    assert len(answer) > 3
    assert answer == fresh_answer(chat, len(tokens) - len(answer))
    # The token said last is evaluated with the next message.
    assert chat.session.tokens == tokens[: chat.session.n_past]
    assert chat.session.n_past >= len(tokens) - 1


def test_turns_equal_a_fresh_session(model: pysa.Model) -> None:
    chat = start(model, system="be brief")
    for i in range(4):
        before, n_past = chat.held.tokens, chat.session.n_past
        events = say(chat, f"message {i} é 你好 🙂")
        assert notices(events) == []
        assert chat.held.tokens[: len(before)] == before  # what was sampled stays, however it would be tokenized
        check_last(chat)
        assert chat.turns[-1].speed.n_reused == n_past
    text = model.detokenize(chat.held.segments[0].tokens, special=True)
    turns = ("system\nbe brief<|im_end|>\n", "user\nmessage 0 é 你好 🙂<|im_end|>\n", "assistant\n")
    assert text == "".join(f"<|im_start|>{turn}" for turn in turns)
    assert model.detokenize(chat.held.segments[2].tokens, special=True).startswith("<|im_end|>\n<|im_start|>user\nmess")


def test_an_answer_is_given_as_it_comes_and_kept(model: pysa.Model) -> None:
    chat = start(model)
    pieces = [event for event in say(chat, "hello") if isinstance(event, Piece)]
    text = model.detokenize(last_answer(chat), special=False)
    assert "".join(piece.text for piece in pieces) == text.lstrip()
    assert len(pieces) > 2
    assert chat.turns == [Turn("hello", text, "", "max_tokens", 0, 0, chat.turns[0].speed)]
    assert chat.turns[0].speed.n_answer == 12


def test_regenerating_is_free_and_exact(model: pysa.Model) -> None:
    chat = start(model, sampling=SamplingParams(seed=3))
    say(chat, "one")
    say(chat, "two")
    first, prompt = last_answer(chat), chat.held.tokens[: -len(last_answer(chat))]
    assert notices(list(chat.regenerate())) == []
    assert last_answer(chat) != first  # another seed
    assert chat.turns[-1].speed.n_reused == len(prompt) - 1
    chat.n_answers = 1  # the second answer's seed again
    assert notices(list(chat.regenerate())) == []
    assert last_answer(chat) == first
    assert chat.held.tokens == prompt + first
    assert len(chat.turns) == 2


def test_undo_returns_to_the_turn_before(model: pysa.Model) -> None:
    chat = start(model)
    say(chat, "one")
    tokens, n_past = chat.held.tokens, chat.session.n_past
    say(chat, "two and a good deal more than that, so that a window moves on")
    second = chat.held.tokens
    assert chat.undo().user.startswith("two")
    assert (chat.held.tokens, chat.session.n_past, len(chat.turns)) == (tokens, n_past, 1)
    assert notices(say(chat, "two and a good deal more than that, so that a window moves on")) == []
    assert chat.held.tokens == second
    assert notices(list(chat.edit("three"))) == []
    assert [turn.user for turn in chat.turns] == ["one", "three"]
    check_last(chat)


def test_what_the_window_has_forgotten_is_evaluated_again_and_counted(model: pysa.Model) -> None:
    chat = start(model)
    for i in range(8):
        say(chat, f"message {i}, long enough that the window has moved on by the next one")
    for _ in range(7):
        chat.undo()
    n_held = chat.held.n_evaluated
    events = say(chat, "another")
    speed = chat.turns[-1].speed
    if model.plan is None:
        assert notices(events) == []
        assert speed.n_reused == n_held
    else:  # checkpoints reach back some windows
        assert notices(events) == [Again(n_held - speed.n_reused, "window")]
        assert speed.n_reused < n_held
        assert speed.n_again == n_held - speed.n_reused
    check_last(chat)
    assert notices(list(chat.edit("yet another"))) == []  # from there on it is free again


def test_ctrl_c_keeps_what_was_said(model: pysa.Model) -> None:
    chat = start(model, max_tokens=0)
    for event in chat.say("hello", watch=lambda n_held, n_prompt: n_held >= n_prompt + 5):
        assert isinstance(event, Piece)
    assert chat.turns[0].stopped == "interrupted"
    said = last_answer(chat)
    assert 5 <= len(said) <= 6
    assert chat.turns[0].answer.strip() == model.detokenize(said).strip()
    chat.max_tokens = 9
    tokens = chat.held.tokens
    assert notices(say(chat, "go on")) == []
    assert chat.held.tokens[: len(tokens)] == tokens
    check_last(chat)


def test_ctrl_c_before_the_answer_keeps_the_message(model: pysa.Model) -> None:
    chat = start(model)
    say(chat, "one")
    say(chat, "a message of some ubatches " * 4, watch=lambda n_held, n_prompt: n_held > n_prompt - 40)
    assert (chat.turns[-1].stopped, chat.turns[-1].answer) == ("interrupted", "")
    assert 0 < chat.session.n_past < len(chat.held.tokens)
    assert notices(list(chat.regenerate())) == []
    check_last(chat)
    answer = chat.turns[-1].answer
    list(chat.regenerate(watch=lambda *_: True))
    assert chat.turns[-1].answer == answer  # nothing new was said
    assert notices(say(chat, "two")) == []
    check_last(chat)


def test_a_caller_that_goes_away_keeps_what_it_got(model: pysa.Model) -> None:
    chat = start(model)
    events = chat.say("hello")
    next(events)
    events.close()
    assert chat.turns[0].stopped == "interrupted"
    assert len(last_answer(chat)) >= 1
    say(chat, "go on")
    check_last(chat)


def test_a_new_system_message_says_what_that_takes(model: pysa.Model) -> None:
    chat = start(model)
    say(chat, "one")
    n_said = sum(len(model.tokenize(text.strip(), add_special=False)) for text in ("one", chat.turns[0].answer))
    chat.system = "answer in verse"
    assert notices(say(chat, "two")) == [Again(n_said, "system")]
    check_last(chat)
    assert notices(say(chat, "three")) == []


# ---- templates


def test_a_template_that_strips_answers_rewrites_history(tiny_gguf: Callable[..., Path]) -> None:
    template = CHATML.replace("{{ m.content }}", "{{ m.content | trim }}!")
    with pysa.Model(tiny_gguf("llama", **with_template(template)), n_threads=1) as model:
        chat = start(model)
        say(chat, "one")
        n_prompt, answer = len(chat.held.segments[0].tokens), chat.turns[0].answer
        events = notices(say(chat, "two"))
        # The answer's text is the same, the mark behind it is not: its tokens are the text's own now.
        assert chat.held.text.count("!<|im_end|>") == 3
        assert f"{answer.strip()}!<|im_end|>" in chat.held.text
        n_same = len(model.tokenize(chat.held.text, add_special=False))
        assert n_prompt <= chat.turns[1].speed.n_reused < n_same
        assert all(isinstance(event, Again) and event.reason == "rewritten" for event in events)
        check_last(chat)


def test_a_template_that_refuses_leaves_everything_as_it_was(tiny_gguf: Callable[..., Path]) -> None:
    template = "{% if messages | length > 1 %}{{ raise_exception('one at a time') }}{% endif %}" + CHATML
    with pysa.Model(tiny_gguf("llama", **with_template(template)), n_threads=1) as model:
        chat = start(model)
        say(chat, "one")
        tokens, turns = chat.session.tokens, list(chat.turns)
        with pytest.raises(ArgumentError, match="one at a time"):
            say(chat, "two")
        assert (chat.session.tokens, chat.turns) == (tokens, turns)
        check_last(chat)
        chat.undo()
        say(chat, "two")
        check_last(chat)


def test_no_template_names_the_option(tiny_gguf: Callable[..., Path], tmp_path: Path) -> None:
    with pysa.Model(tiny_gguf("llama"), n_threads=1) as model:
        with pytest.raises(ModelFileError, match=r"no chat template.*--chat-template"):
            find_renderer(model, None)
        with pytest.raises(ArgumentError, match=r"absent.*expected a file or one of .*chatml"):
            find_renderer(model, str(tmp_path / "absent"))
        (tmp_path / "t.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}?")
        assert find_renderer(model, str(tmp_path / "t.jinja")).render("", [Turn("hi")]) == "hi?"
        renderer = find_renderer(model, "chatml")
        assert renderer.render("", [Turn("hi")]).endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
        assert renderer.stop == "<|im_end|>"


def test_text_goes_on_where_it_stands(tiny_gguf: Callable[..., Path]) -> None:
    for vocab in ("gpt2", "llama"):
        with pysa.Model(tiny_gguf("llama", vocab=vocab), n_threads=1) as model:
            renderer = find_renderer(model, "chatml")
            text = "the thing and the [INST] in\n\nthe end"
            whole = renderer.tokenize(text)
            for i in range(1, len(text)):
                tokens = renderer.tokenize(text[:i]) + renderer.tokenize_more(text[:i], text[i:])
                assert model.detokenize(tokens) == model.detokenize(whole), (vocab, i)
                assert renderer.tokenize(text[:i]) == tokens[: len(renderer.tokenize(text[:i]))]


# ---- models that talk


def talker(path: Path, says: dict[str, Any], **options: Any) -> pysa.Model:
    return pysa.Model(write_talking_gguf(path / "talking.gguf", says, **options), n_threads=1)


def test_thinking_is_told_apart_and_left_out_of_history(tmp_path: Path) -> None:
    says = chain(START, "<think>", " let", " me", " see", "</think>", " Yes", " indeed", END)
    with talker(tmp_path, says) as model:
        chat = start(model, max_tokens=0)
        pieces = say(chat, "well?")
        assert [piece for piece in pieces if piece.kind == "thinking"] == [
            Piece("thinking", "let"),
            Piece("thinking", " me"),
            Piece("thinking", " see"),
        ]
        assert [piece.text for piece in pieces if piece.kind == "answer"] == ["Yes", " indeed"]
        turn = chat.turns[0]
        assert (turn.thinking, turn.answer, turn.stopped) == ("let me see", "Yes indeed", "end")
        n_answer = len(model.tokenize("Yes indeed", add_special=False))
        assert notices(say(chat, "sure?")) == [Again(n_answer, "thinking")]
        assert "<think>" not in chat.held.segments[-2].text
        assert "assistant\nYes indeed<|im_end|>\n<|im_start|>user\nsure?" in chat.held.text


def test_a_template_may_open_the_thinking_itself(tmp_path: Path) -> None:
    template = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
    with talker(tmp_path, chain(START, " so", "</think>", " Yes", END), template=template) as model:
        chat = start(model, max_tokens=0)
        say(chat, "well?")
        assert (chat.turns[0].thinking, chat.turns[0].answer) == ("so", "Yes")


def test_thinking_may_be_turned_off(tmp_path: Path) -> None:
    template = CHATML + "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    with talker(tmp_path, chain(START, " Yes", END), template=template) as model:
        chat = start(model, max_tokens=0)
        chat.renderer.options = {"enable_thinking": False}
        say(chat, "well?")
        assert chat.held.segments[0].text.endswith("assistant\n<think>\n\n</think>\n\n")
        assert (chat.turns[0].thinking, chat.turns[0].answer) == ("", "Yes")


def test_the_documented_example(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "chat.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.S)
    with talker(tmp_path, chain(START, " It", " is", " round", END)):
        exec(code.replace('"m.gguf"', repr(str(tmp_path / "talking.gguf"))), {})
    assert capsys.readouterr().out == "It is round"


def test_text_that_ends_an_answer_is_no_part_of_it(tmp_path: Path) -> None:
    # A model without the template's own end of turn writes it out as plain text.
    says = {START: " Yes", " Yes": " <|", " <|": "im_", "im_": "end|", "end|": "> and", "> and": " on", " on": " on"}
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }} <|im_end|>\n{% endfor %}"
    with talker(tmp_path, says, template=template) as model:
        chat = start(model, max_tokens=30)
        chat.renderer.stop = "<|im_end|>"
        pieces = say(chat, "well?")
        assert "".join(piece.text for piece in pieces) == "Yes "
        assert chat.turns[0].stopped == "end"
        assert len(last_answer(chat)) == 5


def endless(path: Path, **options: Any) -> pysa.Model:
    return talker(path, {START: WORDS[0], **chain(*WORDS, WORDS[0])}, **options)


@pytest.mark.parametrize("plan", [None, SECOND_LAYER_LOCAL])
def test_a_full_context_drops_the_oldest_turns(tmp_path: Path, plan: dict[str, Any] | None) -> None:
    with endless(tmp_path, plan=plan) as model:
        chat = start(model, n_ctx=400, max_tokens=20, system="keep me")
        dropped = []
        for i in range(12):
            events = notices(say(chat, f"message number {i}"))
            dropped += [event for event in events if isinstance(event, Dropped)]
            if events:
                first, again = events
                speed = chat.turns[-1].speed
                assert isinstance(first, Dropped)
                assert isinstance(again, Again)
                assert again.reason == "dropped"
                assert 0 < again.n_tokens < speed.n_prompt - speed.n_reused
            assert chat.turns[-1].answer == "".join(WORDS * 3)[: len(chat.turns[-1].answer)]
            assert chat.held.text.startswith("<|im_start|>system\nkeep me<|im_end|>")
            assert chat.session.n_past <= 400
            check_last(chat)
        assert sum(event.n_turns for event in dropped) == chat.n_dropped > 0
        assert len(dropped) < 6  # each makes room for some turns
        assert len(chat.turns) == 12
        assert "message number 0" not in chat.held.text
        assert "message number 11" in chat.held.text
        for _ in range(12 - chat.n_dropped):
            chat.undo()
        with pytest.raises(ArgumentError, match="expected a message to go back to"):
            chat.undo()


def test_a_context_that_fills_up_in_an_answer_goes_on(tmp_path: Path) -> None:
    with endless(tmp_path) as model:
        chat = start(model, n_ctx=160, max_tokens=10, system="keep me")
        say(chat, "first")
        say(chat, "second")
        chat.max_tokens = 0
        events = say(chat, "third")
        first, again = notices(events)
        assert isinstance(first, Dropped)
        assert isinstance(again, Again)
        assert first.n_turns == 2
        turn = chat.turns[-1]
        assert turn.stopped == "context_full"
        n = turn.speed.n_answer
        assert turn.answer.split() == [WORDS[i % len(WORDS)].strip() for i in range(n)]  # no gap
        assert n > 160 - 64
        assert chat.session.n_past == 160
        assert again.n_tokens == turn.speed.n_again < 160


def test_a_message_that_cannot_fit_is_refused_with_figures(tmp_path: Path) -> None:
    with endless(tmp_path) as model:
        chat = start(model, n_ctx=96, max_tokens=5, system="keep me")
        say(chat, "first")
        tokens = chat.session.tokens
        n = len(find_renderer(model, None).tokenize(chat.renderer.render("keep me", [Turn("word " * 50)])))
        with pytest.raises(ContextFullError, match=f"at most 96 tokens with the system message, got {n}; shorten"):
            say(chat, "word " * 50)
        assert (chat.session.tokens, len(chat.turns), chat.n_dropped) == (tokens, 1, 0)
        assert notices(say(chat, "second")) == []


# ---- saved


def test_a_saved_chat_goes_on_as_if_nothing_had_happened(model: pysa.Model, tmp_path: Path) -> None:
    chat = start(model, system="be brief")
    say(chat, "one é")
    say(chat, "two")
    path = save_chat(chat, tmp_path / "talk")
    assert path == tmp_path / "talk.json"
    say(chat, "three")
    other = start(model)
    say(other, "something else")
    assert load_chat(other, path) is None
    assert other.system == "be brief"
    assert [turn.user for turn in other.turns] == ["one é", "two"]
    assert notices(say(other, "three")) == []
    assert other.held.tokens == chat.held.tokens
    assert other.turns[-1].speed.n_reused == chat.turns[-1].speed.n_reused
    other.undo()
    assert notices(list(other.regenerate())) == []
    with pytest.raises(ArgumentError, match=r"talk\.json: exists"):
        save_chat(chat, tmp_path / "talk")
    save_chat(chat, tmp_path / "talk", force=True)
    assert len(json.loads(path.read_text("utf-8"))["turns"]) == 3
    assert sorted(file.name for file in tmp_path.iterdir()) == ["talk.json", "talk.state"]


def test_a_damaged_state_is_made_again_from_the_messages(model: pysa.Model, tmp_path: Path) -> None:
    chat = start(model)
    say(chat, "one")
    n_used = chat.n_used
    path = save_chat(chat, tmp_path / "talk")
    state = tmp_path / "talk.state"
    damaged = bytearray(state.read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    say(chat, "two")
    for content in (bytes(damaged), b"", None):
        state.write_bytes(content) if content is not None else state.unlink()
        other = start(model)
        assert "talk.state" in (load_chat(other, path) or "")
        assert notices(say(other, "two")) == [Again(n_used, "loaded")]
        assert other.held.tokens == chat.held.tokens


def test_a_chat_of_another_model_keeps_its_messages(model: pysa.Model, tmp_path: Path) -> None:
    chat = start(model)
    say(chat, "one")
    save_chat(chat, tmp_path / "talk")
    with endless(tmp_path) as other_model:
        other = start(other_model)
        assert load_chat(other, tmp_path / "talk") == "it belongs to another model"
        say(other, "two")
        assert [turn.user for turn in other.turns] == ["one", "two"]
        assert "one<|im_end|>" in other.held.text
        check_last(other)


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{}",
        b"[1, 2]",
        b'{"pysa_chat": 2}',
        b'{"pysa_chat": 1, "turns": 3}',
        b"\xff\xfe",
        b"[" * 100_000,
    ],
)
def test_a_damaged_chat_changes_nothing(tmp_path: Path, damage: bytes) -> None:
    with endless(tmp_path) as model:
        chat = start(model)
        say(chat, "one")
        (tmp_path / "talk.json").write_bytes(damage)
        tokens = chat.session.tokens
        with pytest.raises(StateFileError, match=r"talk\.json: damaged"):
            load_chat(chat, tmp_path / "talk")
        assert chat.session.tokens == tokens
        check_last(chat)


def test_values_of_a_saved_chat_are_checked(tmp_path: Path) -> None:
    with endless(tmp_path) as model:
        chat = start(model)
        say(chat, "one")
        path = save_chat(chat, tmp_path / "talk")
        sound = path.read_text("utf-8")
        for find, put in (
            ('"user": "one"', '"user": 1'),
            ('"user": "one"', '"user": "\\ud800"'),
            ('"n_dropped": 0', '"n_dropped": 2'),
            ('"n_dropped": 0', '"n_dropped": -1'),
            ('"tokens": [', '"tokens": [99999,'),
            ('"tokens": [', '"tokens": [true,'),
        ):
            assert find in sound
            path.write_text(sound.replace(find, put, 1), "utf-8")
            with pytest.raises(StateFileError, match="damaged"):
                load_chat(chat, path)
        # A message that somebody edits by hand is taken as it is.
        path.write_text(sound.replace('"user": "one"', '"user": "ten"'), "utf-8")
        assert load_chat(chat, path) is None
        say(chat, "two")
        assert "user\nten<|im_end|>" in chat.held.text
        check_last(chat)
