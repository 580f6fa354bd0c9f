// What the GPU kernels of the shared attention (ops/shared_attn.h) are told: the layer, where its rows lie, room to work in.
// Plain data of device pointers, passed by value; the one header between the engine and the kernels. No CUDA types.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pysa::gpu {

enum class RowType : int32_t { f32, f16, bf16, q8_0, q4_0 };
enum class Kind : int32_t { owner, follower, local };

constexpr int32_t n_chunk = 128;       // rows of a chunk, of one token
constexpr int32_t n_most_splits = 64;  // of a KV head's chunks, whose sums are added up at the end
constexpr int32_t n_tile_rows = 64;    // rows of a tile of shared weights, of several tokens

// A query head of a layer. Owners and, of "keys", followers score the distance; slots: as in AttnHead.
struct Head {
    Kind kind;
    int32_t scores_far;  // reads distant keys itself
    int32_t slot_in;     // -1: none
    int32_t slot_out;
    float bias;
};

// Where the rows of a KV head of a layer lie: row 0 of the head; rows are adjacent.
struct KvHead {
    const char * k_near;  // of the window: a ring's rows, or full rows; null: the plan has no window
    const char * v_near;
    const char * k_far;  // distant keys, of the layer or of its source; null: no head of the group scores the distance
    const char * v_far;  // null: all heads of the group are local
    int32_t k_is_ring;   // of the window's rows
    int32_t v_is_ring;
};

// What changes from step to step, in device memory, so that a captured graph can be launched again.
struct Step {
    int32_t n_past;    // position of the first query
    int32_t n_tokens;  // queries
};

// What does not change during a session.
struct Shape {
    RowType type_k, type_v;
    int32_t n_embd_k, n_embd_v;  // of a head
    int32_t n_head, n_head_kv;
    int32_t n_sink, n_recent;  // of the plan; n_recent 0: no window, all positions up to the query's are distant
    int32_t ring_rows;         // of a ring, sinks included
    int32_t n_slots;
    float kq_scale;
    float skip_gate;  // 1: never
    float v_skip;     // single tokens only; 0: exact

    int32_t n_gqa() const { return n_head / n_head_kv; }
};

// Sums over layers, KV heads and tokens since they were last set to zero; as SkipReport.
struct SkipStats {
    unsigned long long n_values;       // distant value rows in reach
    unsigned long long n_values_read;  // of which were read
    float dropped_max;                 // largest share of a head's distant weights left out
    float dropped_sum;
    unsigned long long n_heads;  // dropped_sum is over so many
};

// A head's softmax over both parts, once all its scores are known.
struct Line {
    float far_max;     // of the distance, without the bias
    float far_sum;     // of e^(score - far_max)
    float near_scale;  // a near chunk's weights times e^(its max - near_max) times this are shares of the whole
    float near_max;
    float far_scale;  // the same of far chunks, with e^(its max - far_max); 0 where the gate shuts the distance out
};

// Room for one token's attention. Weights are f16 e^(score - maximum of the chunk); parts are {maximum, sum} of a chunk.
struct DecodeRoom {
    uint16_t * near_weights;  // [n_chunk, n_near, n_head]
    uint16_t * far_weights;   // [n_chunk, n_far, n_head]
    uint16_t * slot_weights;  // [n_chunk, n_far, n_slots]
    float * near_parts;       // [2, n_near, n_head]
    float * far_parts;        // [2, n_far, n_head]
    float * slot_parts;       // [2, n_far, n_slots]
    uint32_t * slot_lists;    // [n_chunk / 32, n_far, n_slots]: value rows worth reading; used if v_skip > 0
    Line * lines;             // [n_head]
    float * sums;             // [n_embd_v, n_gqa, n_most_splits, n_head_kv]
    float * dropped;          // [n_head, n_most_splits]: shares of a head's distance that a split left out
    uint32_t * arrived;       // [2, n_head_kv]: blocks that are done with score and weigh; 0 between launches
    SkipStats * stats;        // kept between steps
    int32_t n_near, n_far;    // chunks that there is room for
};

// Room for several tokens' attention: what owners leave for their followers. Weights as above, by tile of n_tile_rows rows, whose order
// in a tile is the kernel's own; maxima are to base 2.
struct PromptRoom {
    uint16_t * slot_weights;    // [n_tile_rows, n_tokens, n_tiles, n_slots]
    float * slot_parts;         // [2, n_tokens, n_tiles, n_slots]
    int32_t n_tokens, n_tiles;  // that there is room for
};

// One layer's attention of one step. Strides in bytes.
struct Call {
    Shape shape;
    const Head * heads;       // [n_head] of the layer, device memory
    const KvHead * kv_heads;  // [n_head_kv], device memory
    const Step * step;        // device memory
    const float * q;          // [n_embd_k, n_head, n_tokens]; null: the layer scores nothing
    int64_t q_head, q_token;
    const char *
        k_cur;  // the step's own rows, in the cache's types: the ring takes them only afterwards; null: no window
    int64_t k_cur_row, k_cur_head;
    const char * v_cur;
    int64_t v_cur_row, v_cur_head;
    float * dst;  // [n_embd_v * n_head, n_tokens], contiguous
    DecodeRoom decode;
    PromptRoom prompt;
};

// The kernels, once for CUDA and once for the emulator. `stream` is a cudaStream_t; null for the emulator.
struct AttnKernels {
    const char * name;

    // Whether there are kernels for these head sizes and types.
    bool (*supports)(const Shape & shape);

    // Bytes of room, and where its parts are from `base` on; base may be null to ask for the bytes alone. Rows: positions that the cache
    // has room for. The decode room must be zeros at first.
    size_t (*place_decode)(const Shape & shape, int64_t n_rows, char * base, DecodeRoom & room);
    size_t (*place_prompt)(const Shape & shape, int64_t n_rows, int64_t n_tokens, char * base, PromptRoom & room);

    // Starts one layer's attention; the grids are for n_kv positions at most, the step in device memory says how many there are.
    // Returns null, or what went wrong.
    const char * (*decode)(const Call & call, int64_t n_kv, void * stream);
    const char * (*prompt)(const Call & call, int64_t n_tokens, int64_t n_kv, void * stream);
};

const AttnKernels & cuda_attn_kernels();
const AttnKernels & emulated_attn_kernels();

}  // namespace pysa::gpu
