#!/usr/bin/env bash
# Checks the CPU kernels for arm64 on any Linux machine: cross-compiles them with the few ggml sources that they need and runs
# the check in an emulator. Needs a cross compiler and qemu, on Debian: apt-get install g++-aarch64-linux-gnu qemu-user
# Usage: check_arm64.sh [GGML_DIR]   default: the pinned source that a build has left in PYSA_CACHE_DIR
#        CXX, CC and RUN name another compiler and emulator; RUN= runs here.
set -euo pipefail
root="$(cd "$(dirname "$0")/../.." && pwd)"
cache="${PYSA_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/pysa}"
ggml="${1:-$(find "$cache" -maxdepth 5 -type d -path '*/vendor/llama.cpp/ggml' 2>/dev/null | sort | tail -n 1)}"
if [[ ! -f "$ggml/src/ggml-quants.c" ]]; then
    echo "check_arm64.sh: no ggml source: expected src/ggml-quants.c in \"$ggml\"; build pysa once or name the folder" >&2
    exit 1
fi
cc="${CC:-aarch64-linux-gnu-gcc}"
cxx="${CXX:-aarch64-linux-gnu-g++}"
read -r -a run <<< "${RUN-qemu-aarch64}"

build="$(mktemp -d)"
trap 'rm -rf "$build"' EXIT
# Sections of their own: what the check does not call is dropped before anyone misses the rest of ggml.
flags=(-c -ffunction-sections -fdata-sections "-I$ggml/include" "-I$ggml/src" "-I$build")
printf '#define GGML_VERSION ""\n#define GGML_COMMIT ""\n' > "$build/ggml-version.h"  # ggml's CMake makes it
for source in "$ggml"/src/{ggml,ggml-quants}.c; do
    "$cc" -O2 -w -D_GNU_SOURCE "${flags[@]}" "$source" -o "$build/$(basename "$source").o"
done
"$cxx" -std=c++17 -O2 -w "${flags[@]}" "$ggml/src/ggml-threading.cpp" -o "$build/ggml-threading.o"
for source in "$root"/native/src/ops/cpu_kernels{,_avx2,_avx512,_neon,_scalar}.cpp "$root"/tests/native/kernel_check*.cpp; do
    "$cxx" -std=c++17 -O3 -Wall -Wextra -Werror -Wno-psabi "-I$root/native/include" "-I$root/native/src" "${flags[@]}" \
        "$source" -o "$build/$(basename "$source").o"
done
"$cxx" -static -Wl,--gc-sections "$build"/*.o -o "$build/kernel_check"
"${run[@]}" "$build/kernel_check"
