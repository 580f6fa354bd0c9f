// The table of kernels, once for CUDA and once for the emulator: what is supported, room, dispatch by type.
#include "cuda/decode_chunks.h"
#include "cuda/decode_launch.h"
#include "cuda/prompt_launch.h"

namespace pysa::gpu {
inline namespace PYSA_GPU_FLAVOUR {

namespace {

constexpr size_t alignment = 256;

// Hands out parts of a room one after the other; with no base it only counts.
class Placer {
  public:
    explicit Placer(char * base) : base_(base) {}

    template <class T> void place(T *& part, int64_t n) {
        part = base_ ? reinterpret_cast<T *>(base_ + n_bytes_) : nullptr;
        n_bytes_ += (size_t(n) * sizeof(T) + alignment - 1) / alignment * alignment;
    }
    size_t n_bytes() const { return n_bytes_; }

  private:
    char * base_;
    size_t n_bytes_ = 0;
};

bool is_head_size(int32_t n) {
    return with_head_size(n, [](auto) { return true; }, false);
}

// One head size, as several tokens need it.
bool supports(const Shape & shape) {
    return is_head_size(shape.n_embd_k) && shape.n_embd_k == shape.n_embd_v && shape.n_head_kv > 0 &&
           shape.n_head % shape.n_head_kv == 0 && shape.n_gqa() <= n_most_gqa;
}

int64_t n_far_rows(const Shape & shape, int64_t n_rows) {
    const int64_t n = n_rows - shape.n_recent - shape.n_sink;
    return n > 0 ? n : 0;
}

size_t place_decode(const Shape & shape, int64_t n_rows, char * base, DecodeRoom & room) {
    room = {};
    room.n_near = shape.n_recent > 0 ? Chunks::count(shape.n_sink) + Chunks::count(shape.n_recent) : 0;
    room.n_far = int32_t((n_far_rows(shape, n_rows) + n_chunk - 1) / n_chunk);
    const int64_t n_near = int64_t(room.n_near) * shape.n_head, n_far = int64_t(room.n_far) * shape.n_head;
    const int64_t n_shared = int64_t(room.n_far) * shape.n_slots;
    Placer placer(base);
    placer.place(room.near_weights, n_chunk * n_near);
    placer.place(room.far_weights, n_chunk * n_far);
    placer.place(room.slot_weights, n_chunk * n_shared);
    placer.place(room.near_parts, 2 * n_near);
    placer.place(room.far_parts, 2 * n_far);
    placer.place(room.slot_parts, 2 * n_shared);
    placer.place(room.slot_lists, n_chunk / 32 * n_shared);
    placer.place(room.lines, shape.n_head);
    placer.place(room.sums, int64_t(shape.n_embd_v) * shape.n_head * n_most_splits);
    placer.place(room.dropped, int64_t(shape.n_head) * n_most_splits);
    placer.place(room.arrived, 2 * shape.n_head_kv);
    placer.place(room.stats, 1);
    return placer.n_bytes();
}

size_t place_prompt(const Shape & shape, int64_t n_rows, int64_t n_tokens, char * base, PromptRoom & room) {
    room = {};
    room.n_tokens = int32_t(n_tokens);
    room.n_tiles = int32_t((n_far_rows(shape, n_rows) + n_tile_rows - 1) / n_tile_rows);
    const int64_t n = n_tokens * room.n_tiles * shape.n_slots;
    Placer placer(base);
    placer.place(room.slot_weights, n_tile_rows * n);
    placer.place(room.slot_parts, 2 * n);
    return placer.n_bytes();
}

// A few blocks for every processor, so that the reads of some go on while others meet or end.
int splits(const Shape & shape, int n_chunks) {
    constexpr int n_per_processor = 4;
    const int n = (n_per_processor * n_processors() + shape.n_head_kv - 1) / shape.n_head_kv;
    const int most = n < n_most_splits ? n : n_most_splits;
    return n_chunks < 1 ? 1 : n_chunks < most ? n_chunks : most;
}

const char * decode(const Call & call, int64_t n_kv, void * stream) {
    using Launch = const char * (*)(const Call &, int, void *);
    static constexpr Launch score[] = {launch_score<RowType::f32>, launch_score<RowType::f16>,
                                       launch_score<RowType::bf16>, launch_score<RowType::q8_0>,
                                       launch_score<RowType::q4_0>};
    static constexpr Launch weigh[] = {launch_weigh<RowType::f32>, launch_weigh<RowType::f16>,
                                       launch_weigh<RowType::bf16>, launch_weigh<RowType::q8_0>,
                                       launch_weigh<RowType::q4_0>};
    const Chunks chunks(call.shape, int(n_kv - 1));
    const int n_chunks = chunks.n_near + chunks.n_far;
    const char * error = score[int(call.shape.type_k)](call, n_chunks > 0 ? n_chunks : 1, stream);
    return error ? error : weigh[int(call.shape.type_v)](call, splits(call.shape, n_chunks), stream);
}

const char * prompt(const Call & call, int64_t n_tokens, int64_t, void * stream) {
    return launch_prompt(call, n_tokens, stream);
}

}  // namespace

const AttnKernels & attn_kernels(const char * name) {
    static AttnKernels kernels = {nullptr, supports, place_decode, place_prompt, decode, prompt};
    kernels.name = name;
    return kernels;
}

}  // namespace PYSA_GPU_FLAVOUR

#ifdef __CUDACC__
const AttnKernels & cuda_attn_kernels() { return on_cuda::attn_kernels("cuda"); }
#endif

}  // namespace pysa::gpu
