"""Entry point of the command `pysa`: reads the options, runs the command, turns errors into exit statuses."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from pysa.cli.console import Console
from pysa.cli.errors import guarded
from pysa.cli.options import build_parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: the arguments; None takes the process's own.

    Returns:
        The exit status.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    return guarded(lambda: _run(arguments), verbose="--verbose" in arguments)


def _run(arguments: list[str]) -> int:
    options = build_parser().parse_args(arguments)
    if options.verbose:
        logging.basicConfig(level=logging.DEBUG, format="pysa: %(levelname)s: %(message)s")
    console = Console.of_process()
    if options.command == "generate":
        from pysa.cli import generate  # noqa: PLC0415  the engine is loaded only by a command that needs it

        return generate.run(options, console)
    if options.command == "chat":
        from pysa.cli import chat  # noqa: PLC0415

        return chat.run(options, console)
    if options.command == "bench":
        from pysa.cli import bench  # noqa: PLC0415

        return bench.run(options, console)
    if options.command in ("perplexity", "compare", "recall", "needle"):
        from pysa.cli import measure  # noqa: PLC0415

        return measure.run(options, console)
    if options.command == "plan":
        from pysa.cli import plan  # noqa: PLC0415

        return plan.run(options, console)
    if options.command == "serve":
        from pysa.cli import serve  # noqa: PLC0415

        return serve.run(options, console)
    if options.command == "devices":
        from pysa.cli import devices  # noqa: PLC0415

        return devices.run(options, console)
    from pysa.cli import inspect  # noqa: PLC0415

    return inspect.run(options, console)


if __name__ == "__main__":
    sys.exit(main())
