#!/usr/bin/env bash
# The fused attention under ThreadSanitizer: tests/native/check_threads.sh BUILD_DIR, a build folder of this tree, whose ggml is
# linked as it is (the check makes and joins its threads itself).
set -euo pipefail
root="$(cd "$(dirname "$0")/../.." && pwd)"
build="${1:?expected the build folder}"
source="$(sed -n 's/^llama.cpp_SOURCE_DIR:STATIC=//p' "$build/CMakeCache.txt")"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

flags=(-std=c++17 -O1 -g -fsanitize=thread -Wall -Wextra -Wno-psabi -I"$root/native/include" -I"$root/native/src"
    -I"$source/ggml/include")
compile() { "${CXX:-g++}" "${flags[@]}" "${@:2}" -c "$1" -o "$work/$(basename "$1").o"; }
src="$root/native/src"
for file in "$root/tests/native/thread_check.cpp" "$src"/base/{error,huge_pages,pages}.cpp "$src"/kv/{cache_layout,ring_log,split_cache}.cpp \
    "$src"/ops/{attn_table,cpu_decode,cpu_prompt,cpu_kernels,cpu_kernels_scalar,cpu_kernels_neon,cpu_kernels_avx512}.cpp; do
    compile "$file"
done
if [[ "$(uname -m)" == x86_64 ]]; then
    compile "$src/ops/cpu_kernels_avx2.cpp" -mavx2 -mfma -mf16c
else
    compile "$src/ops/cpu_kernels_avx2.cpp"
fi
"${CXX:-g++}" -fsanitize=thread "$work"/*.o "$build/llama.cpp/ggml/src/libggml-cpu.a" "$build/llama.cpp/ggml/src/libggml-base.a" \
    -o "$work/thread_check" -lpthread -ldl
"$work/thread_check"
