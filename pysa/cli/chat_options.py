"""The options of `pysa chat`."""

from __future__ import annotations

from typing import Any

from pysa.cli.options import common_options, engine_options, integer, number


def add_command(commands: Any) -> None:
    """Adds `chat` to the parser's subcommands."""
    parser = commands.add_parser(
        "chat",
        help="talk with a model",
        description="Talks with a model in the terminal. With -p, or where stdin or stdout is no terminal, it answers "
        "once and prints nothing but the answer. See docs/chat.md.",
        allow_abbrev=False,
    )
    parser.add_argument("-p", "--prompt", metavar="TEXT", help="answer this message and leave")
    parser.add_argument(
        "-f",
        "--file",
        action="append",
        default=[],
        metavar="FILE",
        help="a UTF-8 file before the first message; - is stdin",
    )
    system = parser.add_mutually_exclusive_group()
    system.add_argument("-sys", "--system", default="", metavar="TEXT", help="the system message")
    system.add_argument("--system-file", metavar="FILE", help="a UTF-8 file with the system message")
    parser.add_argument("--load", metavar="NAME", help="go on with a chat that /save wrote")
    parser.add_argument(
        "--chat-template", metavar="FILE|NAME", help="a Jinja file, or a name, instead of the model's own"
    )
    parser.add_argument(
        "-n", "--max-tokens", type=integer(0), default=0, metavar="N", help="most tokens of an answer; 0: no limit (0)"
    )
    parser.add_argument(
        "--thinking",
        choices=("show", "hide", "off"),
        default="show",
        help="show it dim, hide it, or ask the template not to have the model think (show)",
    )
    parser.add_argument("--status", action="store_true", help="a line about context, cache and speed after each answer")
    parser.add_argument("--no-history", action="store_true", help="do not keep what is typed for the next time")

    sampling = parser.add_argument_group("sampling")
    for name, kind, default, metavar, text in (
        ("--temp", number(0.0), 0.8, "T", "temperature; 0 takes the likeliest token"),
        ("--top-k", integer(0), 40, "K", "keep the K likeliest tokens; 0 keeps all"),
        ("--top-p", number(0.0, 1.0), 0.95, "P", "keep the likeliest tokens of this share"),
        ("--min-p", number(0.0, 1.0), 0.05, "P", "keep tokens of this share of the likeliest's"),
        ("--repeat-penalty", number(0.0), 1.0, "X", "divides the logits of tokens said shortly before"),
    ):
        sampling.add_argument(name, type=kind, default=default, metavar=metavar, help=f"{text} ({default})")
    sampling.add_argument(
        "--seed", type=integer(0, 2**32 - 2), default=None, metavar="N", help="of the random numbers (drawn)"
    )

    cache = parser.add_argument_group("cache and engine")
    cache.add_argument(
        "-c", "--ctx-size", type=integer(0), default=0, metavar="N", help="most tokens held; 0: the model's own (0)"
    )
    engine_options(cache)
    cache.add_argument("--plan", metavar="FILE|dense", help="a plan.json, or dense, instead of the file's own plan")
    common_options(parser)
