"""From files to rows of tokens: packing, order, and what is said about bad files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.checkpoints import make_tokenizer
from pysa_convert.adapt.data import Encoder, Rows, read_rows
from pysa_convert.adapt.settings import AdaptError

transformers = pytest.importorskip("transformers", reason="its tokenizers read the texts")

N_VOCAB = 420


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """`bos`: adds <|endoftext|> (0) before a text; `eos`: adds nothing, <|im_end|> (2) ends a text."""
    root = tmp_path_factory.mktemp("tokenizers")
    made = {}
    for name, kind in (("bos", "llama3"), ("eos", "gpt2")):
        make_tokenizer(root / name, kind)
        made[name] = transformers.AutoTokenizer.from_pretrained(root / name)
    return made


def encoder_of(tokenizer: Any) -> Encoder:
    return Encoder(lambda: tokenizer, N_VOCAB)


def no_tokenizer() -> Any:
    raise AssertionError("token rows need no tokenizer")


def write(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_texts_become_one_stream_with_bos_before_each_and_at_each_row(
    tokenizers: dict[str, Any], tmp_path: Path
) -> None:
    tokenizer = tokenizers["bos"]
    texts = ["The quick brown fox " * 5, "jumps over the lazy dog " * 4]
    (tmp_path / "a.txt").write_text(texts[0], encoding="utf-8")
    path = write(tmp_path / "b.jsonl", {"text": texts[1]})
    rows = read_rows([tmp_path / "a.txt", path], 16, encoder_of(tokenizer))
    assert rows.n_documents == 2
    plain = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    stream = [0, *plain[0], 0, *plain[1]]
    used = [row[:n].tolist() for row, n in zip(rows.tokens, rows.n_used, strict=True)]
    assert all(row[0] == 0 for row in used)
    joined = list(used[0])
    for row in used[1:]:
        joined += row if joined and stream[len(joined)] == 0 else row[1:]
    assert joined == stream[: len(joined)]
    assert len(stream) - len(joined) <= 1  # a last token alone predicts nothing
    assert set(rows.n_used[:-1]) == {16}


def test_without_a_bos_the_eos_separates(tokenizers: dict[str, Any], tmp_path: Path) -> None:
    tokenizer = tokenizers["eos"]
    path = write(tmp_path / "a.jsonl", {"text": "lazy dog"}, {"text": ""}, {"text": "brown fox"})
    rows = read_rows([path], 64, encoder_of(tokenizer))
    expected = [*tokenizer("lazy dog")["input_ids"], 2, *tokenizer("brown fox")["input_ids"], 2]
    assert rows.tokens[0, : rows.n_used[0]].tolist() == expected
    assert rows.tokens[0, rows.n_used[0] :].any() == False  # noqa: E712


def test_chats_go_through_the_template(tokenizers: dict[str, Any], tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "mind the dog"}, {"role": "assistant", "content": "doesn't mind"}]
    path = write(tmp_path / "a.jsonl", {"messages": messages})
    rows = read_rows([path], 256, encoder_of(tokenizers["eos"]))
    text = tokenizers["eos"].decode(rows.tokens[0, : rows.n_used[0]])
    assert text.startswith("<|im_start|>user\nmind the dog<|im_end|>\n<|im_start|>assistant\ndoesn't mind<|im_end|>\n")


def test_token_rows_are_never_cut(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", *({"tokens": [n + 1] * n} for n in (5, 9, 4, 16, 3)))
    rows = read_rows([path], 16, Encoder(no_tokenizer, N_VOCAB))
    used = [row[:n].tolist() for row, n in zip(rows.tokens, rows.n_used, strict=True)]
    assert used == [[6] * 5 + [10] * 9, [5] * 4, [17] * 16, [4] * 3]
    assert rows.n_tokens == 37
    assert rows.n_documents == 5


def test_the_order_is_a_permutation_each_pass_and_known_at_every_position() -> None:
    rows = Rows(np.zeros((11, 8), np.int32), np.full(11, 8, np.int32), 11)
    whole = rows.batch(0, 33, seed=5).tolist()
    passes = [whole[:11], whole[11:22], whole[22:]]
    assert all(sorted(part) == list(range(11)) for part in passes)
    assert len({tuple(part) for part in passes}) == 3
    assert [i for position in range(0, 33, 3) for i in rows.batch(position, 3, seed=5)] == whole
    assert rows.batch(0, 33, seed=6).tolist() != whole


def test_the_digest_knows_tokens_and_their_lengths() -> None:
    tokens, n_used = np.arange(16, dtype=np.int32).reshape(2, 8), np.array([8, 7], np.int32)
    digest = Rows(tokens, n_used, 1).sha256
    assert Rows(tokens.copy(), n_used.copy(), 2).sha256 == digest
    assert Rows(tokens, np.array([8, 6], np.int32), 1).sha256 != digest
    assert Rows(tokens[::-1], n_used, 1).sha256 != digest


def test_faults_name_file_and_line_all_at_once(tokenizers: dict[str, Any], tmp_path: Path) -> None:
    lines = [
        '{"text": "good"}',
        "",
        "{bad",
        '{"text": 3}',
        '{"tokens": [1, 420]}',
        '{"tokens": [1, true]}',
        '{"tokens": [1, 2, 3, 4, 5, 6, 7, 8, 9]}',
        '{"tokens": [1]}',
        '{"messages": [{"role": "user"}]}',
        '{"text": "a", "tokens": [1, 2]}',
        "[1]",
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(AdaptError) as caught:
        read_rows([path], 8, encoder_of(tokenizers["eos"]))
    text = str(caught.value)
    assert text.startswith(f"{path}: 9 faults: line 3: expected a JSON object")
    for fault in (
        "line 4: text: expected a string, got int",
        "line 5: tokens: expected a list of numbers from 0 to 419",
        "line 6: tokens: expected a list of numbers from 0 to 419",
        "line 7: tokens: expected 2 to 8 (--context), got 9",
        "line 8: tokens: expected 2 to 8 (--context), got 1",
        "line 9: messages: expected a list of objects with the strings role and content",
        "line 10: expected an object with one of text, messages, tokens",
        "line 11: expected an object with one of text, messages, tokens",
    ):
        assert fault in text


def test_files_that_are_no_data(tokenizers: dict[str, Any], tmp_path: Path) -> None:
    encoder = encoder_of(tokenizers["eos"])
    (tmp_path / "latin.txt").write_bytes(b"one\ntwo \xe9\n")
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "a.json").write_text("{}")
    for name, message in {
        "latin.txt": "line 2: expected UTF-8",
        "empty.txt": "expected text, got none",
        "a.json": "expected text or JSON-lines",
        "none.txt": "cannot be read: No such file",
    }.items():
        with pytest.raises(AdaptError, match=message):
            read_rows([tmp_path / name], 8, encoder)
    with pytest.raises(AdaptError, match="is this the model's tokenizer"):
        read_rows([write(tmp_path / "b.jsonl", {"text": "lazy dog"})], 8, Encoder(lambda: tokenizers["eos"], 99))
