"""What a GPU is to reach, beside what against_llama_cpp.py --json found there; nothing is measured here.

    python bench/gpu_targets.py 1b.json 8b.json

A figure is the worst of all cache types; ratios are to llama.cpp. Attention counts from 32,768 tokens on: before that,
its time is too little to be seen beside that of the weights.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from report import OURS, THEIRS, table

DEEP = 32768
Found = dict[str, float | None]  # by where it was measured


@dataclass(frozen=True)
class Target:
    """A figure to be reached, everywhere in `found`; at most 1 for `splits`, at least `bound` otherwise."""

    what: str
    bound: float
    found: Found
    is_most: bool = False

    def cells(self) -> list[str]:
        """What, bound, the worst figure and where, and whether it is enough."""
        known = {where: figure for where, figure in self.found.items() if figure is not None}
        wanted = f"at {'most' if self.is_most else 'least'} {self.bound:g}"
        if not known:
            return [self.what, wanted, "", "not measured"]
        where = (max if self.is_most else min)(known, key=lambda name: known[name])
        met = known[where] <= self.bound if self.is_most else known[where] >= self.bound
        return [self.what, wanted, f"{known[where]:.2f} ({where})", "met" if met else "missed"]


def prompt_ratios(results: dict[str, Any], side: str) -> Found:
    """Of prompts of DEEP tokens: tokens a second, by those of the better of llama.cpp's two."""
    speeds = {(row["type"], row["side"]): row["per_s"] for row in results["prompts"] if row["n"] == DEEP}
    found: Found = {}
    for type_ in dict.fromkeys(type_ for type_, _ in speeds):
        best = max((speeds[type_, theirs] for theirs in THEIRS if (type_, theirs) in speeds), default=None)
        found[type_] = speeds[type_, side] / best if best and (type_, side) in speeds else None
    return found


def targets(results: dict[str, Any]) -> list[Target]:
    """Of one model."""

    def decoding(figure: str, sides: Iterable[str], least: int, most: float = float("inf")) -> Found:
        rows = [row for row in results["decode"] if row["side"] in sides and least <= row["depth"] <= most]
        return {f"{row['type']}, {row['depth']:,}, {row['side']}": row[figure] for row in rows}

    return [
        Target("decoding, dense, at every depth", 1.0, decoding("ratio", ["pysa"], 0)),
        Target("decoding with the plan at 32,768", 1.2, decoding("ratio", ["plan"], DEEP, DEEP)),
        Target("decoding with the plan at 131,072", 1.35, decoding("ratio", ["plan"], 131072, 131072)),
        Target("attention's bytes, by the speed of copying", 0.8, decoding("share", OURS, DEEP)),
        Target("prompts of 32,768, dense", 1.0, prompt_ratios(results, "pysa")),
        Target("prompts of 32,768 with the plan", 1.2, prompt_ratios(results, "plan")),
        Target("splits of a step", 1, decoding("n_splits", OURS, 0), is_most=True),
    ]


def saved(results: dict[str, Any]) -> list[list[str]]:
    """GPU memory that sessions with the plan took less than dense ones, at the greatest depth."""
    taken = {tuple(name.split(", ")): n_bytes for name, n_bytes in results["device_bytes"].items()}
    depth = max((int(depth) for _, depth, _ in taken), default=0)
    by_formula = results["plan"].get(f"saving at {depth}")
    rows = []
    for type_ in dict.fromkeys(type_ for type_, _, _ in taken):
        dense, plan = (taken.get((type_, str(depth), side)) for side in OURS)
        if dense and plan is not None and by_formula is not None:
            what = f"GPU memory saved by the plan, {type_}, {depth:,}"
            rows.append([what, f"formula: {by_formula:.1%}", f"{1 - plan / dense:.1%}", "measured"])
    return rows


def main() -> None:
    """Prints a table per model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path)
    for path in parser.parse_args().results:
        results = json.loads(path.read_text(encoding="utf-8"))
        machine = results["machine"]
        where = [machine["device"], machine["card"], machine["driver"], machine["commit"]]
        print(f"{Path(results['model']).name}: {', '.join(text for text in where if text)}\n")
        rows = [*(target.cells() for target in targets(results)), *saved(results)]
        print("\n".join(table(["target", "wanted", "measured, the worst", ""], rows)) + "\n")


if __name__ == "__main__":
    main()
