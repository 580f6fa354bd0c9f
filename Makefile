# Checks that the README's test command does not run. GPU: what to build for, such as 86 or "80;90".
PYTHON ?= python
BUILD ?= build/gpu
GPU ?= native
JOBS ?= $(shell nproc)

.PHONY: test-gpu test-vulkan compile-gpu

# On a machine with an NVIDIA card: builds with CUDA, runs the tests marked gpu, 1,000 tokens under compute-sanitizer, and the benches.
test-gpu:
	tests/gpu/run.sh "$(PYTHON)" "$(BUILD)" "$(GPU)" "$(JOBS)"

# The composed attention on Vulkan; Mesa's lavapipe will do. Debian 13: mesa-vulkan-drivers libvulkan-dev glslc spirv-headers
# (Debian 12's headers are too old, its lavapipe crashes: docs/gpu.md).
test-vulkan:
	tests/gpu/vulkan.sh "$(PYTHON)" build/vulkan "$(JOBS)"

# Our kernels for every architecture that is supported; no card is needed. CUDA before 12.8: ARCHITECTURES without 120.
ARCHITECTURES ?= 75-real;80-real;86-real;89-real;90-real;120-real
compile-gpu:
	cmake -S . -B build/compile-gpu -G Ninja -DPYSA_CUDA=ON "-DPYSA_CUDA_ARCHITECTURES=$(ARCHITECTURES)" \
		-DPython_EXECUTABLE="$$(command -v $(PYTHON))"
	cmake --build build/compile-gpu --target pysa_cuda_kernels pysa_cuda_stream -j $(JOBS)
