#!/usr/bin/env bash
# Builds with Vulkan and runs tests/gpu/test_vulkan.py: vulkan.sh PYTHON BUILD JOBS. Options for CMake come from PYSA_CMAKE_ARGS.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=$1 build=$2 jobs=$3
# shellcheck disable=SC2086
cmake -S . -B "$build" -G Ninja -DPYSA_VULKAN=ON -DPYSA_TESTS=ON -DPython_EXECUTABLE="$(command -v "$python")" ${PYSA_CMAKE_ARGS:-}
cmake --build "$build" --target _native -j "$jobs"
package=$(pwd)/$build/package
tests=$(pwd)/tests
rm -rf "$package"
mkdir -p "$package"
cp -r pysa "$package/"
rm -f "$package"/pysa/*.so
cp "$build"/native/_native*.so "$package/pysa/"
# ggml leaves out devices that are processors, such as lavapipe, unless they are named; with f16 sums its limits would be wide.
export GGML_VK_VISIBLE_DEVICES=${GGML_VK_VISIBLE_DEVICES:-0} GGML_VK_DISABLE_F16=1
cd "$package" # Python looks here first
"$python" -c 'import pysa; names = [d.name for d in pysa.devices()]; print(names); assert "Vulkan0" in names'
status=0
"$python" -m pytest -q -p no:cacheprovider "$tests/gpu/test_vulkan.py" || status=$?
[ "$status" -lt 128 ] || echo "the driver crashed: lavapipe of Mesa 22.3 does, of 25.0 it does not; see docs/gpu.md" >&2
exit "$status"
