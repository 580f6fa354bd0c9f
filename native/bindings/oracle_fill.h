// A llama.cpp sequence made longer without evaluating anything: for speed at a depth, never for what the model says there.
#pragma once

#include <cstdint>
#include <vector>

// The state of a sequence as llama_state_seq_get_data gives it, with `sources.size()` positions: position i has the K and V
// rows of position sources[i] of `state`. For a cache of one stream without extra data per cell, V transposed or not;
// std::runtime_error for anything else. Source: llama-kv-cache.cpp of the pinned llama.cpp, state_write.
std::vector<uint8_t> refilled_state(const std::vector<uint8_t> & state, const std::vector<uint32_t> & sources);
