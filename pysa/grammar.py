"""`LlamaGrammar`: a GBNF grammar that a completion must follow, from its text, a file or a JSON schema.

It is read by libllama when a sampler is made of it; a JSON schema becomes one through llama.cpp's own converter.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pysa._arguments import PathLike, check_path, check_text
from pysa.errors import ArgumentError

ROOT_RULE = "root"


class LlamaGrammar:
    """A grammar in GBNF. Immutable; completions may share it.

    Args:
        _grammar: the text; from_string() is the way to give it.

    Raises:
        ArgumentError: no text. Whether libllama can read it shows when a completion begins.
    """

    def __init__(self, *, _grammar: str, _root: str = ROOT_RULE) -> None:
        if not check_text("grammar", _grammar).strip():
            raise ArgumentError("grammar: empty: expected rules in GBNF, got none")
        self._grammar = _grammar
        self._root = check_text("root", _root)

    def __repr__(self) -> str:
        return f"<pysa.LlamaGrammar of {len(self._grammar)} characters, from {self._root!r}>"

    @property
    def text(self) -> str:
        """The rules, in GBNF."""
        return self._grammar

    @property
    def root(self) -> str:
        """The rule a text begins with."""
        return self._root

    @classmethod
    def from_string(cls, grammar: str, verbose: bool = True) -> LlamaGrammar:
        """A grammar from its text.

        Args:
            grammar: rules in GBNF; `root` is where a text begins.
            verbose: has no effect; nothing is printed.
        """
        return cls(_grammar=grammar)

    @classmethod
    def from_file(cls, file: PathLike, verbose: bool = True) -> LlamaGrammar:
        """A grammar from a file in UTF-8.

        Raises:
            ArgumentError: the file cannot be read, is no text or is empty.
        """
        path = check_path("file", file)
        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise ArgumentError(f"{path}: cannot be read: {error.strerror}; expected a grammar in GBNF") from error
        except UnicodeDecodeError as error:
            raise ArgumentError(f"{path}: not UTF-8 at byte {error.start}: expected a grammar in GBNF") from None
        if not text.strip():
            raise ArgumentError(f"{path}: empty: expected a grammar in GBNF")
        return cls(_grammar=text)

    @classmethod
    def from_json_schema(cls, json_schema: str | Mapping[str, Any], verbose: bool = True) -> LlamaGrammar:
        """The grammar of all JSON texts that fit a schema.

        Args:
            json_schema: the schema, as JSON or as what json.loads() makes of it.
            verbose: has no effect; nothing is printed.

        Raises:
            ArgumentError: no JSON, or a schema that cannot become a grammar.
        """
        from pysa import _native  # noqa: PLC0415  a grammar itself needs no engine

        if not isinstance(json_schema, str):
            try:
                json_schema = json.dumps(json_schema)
            except (TypeError, ValueError) as error:
                raise ArgumentError(f"json_schema: not JSON: {error}") from None
        return cls(_grammar=_native.json_schema_to_grammar(check_text("json_schema", json_schema)))
