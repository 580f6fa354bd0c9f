#!/usr/bin/env bash
# The main job on real input: convert a checkpoint with its sharing plan, look at the file, generate from it.
# Needs `pysa`, `pysa-convert` and `python` on the PATH; writes into a temporary folder, or into $1.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
if [[ $# -gt 0 ]]; then
    work="$1"
    mkdir -p "$work"
else
    work="$(mktemp -d)"
    trap 'rm -rf "$work"' EXIT
fi
checkpoint="$here/tiny-llama-stdlib"
gguf="$work/tiny-llama-stdlib.gguf"

say() { printf '\n== %s\n' "$*"; }

say "convert: a Hugging Face checkpoint and its plan become one GGUF"
pysa-convert "$checkpoint" -o "$gguf" --outtype f16 --plan "$checkpoint/plan.json" --force

say "inspect: the model, the plan, and what the cache costs"
pysa inspect "$gguf"

# Facts first, then some thousand characters of source, then a question: the answer is far outside the window.
python - > "$work/prompt.txt" <<'PYTHON'
import textwrap
from pathlib import Path

source = Path(textwrap.__file__).read_text(encoding="utf-8")
facts = "set window = green\nset letter = seven\nset paper = index\nset color = method\n"
print(facts + source[3000:6600].strip() + "\nget paper =", end="")
PYTHON
head -n 4 "$work/prompt.txt"
printf '... %s characters of source ...\n' "$(wc -c < "$work/prompt.txt")"
tail -n 1 "$work/prompt.txt"
printf '\n'

say "generate with the split cache"
pysa generate "$gguf" -f "$work/prompt.txt" -n 16

say "the same, dense: every head keeps its own keys"
pysa generate "$gguf" -f "$work/prompt.txt" -n 16 --plan dense
