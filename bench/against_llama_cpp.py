"""pysa against llama.cpp in one run, in turns: same file, threads and cache types. Prints ratios, and attention's speed
beside the speed that the host's memory is read with, or a GPU's is copied with, in the same run.

    python bench/against_llama_cpp.py M.gguf -d 0,4096,16384 --types f16,q8_0
    python bench/against_llama_cpp.py M.gguf -d 0,4096 --prompts 512,4096 --with llama-bench build/bench/bin/llama-bench

`--with oracle` is llama_decode of the same build in this process (PYSA_TESTS=ON), four tokens at a time in turn; a
depth is reached by copying rows (`--fill`) or by evaluating a prompt (`--prompt`). `--with llama-bench PATH` is
llama.cpp's own program from the same source, a process per measurement; depths are prompts there. To build it:

    cmake -S . -B build/bench -DPYSA_LLAMA_BENCH=ON && cmake --build build/bench --target llama-bench

With `--device` and `-ngl`, weights and caches are on a GPU, also llama-bench's (then -fa 1 only), which must be of the
same build (PYSA_CUDA=ON beside PYSA_LLAMA_BENCH). What a session takes of its memory is what the driver says is gone.

llama.cpp runs with -fa 0 and -fa 1 (a quantised V needs 1); ratios are to the better one. `--plan` is what pysa runs
besides dense: saveNN (save_plan.py), `file` (the model's own) or a plan.json.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from machine import add_device_options, device_text, machine_facts, open_model
from report import (
    THEIRS,
    Decode,
    Prompt,
    Results,
    decode_lines,
    device_memory_lines,
    memory_lines,
    plot,
    prompt_lines,
)
from save_plan import plan_of, saving
from sides import LlamaBenchSide, OracleSide, PysaSide, Setup, Side, llama_bench_command, stdout_of

import pysa
from pysa import Plan
from pysa._arguments import CACHE_TYPES
from pysa.cli.bench import PAUSE_S, bandwidth, cache_side, free_on
from pysa.device import find_device

N_TURN = 4  # tokens decoded before the other side's turn
SPARE = 16  # positions


class Run:
    """The options, the model and what it is compared with."""

    def __init__(self, args: argparse.Namespace, model: pysa.Model) -> None:
        self.args, self.model = args, model
        self.plan: Plan | None = None if args.plan == "dense" else plan_of(model, args.plan)
        self.taken: dict[str, int] = {}  # of the GPU's memory, by each side
        self.opponent, self.program = args.opponent[0], args.opponent[-1]
        self.fill = args.fill and self.opponent == "oracle"
        what = {"plan": args.plan}
        if self.plan:
            what |= {f"saving at {n}": saving(model, self.plan, n) for n in {max(args.depths), 32768} if n}
        how = "fill" if self.fill else "prompt"
        machine = machine_facts(model)
        self.results = Results(args.model, model.n_threads, self.opponent, how, what, args.v_skip, machine)
        with model.session(1, plan="dense") as session:
            self.results.bandwidth_of = cache_side(session)

    def names(self, type_: str) -> list[str]:
        """The sides that run with this type."""
        theirs = THEIRS[1:] if type_.startswith("q") or self.model.n_gpu_layers else THEIRS
        return ["pysa", *(["plan"] if self.plan else []), *theirs]

    def setup(self, type_: str, n_ctx: int, fill: bool) -> Setup:
        """What all sides have in common."""
        model = self.model
        return Setup(self.args.model, model.n_threads, type_, n_ctx, fill, model.device, model.n_gpu_layers)

    def side(self, name: str, type_: str, n_ctx: int) -> Side:
        """An engine with an empty cache."""
        setup = self.setup(type_, n_ctx, self.fill)
        if name in THEIRS:
            flash = THEIRS.index(name)
            if self.opponent == "oracle":
                return OracleSide(flash, setup)
            return LlamaBenchSide(self.program, flash, setup, self.args.repeats)
        plan = self.plan if name == "plan" and self.plan else "dense"
        return PysaSide(self.model, plan, self.args.v_skip, setup)

    @contextmanager
    def sides(self, type_: str, n_ctx: int) -> Iterator[dict[str, Side]]:
        """All sides at once."""
        sides: dict[str, Side] = {}
        try:
            for name in self.names(type_):
                with self.charged(name):
                    sides[name] = self.side(name, type_, n_ctx)
            yield sides
        finally:
            for side in sides.values():
                side.close()

    @contextmanager
    def charged(self, name: str) -> Iterator[None]:
        """What goes of the GPU's memory meanwhile is this side's."""
        before = free_on(self.model.device)
        yield
        after = free_on(self.model.device)
        if before is not None and after is not None:
            self.taken[name] = self.taken.get(name, 0) + before - after

    def bandwidth(self) -> list[float]:
        """Of the memory that caches are in, now."""
        return bandwidth(self.results.bandwidth_of, self.model.n_threads)

    def decode(self, type_: str, depth: int) -> None:
        """Tokens in turn at one depth."""
        n_turns, n = (-(-self.args.n // N_TURN), N_TURN)
        if self.opponent == "llama-bench":
            n_turns, n = self.args.repeats, self.args.n
        speeds = self.bandwidth()
        self.taken.clear()
        with self.sides(type_, depth + n_turns * (n + 1) + SPARE) as sides:
            for name, side in sides.items():
                with self.charged(name):
                    side.reach(depth)
            samples: dict[str, list[float]] = {name: [] for name in sides}
            for _ in range(n_turns):
                for name, side in sides.items():
                    time.sleep(PAUSE_S)
                    with self.charged(name):
                        samples[name] += side.decode(n)
            read = {name: side.read_bytes() for name, side in sides.items()}
            splits = {name: side.n_splits() for name, side in sides.items()}
        if speeds := [*speeds, *self.bandwidth()]:
            self.results.bandwidth[f"{type_} {depth}"] = speeds
        self.results.device_bytes |= {
            f"{type_}, {depth}, {name}": n_bytes for name, n_bytes in self.taken.items() if name not in THEIRS
        }
        dense = self.model.cache_bytes(depth + n_turns * (n + 1) // 2, "dense", type_, type_)["total"]
        self.results.decode += [
            Decode(type_, depth, name, ms, read[name] or dense, splits[name]) for name, ms in samples.items()
        ]

    def prompt(self, type_: str, n: int) -> None:
        """Prompts of n tokens in turn, each into a cache of its own."""
        seconds: dict[str, list[float]] = {name: [] for name in self.names(type_)}
        for _ in range(self.args.repeats):
            for name, times in seconds.items():
                side = self.side(name, type_, n + SPARE)
                time.sleep(PAUSE_S)
                times.append(side.prompt(n))
                side.close()
        self.results.prompts += [Prompt(type_, n, name, times) for name, times in seconds.items()]

    def peak(self, type_: str, name: str) -> int:
        """Highest resident bytes of a process that evaluates one prompt."""
        if name in THEIRS and self.opponent == "llama-bench":
            setup = self.setup(type_, 0, fill=False)
            options = ["-p", self.args.memory, "-n", 0, "-r", 1, "--no-warmup"]
            command = llama_bench_command(self.program, THEIRS.index(name), setup, *options)
        else:
            command = [sys.executable, __file__, *sys.argv[1:], "--child", f"{type_},{name}"]
            command += ["--threads", str(self.model.n_threads)]
        measure = [sys.executable, "-S", str(Path(__file__).with_name("peak_memory.py"))]
        return int(stdout_of([*measure, *command], f"--memory: {type_}, {name}"))

    def write(self) -> None:
        """What there is so far, so that a run that ends early was not in vain."""
        if self.args.json:
            text = json.dumps(self.results.to_json(), indent=1) + "\n"
            self.args.json.write_text(text, encoding="utf-8")

    def all(self) -> list[str]:
        """Everything asked for; lines of markdown."""
        for type_ in self.args.types:
            for depth in sorted({0, *self.args.depths}) if self.args.n else []:
                print(f"{type_}: decoding at {depth:,}", file=sys.stderr)
                self.decode(type_, depth)
                self.write()
            for n in self.args.prompts:
                print(f"{type_}: prompts of {n:,}", file=sys.stderr)
                self.prompt(type_, n)
                self.write()
            for name in self.names(type_) if self.args.memory else []:
                print(f"{type_}: memory of {name}", file=sys.stderr)
                self.results.peak_bytes[f"{type_}, {name}"] = self.peak(type_, name)
        results = self.results
        what = ", ".join(f"{name} {x:.1%}" if isinstance(x, float) else str(x) for name, x in results.plan.items())
        title = f"{Path(results.model).name}, {results.n_threads} threads, against {results.opponent}; plan: {what}"
        title += "" if results.v_skip is None else f"; v_skip {results.v_skip:g}"
        title += device_text(results.machine)
        lines = [title, "", *decode_lines(results), *prompt_lines(results)]
        return [*lines, *memory_lines(results, self.args.memory), *device_memory_lines(results)]


def integers(text: str) -> list[int]:
    """`0,4096`."""
    return [int(part) for part in text.split(",")]


def parsed() -> argparse.Namespace:
    """The command line, checked as far as it can be before anything is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--with", dest="opponent", nargs="+", default=["oracle"], metavar="oracle | llama-bench PATH")
    parser.add_argument("-d", "--depths", type=integers, default=[0, 4096], help="0 is added (default 0,4096)")
    parser.add_argument("-n", type=int, default=24, help="tokens decoded by each at a depth (default 24); 0: none")
    parser.add_argument("-r", "--repeats", type=int, default=3, help="prompts, and turns of llama-bench (default 3)")
    parser.add_argument("-t", "--threads", type=int, default=0)
    add_device_options(parser)
    parser.add_argument("--types", type=lambda text: text.split(","), default=["f16"], help="of K and V (default f16)")
    parser.add_argument("--plan", default="save35", help="saveNN, file, a plan.json, or dense: none (default save35)")
    parser.add_argument("--v-skip", type=float, help="as for Model.session (default: the engine's choice)")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--fill", action="store_true", default=True, help="reach depths by copying rows (default)")
    how.add_argument("--prompt", dest="fill", action="store_false", help="reach depths by evaluating prompts")
    parser.add_argument("--prompts", type=integers, default=[], metavar="N,...", help="lengths whose speed to measure")
    parser.add_argument("--memory", type=int, default=0, metavar="N", help="peak memory of a prompt of N tokens")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE.png")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not (args.opponent == ["oracle"] or (len(args.opponent) == 2 and args.opponent[0] == "llama-bench")):
        parser.error(f"--with: expected oracle, or llama-bench PATH, got {' '.join(args.opponent)}")
    if args.device != "cpu" and args.opponent == ["oracle"]:
        parser.error("--device: expected --with llama-bench PATH beside a GPU: the oracle computes on the CPU")
    types = CACHE_TYPES if args.opponent == ["oracle"] else CACHE_TYPES[1:]  # llama-bench has no f32
    if unknown := set(args.types) - set(types):
        parser.error(f"--types: expected some of {','.join(types)}, got {','.join(sorted(unknown))}")
    for output in (args.json, args.plot):
        if output and not output.resolve().parent.is_dir():
            parser.error(f"{output}: no such folder: {output.resolve().parent}")
    if args.plot and importlib.util.find_spec("matplotlib") is None:
        parser.error("--plot: matplotlib is missing: expected it to be installed; pip install matplotlib")
    return args


def open_for_both(args: argparse.Namespace) -> pysa.Model:
    """With room on the GPU for pysa's two sides, which are open together."""
    n_ctx = 2 * (max([0, *args.depths, *args.prompts, args.memory]) + (args.repeats + 1) * (args.n + 1) + SPARE)
    return open_model(args, n_ctx, args.types[0])


def one_prompt(args: argparse.Namespace) -> None:
    """What a process for --memory does: nothing of the other engine is loaded."""
    type_, name = args.child.split(",")
    n_ctx = args.memory + SPARE
    if name in THEIRS:
        setup = Setup(args.model, args.threads, type_, n_ctx, fill=False)
        OracleSide(THEIRS.index(name), setup).prompt(args.memory)
        return
    with open_for_both(args) as model:
        Run(args, model).side(name, type_, n_ctx).prompt(args.memory)


def main() -> None:
    """Measures, prints, writes."""
    args = parsed()
    try:
        if args.child:
            one_prompt(args)
            return
        chosen = find_device(args.device)
        with open_for_both(args) as model:
            run = Run(args, model)
            if chosen is not None and model.n_gpu_layers:
                run.results.model_device_bytes = chosen.free_bytes - (free_on(chosen.name) or 0)
            print("\n".join(run.all()))
            run.write()
    except pysa.PysaError as error:
        raise SystemExit(str(error)) from None
    if args.plot:
        plot(run.results, args.plot)


if __name__ == "__main__":
    main()
