"""The `pysa-adapt` command: options to `settings.Settings`, results to text. Nothing is computed here."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from pysa_convert.adapt.settings import DTYPES, LR, LR_LORA, AdaptError, Settings
from pysa_convert.cli import Parser, guarded, print_lines

EPILOG = """examples:
  pysa-adapt path/to/checkpoint --plan plan.json --data book.txt --tokens 5000000 -o adapted
  pysa-adapt path/to/checkpoint --control --data book.txt --tokens 5000000 -o control
  pysa-adapt org/name --plan plan.json --data chats.jsonl --lora 16 --checkpointing --context 8192 -o adapted
  pysa-convert adapted --plan adapted/plan.json -o adapted.gguf
"""


def build_parser() -> argparse.ArgumentParser:
    """Every option, once."""
    usual = Settings("", (), Path())
    parser = Parser(
        prog="pysa-adapt",
        description="Trains a checkpoint with a plan's shared attention in place, learning from its own dense self.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="a folder in Hugging Face format, or a hub id like organisation/name")
    add("--plan", metavar="plan.json", type=Path, help="the plan to adapt to")
    add("--control", action="store_true", help="train the dense model instead: same tokens, same objective")
    add("--data", metavar="FILE", type=Path, nargs="+", required=True,
        help="text, or .jsonl with one of `text`, `messages`, `tokens` a line")  # fmt: skip
    add("-o", "--output", metavar="OUT", type=Path, required=True, help="the folder to be made")
    length = parser.add_argument_group("how long (default: once through the data)")
    length.add_argument("--steps", dest="n_steps", metavar="N", type=int)
    length.add_argument("--tokens", dest="n_tokens", metavar="N", type=int)
    length.add_argument("--minutes", metavar="M", type=float, help="of training; the result depends on the speed")
    add = parser.add_argument_group("training").add_argument
    add("--context", dest="n_ctx", metavar="N", type=int,
        help="tokens of a row (default: twice the window, at least 2048, at most the model's)")  # fmt: skip
    add("--batch", dest="n_batch", metavar="N", type=int, default=usual.n_batch, help="rows of a step (%(default)s)")
    add("--micro-batch", dest="n_micro", metavar="N", type=int, default=usual.n_micro,
        help="rows at a time; their gradients add up (%(default)s)")  # fmt: skip
    add("--lr", metavar="X", type=float, help=f"peak learning rate ({LR:g}; with --lora {LR_LORA:g})")
    add("--warmup", metavar="X", type=float, default=usual.warmup, help="share of the run (%(default)s)")
    add("--weight-decay", metavar="X", type=float, default=usual.weight_decay, help="of matrices (%(default)s)")
    add("--clip", metavar="X", type=float, default=usual.clip, help="largest norm of the gradient (%(default)s)")
    add("--kl-weight", metavar="X", type=float, default=usual.kl_weight,
        help="of the KL divergence from the dense model (%(default)s)")  # fmt: skip
    add("--ce-weight", metavar="X", type=float, default=usual.ce_weight, help="of the next-token loss (%(default)s)")
    add("--lora", metavar="R", type=int, default=0, help="train adapters of rank R, merged at the end")
    add("--seed", metavar="N", type=int, default=usual.seed, help="of the rows' order and the adapters (%(default)s)")
    add = parser.add_argument_group("machine").add_argument
    add("--dtype", choices=DTYPES, default=usual.dtype, help="of matrix products (auto: bf16 on a GPU, else f32)")
    add(
        "--device", metavar="NAME", default=usual.device, help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)"
    )
    add("--threads", dest="n_threads", metavar="N", type=int, default=0, help="default: all cores")
    add("--checkpointing", action="store_true", help="less memory for a third more time")
    add = parser.add_argument_group("other").add_argument
    add("--eval", dest="eval_data", metavar="FILE", type=Path, nargs="+", default=[], help="held-out data")
    add("--eval-every", metavar="N", type=int, default=usual.eval_every, help="steps (%(default)s)")
    add("--save-minutes", metavar="M", type=float, default=usual.save_minutes, help="between saves (%(default)s)")
    add("--resume", action="store_true", help="go on with OUT.unfinished, if it is there")
    add("--force", action="store_true", help="replace OUT, drop OUT.unfinished")
    add("--json", action="store_true", help="the result as JSON")
    add("--quiet", action="store_true", help="no progress bar, no report")
    add("--verbose", action="store_true", help="a traceback for errors")
    return parser


def settings_of(given: argparse.Namespace) -> Settings:
    """The settings of one run, checked as far as the command line alone allows."""
    values = {name: value for name, value in vars(given).items() if name not in ("json", "verbose")}
    values |= {"data": tuple(given.data), "eval_data": tuple(given.eval_data), "quiet": given.quiet or given.json}
    settings = Settings(**values)
    settings.check()
    return settings


def adapt(given: argparse.Namespace) -> None:
    """Runs the command."""
    settings = settings_of(given)
    try:
        import torch  # noqa: F401, PLC0415
        import transformers  # noqa: PLC0415
    except ImportError as error:
        raise AdaptError(f"pysa-adapt needs torch and transformers: {error}; pip install 'pysa[adapt]'") from error
    from pysa_convert.adapt.run import run  # noqa: PLC0415

    transformers.utils.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # peft uses what it renames
    result = run(settings, (lambda _: None) if settings.quiet else print_lines)
    if given.json:
        print_lines(json.dumps({**vars(result), "output": str(result.output)}, indent=2))
    elif not settings.quiet:
        print_lines(
            f"wrote {result.output}: {result.n_steps:,} steps, {result.n_tokens:,} tokens, {result.time_s:.0f} s"
        )
        if result.evaluation:
            print_lines(f"held-out perplexity {result.evaluation['eval_perplexity']:.3f}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0, 1 for a failure, 2 for a usage error, 130 for Ctrl-C."""
    given = build_parser().parse_args(arguments)

    def interrupted() -> str:
        kept = given.output.with_name(f"{given.output.name}.unfinished")
        return f"interrupted; --resume goes on from {kept}" if kept.exists() else "interrupted, nothing was written"

    return guarded("pysa-adapt", lambda: adapt(given), verbose=given.verbose, interrupted=interrupted)


if __name__ == "__main__":
    sys.exit(main())
