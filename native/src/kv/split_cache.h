// The split KV cache of one session: full rows and window rows, K and V apart, on one backend buffer type.
// Grows in whole blocks of rows, one layer at a time. Touched in two steps: reserve (may fail, changes nothing that is read),
// then commit. Window rows that are about to be overwritten are logged where a checkpoint, or the evaluation's undo, needs them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/pages.h"
#include "device/buffer.h"
#include "ggml-backend.h"
#include "kv/cache_layout.h"
#include "kv/ring.h"
#include "kv/ring_log.h"
#include "pysa/error.h"

namespace pysa {

struct CacheTypes {
    ggml_type k = GGML_TYPE_F16;
    ggml_type v = GGML_TYPE_F16;
};

// The tensors of one layer; null where the layer keeps no such rows. Rows of a head are adjacent.
struct LayerCache {
    ggml_tensor * k_full = nullptr;  // [n_embd_head_k, n_rows, n_k_full]
    ggml_tensor * v_full = nullptr;  // [n_embd_head_v, n_rows, n_v_full]
    ggml_tensor * k_ring = nullptr;  // [n_embd_head_k, n_window_rows, n_k_ring]
    ggml_tensor * v_ring = nullptr;  // [n_embd_head_v, n_window_rows, n_v_ring]
};

class SplitCache {
  public:
    static constexpr int64_t n_block = 256;  // rows

    // buffer_types: of each layer.
    SplitCache(const HParams & hp, CacheLayout layout, CacheTypes types,
               std::vector<ggml_backend_buffer_type_t> buffer_types, int64_t n_ctx);

    const CacheLayout & layout() const { return layout_; }
    const CacheTypes & types() const { return types_; }
    const Ring & ring() const { return ring_; }
    const LayerCache & layer(int32_t il) const { return layers_[il].tensors; }
    int64_t n_past() const { return n_past_; }
    int64_t n_rows() const { return n_rows_; }
    int64_t n_window_rows() const { return std::min(ring_.n_rows, n_rows_); }
    // Whether a layer's rows are in a device's memory instead of the host's.
    bool is_on_device(int32_t il) const { return !ggml_backend_buft_is_host(buffer_types_[il]); }
    uint64_t generation() const { return generation_; }  // another one: other tensors

    // Bytes of a device's memory that reserve() leaves for what else a step needs there.
    void keep_free(int64_t n_bytes) { n_kept_free_ = n_bytes; }
    // Makes room for positions [0, n). DeviceError if memory is not to be had; the rows held stay as they are.
    void reserve(int64_t n);
    // Positions [0, n_past + n) hold rows now.
    void commit(int64_t n);
    // The next n positions will be written: logs the window rows they overwrite, as far as someone needs them. Before every step.
    void log_overwritten(int64_t n);

    // Whether truncate() can go there exactly: the ring still has the window before it, or a checkpoint lies there.
    bool can_truncate(int64_t n) const;
    // The largest position <= n that truncate() can go to.
    int64_t rollback_position(int64_t n) const;
    void truncate(int64_t n);
    void clear();

    // Lets truncate() come back to n_past. The oldest ones go when there are many, or their rows take more than four windows.
    void checkpoint();

    // Brackets an evaluation of n positions: undo() makes the cache what it was at hold(); one of the two ends it.
    void hold(int64_t n);
    void release() { log_.release(); }
    void undo();

    const RingLog & log() const { return log_; }
    RingLog & log() { return log_; }

    CacheBytes allocated() const;
    int64_t device_bytes() const;  // of these, in a device's memory
    int64_t row_bytes_k() const { return int64_t(ggml_row_size(types_.k, hp_.n_embd_head_k)); }
    int64_t row_bytes_v() const { return int64_t(ggml_row_size(types_.v, hp_.n_embd_head_v)); }

    // Visits every stretch of adjacent bytes that positions [0, n_past) occupy in full tensors and [0, n_written) in rings, layer by
    // layer, in a fixed order.
    template <class Visit>
    void for_each_stretch(int64_t n_past, int64_t n_written, bool ring_only, Visit && visit) const {
        for (const Layer & layer : layers_) {
            const LayerCache & t = layer.tensors;
            for (ggml_tensor * tensor : {t.k_full, t.v_full, t.k_ring, t.v_ring}) {
                const bool is_ring = tensor == t.k_ring || tensor == t.v_ring;
                if (!tensor || (ring_only && !is_ring)) continue;
                const int64_t n = is_ring ? std::min(n_written, ring_.n_rows) : n_past;
                for (int64_t head = 0; head < tensor->ne[2]; ++head)
                    visit(tensor, size_t(head) * tensor->nb[2], size_t(n) * tensor->nb[1]);
            }
        }
    }
    // The same of window rows of positions [begin, end) among logged ones; `at`: where a stretch lies in their bytes.
    template <class Visit>
    void for_each_ring_stretch(const LoggedRows & rows, int64_t begin, int64_t end, Visit && visit) const {
        size_t head_at = 0;
        for (const Layer & layer : layers_)
            for (ggml_tensor * tensor : {layer.tensors.k_ring, layer.tensors.v_ring})
                for (int64_t head = 0; tensor && head < tensor->ne[2]; ++head) {
                    for (int64_t pos = begin; pos < end;) {
                        const int64_t row = ring_.row(pos), n_rows = std::min(end - pos, ring_.n_rows - row);
                        visit(tensor, head * tensor->nb[2] + row * tensor->nb[1], size_t(n_rows) * tensor->nb[1],
                              head_at + size_t(pos - rows.first) * tensor->nb[1]);
                        pos += n_rows;
                    }
                    head_at += size_t(rows.n_stored) * tensor->nb[1];
                }
    }
    int64_t ring_row_bytes() const;
    void restore_position(int64_t n_past, int64_t n_written);

  private:
    struct ContextDeleter {
        void operator()(ggml_context * ctx) const { ggml_free(ctx); }
    };
    struct Layer {
        LayerCache tensors;
        int64_t n_rows = 0;
        std::unique_ptr<ggml_context, ContextDeleter> ctx;
        Pages pages;  // of the buffer, where the host has it; zeros at first
        BufferPtr buffer;
    };

    void return_to(const Checkpoint & checkpoint);
    bool reads_are_slow() const;
    Layer allocate_layer(size_t il, int64_t n_rows) const;                     // the rows are not yet set
    void place_tensors(Layer & layer, ggml_backend_buffer_type_t type) const;  // layer.buffer is null if that fails
    void check_devices(int64_t n_rows) const;
    DeviceError out_of_memory(int64_t n_rows, ggml_backend_buffer_type_t type) const;
    std::string advice(ggml_backend_buffer_type_t type) const;

    const HParams hp_;
    const CacheLayout layout_;
    const CacheTypes types_;
    const std::vector<ggml_backend_buffer_type_t> buffer_types_;
    const int64_t n_ctx_;
    Ring ring_;
    std::vector<Layer> layers_;
    int64_t n_past_ = 0;
    int64_t n_rows_ = 0;
    uint64_t generation_ = 0;
    int64_t n_kept_free_ = 0;
    RingLog log_;
};

}  // namespace pysa
