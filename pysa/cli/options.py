"""The options of `pysa`, declared once."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

import pysa
from pysa._arguments import ATTENTIONS, CACHE_TYPES
from pysa.cli.errors import UsageError

if TYPE_CHECKING:
    from pysa.model import Model
    from pysa.session import Session


INT32_MAX = 2**31 - 1


class Parser(argparse.ArgumentParser):
    """Raises instead of printing a usage text of its own."""

    def error(self, message: str) -> NoReturn:
        """Turns every complaint of argparse into a UsageError."""
        raise UsageError(message)


def build_parser() -> Parser:
    """The parser of the whole command line."""
    # Declared with the functions below.
    from pysa.cli import chat_options, measure_options, plan_options, serve_options  # noqa: PLC0415

    parser = Parser(
        prog="pysa", description="Runs GGUF models with shared attention and a split KV cache.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"pysa {pysa.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _generate_options(
        commands.add_parser(
            "generate",
            help="continue a text",
            description="Continues a text. The text goes to stdout as it comes, speed and cache to stderr.",
            allow_abbrev=False,
        )
    )
    _inspect_options(
        commands.add_parser(
            "inspect",
            help="show a model, its sharing plan and what its cache costs",
            description="Shows a model, its sharing plan as a picture of layers by heads, and what its cache costs.",
            allow_abbrev=False,
        )
    )
    _bench_options(
        commands.add_parser(
            "bench",
            help="measure speed at some depths",
            description="Measures decoding and prompts at some depths, beside the speed that memory is read with.",
            allow_abbrev=False,
        )
    )
    _output_options(
        commands.add_parser(
            "devices",
            help="list the GPUs that can be used",
            description="Lists the GPUs that this build can use here, as --device names them. See docs/gpu.md.",
            allow_abbrev=False,
        )
    )
    chat_options.add_command(commands)
    measure_options.add_commands(commands)
    plan_options.add_commands(commands)
    serve_options.add_commands(commands)
    return parser


def _generate_options(parser: argparse.ArgumentParser) -> None:
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument("-p", "--prompt", metavar="TEXT", help="the text to continue")
    prompt.add_argument("-f", "--file", metavar="FILE", help="a UTF-8 file with the text, taken as it is; - is stdin")
    parser.add_argument(
        "-n", "--max-tokens", type=integer(1), default=64, metavar="N", help="most tokens to generate (64)"
    )
    parser.add_argument(
        "--chat", action="store_true", help="the text is a user's turn: apply the model's chat template"
    )

    sampling = parser.add_argument_group("sampling")
    sampling.add_argument(
        "--temp", type=number(0.0), default=0.0, metavar="T", help="temperature; 0 takes the likeliest token (0)"
    )
    sampling.add_argument(
        "--top-k", type=integer(0), default=0, metavar="K", help="keep the K likeliest tokens; 0 keeps all (0)"
    )
    sampling.add_argument(
        "--top-p", type=_share, default=1.0, metavar="P", help="keep the likeliest tokens of this share (1.0)"
    )
    sampling.add_argument(
        "--min-p",
        type=number(0.0, 1.0),
        default=0.0,
        metavar="P",
        help="keep tokens of this share of the likeliest's (0.0)",
    )
    sampling.add_argument(
        "--seed", type=integer(0, 2**32 - 2), default=0, metavar="N", help="of the random numbers (0)"
    )

    cache = parser.add_argument_group("cache and engine")
    cache.add_argument(
        "-c", "--ctx-size", type=integer(0), default=0, metavar="N", help="most tokens held; 0: the model's own (0)"
    )
    engine_options(cache)
    _plan_option(cache)
    common_options(parser)


def _inspect_options(parser: argparse.ArgumentParser) -> None:
    cache = parser.add_argument_group("cache")
    _cache_options(cache)
    _plan_option(cache)
    common_options(parser)


def _bench_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-d", "--depth", type=_integers, default=[4096], metavar="N,...", help="tokens held; 0 is added (4096)"
    )
    parser.add_argument("-n", "--tokens", type=integer(1), default=16, metavar="N", help="tokens decoded at each (16)")
    parser.add_argument(
        "-p", "--prompt-tokens", type=integer(0), default=0, metavar="N", help="prompt tokens evaluated at each (0)"
    )
    depth_by = parser.add_mutually_exclusive_group()
    depth_by.add_argument(
        "--fill",
        dest="depth_by",
        action="store_const",
        const="fill",
        default="fill",
        help="reach a depth with copies of a few rows: quick (the default)",
    )
    depth_by.add_argument(
        "--prompt", dest="depth_by", action="store_const", const="prompt", help="reach a depth by evaluating a prompt"
    )
    cache = parser.add_argument_group("cache and engine")
    engine_options(cache)
    _plan_option(cache)
    common_options(parser)


def _cache_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--type-k", choices=CACHE_TYPES, default="f16", help="how keys are kept (f16)")
    group.add_argument("--type-v", choices=CACHE_TYPES, default="f16", help="how values are kept (f16)")
    group.add_argument(
        "--ubatch", type=integer(1, 65536), default=512, metavar="N", help="prompt tokens evaluated at once (512)"
    )


def _plan_option(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--plan", metavar="FILE|dense", help="a plan.json, or dense, instead of the file's own plan")


def engine_options(group: argparse._ArgumentGroup) -> None:
    """How sessions are made, the plan apart."""
    _cache_options(group)
    group.add_argument("--attention", choices=ATTENTIONS, default="auto", help="which implementation (auto)")
    group.add_argument(
        "--v-skip",
        type=number(0.0, 1.0),
        metavar="X",
        help="largest share of a head's distant weights whose values need not be read; 0: exact (the engine's choice)",
    )
    group.add_argument(
        "-t", "--threads", type=integer(0, 512), default=0, metavar="N", help="0: the physical cores (0)"
    )
    _device_options(group)


def _device_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--device",
        default="auto",
        metavar="NAME",
        help="a GPU of `pysa devices`, auto: the best there is, or cpu (auto)",
    )
    group.add_argument(
        "-ngl",
        "--gpu-layers",
        type=gpu_layers,
        default=-1,
        metavar="N",
        help="the last N layers on the GPU, the output counts as one more; all, or auto: as many as fit (auto)",
    )
    group.add_argument(
        "--no-kv-offload",
        dest="kv_offload",
        action="store_false",
        help="keep the cache in the host's memory, and attention on the CPU",
    )


def open_model(options: argparse.Namespace, n_ctx: int) -> Model:
    """The model as the options of engine_options want it; n_ctx: of the sessions to come, as for Model."""
    from pysa.model import Model  # noqa: PLC0415  the engine is loaded only by a command that needs it

    return Model(
        options.model,
        options.threads,
        device=options.device,
        n_gpu_layers=options.gpu_layers,
        n_ctx=min(n_ctx, INT32_MAX),
        type_k=options.type_k,
        type_v=options.type_v,
        n_ubatch=options.ubatch,
        kv_offload=options.kv_offload,
    )


def open_session(model: Model, options: argparse.Namespace, n_ctx: int) -> Session:
    """A session as the options of engine_options and _plan_option want it; n_ctx as for Model.session."""
    return model.session(
        n_ctx,
        options.type_k,
        options.type_v,
        options.ubatch,
        options.attention,
        options.plan,
        v_skip=options.v_skip,
        kv_offload=options.kv_offload,
    )


def common_options(parser: argparse.ArgumentParser) -> None:
    """The model, and how much is said."""
    parser.add_argument("model", metavar="MODEL.gguf", help="the model file")
    _output_options(parser)


def _output_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object to stdout, nothing else")
    parser.add_argument("--verbose", action="store_true", help="say more on stderr; show tracebacks")


def integer(low: int, high: int = INT32_MAX) -> Callable[[str], int]:
    """A type of option: an integer in a range."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"expected an integer in {low}..{high}, got {text!r}")
        return value

    return parse


def _integers(text: str) -> list[int]:
    try:
        return [integer(0)(part) for part in text.split(",")]
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"expected integers of 0 or more, as 0,4096, got {text!r}") from None


def number(low: float, high: float = 1e6) -> Callable[[str], float]:
    """A type of option: a number in a range."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"expected a number in {low:g}..{high:g}, got {text!r}")
        return value

    return parse


def gpu_layers(text: str) -> int:
    """A type of option: a number of layers, `all`, or `auto`: -1."""
    if text in ("auto", "all"):
        return -1 if text == "auto" else INT32_MAX
    try:
        return integer(0)(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"expected an integer of 0 or more, all or auto, got {text!r}") from None


def _share(text: str) -> float:
    value = number(0.0, 1.0)(text)
    if value == 0.0:
        raise argparse.ArgumentTypeError(f"expected a number above 0, at most 1, got {text!r}")
    return value
