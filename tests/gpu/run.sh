#!/usr/bin/env bash
# All that a GPU is needed for: run.sh PYTHON BUILD ARCHITECTURES JOBS. Options for CMake come from PYSA_CMAKE_ARGS, those of the
# benches are in bench.sh; PYSA_BENCH=0 leaves them out. A part that fails does not stop the others.
set -uo pipefail
cd "$(dirname "$0")/../.."
python=$1 build=$2 architectures=$3 jobs=$4
failed=()
part() { # NAME COMMAND...
    local name=$1
    shift
    echo "== $name"
    "$@" || failed+=("$name")
}

# shellcheck disable=SC2086
cmake -S . -B "$build" -G Ninja -DPYSA_CUDA=ON -DPYSA_TESTS=ON -DPYSA_LLAMA_BENCH=ON "-DPYSA_CUDA_ARCHITECTURES=$architectures" \
    -DPython_EXECUTABLE="$(command -v "$python")" ${PYSA_CMAKE_ARGS:-} &&
    cmake --build "$build" --target _native _oracle llama-bench -j "$jobs" || exit 1
package=$(pwd)/$build/package
rm -rf "$package" && mkdir -p "$package" && cp -r pysa "$package/" && rm -f "$package"/pysa/*.so
cp "$build"/native/_native*.so "$build"/native/_oracle*.so "$package/pysa/"
root=$(pwd)
export PYTHONPATH=$package:$root/convert
cd "$package" || exit 1 # Python looks here first

part devices "$python" -m pysa.cli.main devices || exit 1
device=$("$python" -c 'import pysa; print(pysa.devices()[0].name)') || exit 1
part tests "$python" -m pytest -q -p no:cacheprovider -m gpu "$root/tests"
if command -v compute-sanitizer > /dev/null; then
    for tool in memcheck racecheck; do
        part "$tool" compute-sanitizer --tool "$tool" --error-exitcode 3 "$python" "$root/tests/gpu/decode_1000.py" "$device"
    done
else
    echo "compute-sanitizer is not here: not run"
    part decode "$python" "$root/tests/gpu/decode_1000.py" "$device"
fi
if [ "${PYSA_BENCH:-1}" = 1 ]; then
    part bench "$root/tests/gpu/bench.sh" "$python" "$root/$build" "$device"
fi
echo "failed: ${failed[*]:-nothing}"
[ ${#failed[@]} -eq 0 ]
