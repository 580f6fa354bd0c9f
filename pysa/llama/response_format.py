"""`response_format`: the grammar that makes an answer JSON, of any kind or of a schema."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pysa.errors import ArgumentError
from pysa.grammar import LlamaGrammar

# Any JSON object. White space and numbers are as bounded as in llama.cpp's own grammar for this: a model that is let
# write white space without end does so.
JSON_OBJECT = r"""
root   ::= object
object ::= "{" space (pair ("," space pair)*)? "}" space
pair   ::= string ":" space value
list   ::= "[" space (value ("," space value)*)? "]" space
value  ::= object | list | string | number | ("true" | "false" | "null") space
string ::= "\"" ([^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}))* "\"" space
number ::= "-"? ([0-9] | [1-9] [0-9]{0,15}) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? space
space  ::= | " " | "\n" [ \t]{0,20}
"""


def response_grammar(response_format: object) -> LlamaGrammar | None:
    """The grammar of a response_format; None where any text will do.

    Args:
        response_format: None, or a mapping with a `type`: `text`; `json_object`, with a `schema` or without;
            `json_schema`, with the schema as OpenAI nests it, in `json_schema.schema`, or in `schema`.

    Raises:
        ArgumentError: another type, no schema where one is needed, or one that cannot become a grammar.
    """
    if response_format is None:
        return None
    if not isinstance(response_format, Mapping):
        raise ArgumentError(
            f"response_format: wrong type: expected a mapping with a type, got {type(response_format).__name__}"
        )
    kind = response_format.get("type")
    if kind == "text":
        return None
    if kind not in ("json_object", "json_schema"):
        raise ArgumentError(
            f"response_format.type: unknown value: expected one of text, json_object, json_schema, got {kind!r:.40}"
        )
    where, schema = "response_format.schema", response_format.get("schema")
    nested = response_format.get("json_schema")
    if schema is None and isinstance(nested, Mapping):
        where, schema = "response_format.json_schema.schema", nested.get("schema")
    if schema is None:
        if kind == "json_schema":
            raise ArgumentError(f"{where}: missing: expected a JSON schema; for any JSON take the type json_object")
        return LlamaGrammar.from_string(JSON_OBJECT)
    return schema_grammar(schema, where)


def schema_grammar(schema: Any, where: str) -> LlamaGrammar:
    """The grammar of a JSON schema that a caller gave as `where`."""
    if not isinstance(schema, Mapping):
        raise ArgumentError(f"{where}: wrong type: expected a JSON schema, got {type(schema).__name__}")
    try:
        return LlamaGrammar.from_json_schema(schema)
    except ArgumentError as error:
        raise ArgumentError(f"{where}: {error}") from None
