"""Files of text or JSON-lines -> rows of tokens, and the order in which a run takes them.

Texts and chats become one stream that is cut into rows; ready-made token rows are never cut. Nothing here needs torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pysa_convert.adapt.settings import AdaptError
from pysa_convert.faults import N_SHOWN, Faults

Ids = npt.NDArray[np.int32]
JSON_LINES = (".jsonl", ".ndjson")
KEYS = ("text", "messages", "tokens")


@dataclass(frozen=True)
class Rows:
    """tokens (n_rows, n_ctx), filled up with 0 behind the n_used[i] tokens of row i."""

    tokens: Ids
    n_used: Ids
    n_documents: int

    @cached_property
    def sha256(self) -> str:
        """Of all rows: a run goes on only with the data it began with."""
        digest = hashlib.sha256(str(self.tokens.shape).encode())
        for part in (self.tokens, self.n_used):
            digest.update(part.astype("<i4").tobytes())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def n_tokens(self) -> int:
        """Tokens without the filling."""
        return int(self.n_used.sum())

    def batch(self, position: int, n: int, seed: int) -> npt.NDArray[np.intp]:
        """Row numbers of the n rows from `position` on; every pass through the data has an order of its own."""
        n_rows = len(self)
        places = range(position, position + n)
        return np.array([_order(n_rows, seed, place // n_rows)[place % n_rows] for place in places], np.intp)


@lru_cache(maxsize=2)
def _order(n_rows: int, seed: int, n_passes: int) -> npt.NDArray[np.intp]:
    """The rows' order after `n_passes` passes through the data."""
    return np.random.default_rng((seed, n_passes)).permutation(n_rows)


class Encoder:
    """A checkpoint's tokenizer, loaded when the first text asks for it."""

    def __init__(self, load: Callable[[], Any], n_vocab: int) -> None:
        self._load = load
        self.n_vocab = n_vocab

    @cached_property
    def tokenizer(self) -> Any:
        """The transformers tokenizer."""
        return self._load()

    @cached_property
    def bos(self) -> int | None:
        """The token that the tokenizer puts before a text, if it does."""
        ids = self.tokenizer("a")["input_ids"]
        bos = self.tokenizer.bos_token_id
        return int(bos) if bos is not None and ids[:1] == [bos] else None

    def document(self, text: str) -> list[int]:
        """A text with what separates it from the next: the BOS before it or, where there is none, the EOS behind."""
        return self._closed(list(self.tokenizer(text, verbose=False)["input_ids"]))

    def chat(self, messages: list[dict[str, str]]) -> list[int]:
        """A conversation in the checkpoint's own chat template."""
        ids = self.tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
        return self._closed([int(token) for token in ids])

    def _closed(self, ids: list[int]) -> list[int]:
        eos = self.tokenizer.eos_token_id
        return ids if self.bos is not None or eos is None or ids[-1:] == [eos] else [*ids, int(eos)]


def read_rows(paths: Sequence[Path], n_ctx: int, encoder: Encoder) -> Rows:
    """All files as rows of n_ctx tokens.

    Text files (one document each) and JSON-lines with `text` or `messages` become one stream, in the order given, cut
    into rows that each begin with the BOS where the tokenizer has one. A line's `tokens` are taken as they are: they
    stay in one row, with others only if they fit whole.

    Raises:
        AdaptError: naming file and line, all faults of a file at once.
    """
    stream: list[Ids] = []
    whole: list[Ids] = []
    for path in paths:
        faults = Faults(str(path))
        for where, record in _records(path, faults):
            fault = _read_record(record, n_ctx, encoder, stream, whole)
            if fault:
                faults.add(f"{where}{fault}")
            if len(faults.found) > N_SHOWN:
                break
        faults.raise_if_any(AdaptError)
    rows = [*_cut(stream, n_ctx, encoder.bos), *_fit(whole, n_ctx)] if stream else list(_fit(whole, n_ctx))
    if not rows:
        names = ", ".join(map(str, paths))
        raise AdaptError(f"{names}: expected text, got none")
    tokens = np.zeros((len(rows), n_ctx), np.int32)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
    return Rows(tokens, np.array([len(row) for row in rows], np.int32), len(stream) + len(whole))


def _records(path: Path, faults: Faults) -> Iterator[tuple[str, dict[str, Any]]]:
    """The place and content of each document of a file."""
    if path.suffix == ".json":
        faults.add("expected text or JSON-lines (.jsonl, one object a line), got .json")
        return
    try:
        data = path.read_bytes()
    except OSError as error:
        faults.add(f"cannot be read: {error.strerror}")
        return
    if path.suffix not in JSON_LINES:
        try:
            yield "", {"text": data.decode("utf-8")}
        except UnicodeDecodeError as error:
            faults.add(f"line {data[: error.start].count(10) + 1}: expected UTF-8: {error.reason}")
        return
    for number, line in enumerate(data.splitlines(), 1):
        if line.strip():
            try:
                record = json.loads(line.decode("utf-8"))
            except (ValueError, RecursionError) as error:
                faults.add(f"line {number}: expected a JSON object in UTF-8: {error}")
                continue
            if isinstance(record, dict) and sum(key in record for key in KEYS) == 1:
                yield f"line {number}: ", record
            else:
                faults.add(f"line {number}: expected an object with one of {', '.join(KEYS)}")


def _read_record(
    record: dict[str, Any], n_ctx: int, encoder: Encoder, stream: list[Ids], whole: list[Ids]
) -> str | None:
    """Adds one document to the stream or to the whole rows; returns what is wrong with it."""
    if "tokens" in record:
        ids = record["tokens"]
        if not isinstance(ids, list) or not all(type(i) is int and 0 <= i < encoder.n_vocab for i in ids):
            return f"tokens: expected a list of numbers from 0 to {encoder.n_vocab - 1}"
        if not 2 <= len(ids) <= n_ctx:
            return f"tokens: expected 2 to {n_ctx} (--context), got {len(ids)}"
        whole.append(np.array(ids, np.int32))
        return None
    if "text" in record:
        if not isinstance(record["text"], str):
            return f"text: expected a string, got {type(record['text']).__name__}"
        ids = encoder.document(record["text"]) if record["text"] else []
    else:
        messages = record["messages"]
        if not isinstance(messages, list) or not all(_is_message(message) for message in messages):
            return "messages: expected a list of objects with the strings role and content"
        try:
            ids = encoder.chat(messages)
        except Exception as error:  # templates raise what they like
            return f"messages: the chat template refused them: {error}"
    if ids and not 0 <= min(ids) <= max(ids) < encoder.n_vocab:
        return f"expected tokens below the model's {encoder.n_vocab}, got {max(ids)}: is this the model's tokenizer?"
    if ids:
        stream.append(np.array(ids, np.int32))
    return None


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ("role", "content"))


def _cut(stream: list[Ids], n_ctx: int, bos: int | None) -> Iterator[Ids]:
    """Rows of n_ctx tokens, each beginning with the BOS if there is one; the last may be shorter."""
    ids = np.concatenate(stream)
    start = 0
    while len(ids) - start >= 2:
        lead = [bos] if bos is not None and ids[start] != bos else []
        n = n_ctx - len(lead)
        yield np.concatenate((np.array(lead, np.int32), ids[start : start + n]))
        start += n


def _fit(whole: list[Ids], n_ctx: int) -> Iterator[Ids]:
    """Rows of as many documents, in order, as fit uncut."""
    row: list[Ids] = []
    for ids in whole:
        if row and sum(map(len, row)) + len(ids) > n_ctx:
            yield np.concatenate(row)
            row = []
        row.append(ids)
    if row:
        yield np.concatenate(row)
