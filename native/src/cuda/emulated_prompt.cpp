// The other half of emulated.cpp, so that they compile side by side.
#include "cuda/prompt_128.cu"
#include "cuda/prompt_256.cu"
#include "cuda/prompt_32.cu"
#include "cuda/prompt_64.cu"
#include "cuda/prompt_96.cu"
