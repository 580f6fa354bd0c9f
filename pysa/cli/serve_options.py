"""The options of `pysa serve`."""

from __future__ import annotations

import argparse
from typing import Any

from pysa.cli.options import common_options, engine_options, integer, number


def add_commands(commands: Any) -> None:
    """Adds `serve` to the parser's subcommands."""
    parser = commands.add_parser(
        "serve",
        help="serve a model over HTTP, as OpenAI's interface",
        description="Serves a model over HTTP with OpenAI's interface, several requests at once. Needs pysa[serve]. "
        "See docs/serving.md.",
        allow_abbrev=False,
    )
    _address(parser.add_argument_group("address"))
    _access(parser.add_argument_group("access"))
    _limits(parser.add_argument_group("limits"))
    _model(parser.add_argument_group("model"))
    cache = parser.add_argument_group("cache and engine")
    engine_options(cache)
    cache.add_argument("--plan", metavar="FILE|dense", help="a plan.json, or dense, instead of the file's own plan")
    cache.add_argument("--cache-dir", metavar="FOLDER", help="keep sessions there that no lane has room for (nowhere)")
    cache.add_argument(
        "--cache-gib", type=number(0.01), default=4.0, metavar="GIB", help="most that the folder may hold (4)"
    )
    common_options(parser)


def _address(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--host", default="127.0.0.1", metavar="NAME", help="name or address to listen at (127.0.0.1: this machine)"
    )
    group.add_argument("--port", type=integer(0, 65535), default=8080, metavar="N", help="0: any that is free (8080)")


def _access(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--api-key",
        metavar="KEY",
        help="what requests must bear; other users can read it here, so better PYSA_API_KEY in the environment (none)",
    )
    group.add_argument(
        "--cors-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="a web origin whose pages may ask, or *; may be given several times (none)",
    )
    group.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="another name to be asked under; may be given several times (without a key: this machine's own)",
    )


def _limits(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "-np", "--parallel", type=integer(1, 256), default=4, metavar="N", help="requests served at once (4)"
    )
    group.add_argument(
        "--queue", type=integer(0), default=64, metavar="N", help="most that wait; one more gets status 429 (64)"
    )
    group.add_argument(
        "-n", "--max-tokens", type=integer(0), default=0, metavar="N", help="most tokens of an answer; 0: no limit (0)"
    )
    group.add_argument(
        "--timeout", type=number(0.0), default=600.0, metavar="SECONDS", help="of one request; 0: no limit (600)"
    )
    group.add_argument("--max-body", type=number(0.001), default=16.0, metavar="MIB", help="of one request (16)")
    group.add_argument(
        "--drain",
        type=number(0.0),
        default=10.0,
        metavar="SECONDS",
        help="at the end, for requests under way; a second Ctrl-C ends them at once (10)",
    )


def _model(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--alias",
        action="append",
        default=[],
        metavar="NAME",
        help="name of the model; the first is given in answers, all are taken in requests (the file's name)",
    )
    group.add_argument(
        "-c",
        "--ctx-size",
        type=integer(0),
        default=0,
        metavar="N",
        help="most tokens of one request, prompt and answer; 0: the model's own (0)",
    )
    group.add_argument("--chat-format", metavar="NAME", help="a chat template by name (the model's own)")
    group.add_argument(
        "--piece",
        type=integer(1, 65536),
        default=128,
        metavar="N",
        help="prompt tokens between two tokens of others; fewer make streams even, more make prompts quick (128)",
    )
