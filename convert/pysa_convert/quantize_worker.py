"""libllama's quantiser in a process of its own: a file that it dislikes may abort the process.

`main` runs in the child, `quantize` is the parent's side.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from pysa.errors import ConvertError, PysaError
from pysa_convert.prove import native

# what --outtype offers beyond the types that numpy writes; those that need an importance matrix are left out
TYPES = ("q4_1", "q5_0", "q5_1", "q2_k", "q3_k_s", "q3_k_m", "q3_k_l", "q4_k_s", "q4_k_m", "q5_k_s", "q5_k_m", "q6_k")

# Not `python -m`: it would look for pysa in the current folder first, where a source tree without the engine may lie.
CHILD = (
    "import sys; sys.path = [p for p in sys.path if p]; "
    "from pysa_convert.quantize_worker import main; sys.exit(main(sys.argv[1:]))"
)


def quantize(source: Path, target: Path, kind: str, n_threads: int) -> None:
    """Quantises `source` to `target` in a child process.

    Raises:
        ConvertError: the quantiser refused, or ended the process.
    """
    command = [sys.executable, "-c", CHILD, str(source), str(target), kind, str(n_threads)]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode == 0 and target.is_file():
        return
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    reason = lines[-1].strip() if lines else "no message"
    ending = f"ended by signal {-done.returncode}" if done.returncode < 0 else f"failed with status {done.returncode}"
    raise ConvertError(f"{kind}: libllama's quantiser {ending}: {reason}")


def main(arguments: list[str]) -> int:
    """The child: quantises, or prints one line and returns 1."""
    source, target, kind, n_threads = arguments
    try:
        native().quantize(source, target, kind, int(n_threads))
    except PysaError as error:
        print(error, file=sys.stderr)
        return 1
    return 0
