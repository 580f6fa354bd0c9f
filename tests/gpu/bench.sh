#!/usr/bin/env bash
# Measures what a GPU is to reach, against llama.cpp in the same run: bench.sh PYTHON BUILD DEVICE; run.sh calls it. Models are made
# in PYSA_BENCH_DIR if they are not there, results go to OUT. PYSA_BENCH_QUICK=1: the small shape at two depths. The other variables
# leave out parts, or try it without a card: PYSA_BENCH_SHAPES=tiny PYSA_BENCH_PLAN=save30 PYSA_BENCH_DEPTHS=0,256 ... bench.sh ... cpu
set -uo pipefail
cd "$(dirname "$0")/../.."
python=$1 build=$2 device=$3
models=${PYSA_BENCH_DIR:-build/bench-models} out=${OUT:-build/bench-results}
shapes="llama-3.2-1b llama-3.1-8b" depths=0,4096,32768,131072
if [ "${PYSA_BENCH_QUICK:-0}" = 1 ]; then
    shapes=llama-3.2-1b depths=0,32768
fi
text=${PYSA_BENCH_TEXT-tests/property/test_cache.py} # Python, as the example's model has read; none if empty
mkdir -p "$models" "$out"
status=0 results=()

for shape in ${PYSA_BENCH_SHAPES:-$shapes}; do
    model=$models/$shape.gguf result=$out/$shape.json
    rm -f "$result"
    if [ ! -f "$model" ]; then
        { "$python" bench/make_model.py "$shape" -o "$model.part" && mv "$model.part" "$model"; } || { status=1 && continue; }
    fi
    "$python" bench/against_llama_cpp.py "$model" --with llama-bench "$build/bin/llama-bench" --device "$device" -ngl all \
        -d "${PYSA_BENCH_DEPTHS:-$depths}" --prompts "${PYSA_BENCH_PROMPTS:-512,32768}" --types "${PYSA_BENCH_TYPES:-f16,q8_0}" \
        --plan "${PYSA_BENCH_PLAN:-save35}" -n 32 -r "${PYSA_BENCH_REPEATS:-3}" --json "$result" | tee "$out/$shape.md" || status=1
    [ ! -f "$result" ] || results+=("$result")
done

if [ -n "$text" ]; then # random weights weigh all alike, so what is left out is measured on a model that was trained
    model=$models/tiny-llama-stdlib.gguf
    [ -f "$model" ] || "$python" -m pysa_convert examples/tiny-llama-stdlib -o "$model" --outtype f16 || status=1
    "$python" bench/value_skip.py "$model" --text "$text" --windows 1 --bounds 0,0.0003,0.01 --device "$device" -ngl all |
        tee "$out/value_skip.md" || status=1
fi

[ ${#results[@]} -eq 0 ] || "$python" bench/gpu_targets.py "${results[@]}" | tee "$out/targets.md" || status=1
exit $status
