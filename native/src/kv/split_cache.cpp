#include "kv/split_cache.h"

#include <atomic>
#include <map>
#include <string>

#include "base/huge_pages.h"
#include "device/gpu.h"
#include "ggml-alloc.h"
#include "ggml-cpu.h"
#include "pysa/error.h"

namespace pysa {

namespace {

constexpr size_t n_most_checkpoints = 32;
// Reading a device's memory costs by the piece, so rows are logged some tokens before they are overwritten.
constexpr int64_t n_log_ahead = 64;
constexpr int64_t n_most_windows =
    4;  // what their rows may take; the newest one is kept whatever it takes, a window at most

// Of all caches: another one may come to lie where this one was.
std::atomic<uint64_t> last_generation{0};

// A head's rows, to where there is room for more of them; within a device if both are there.
void copy_head(ggml_tensor * from, ggml_tensor * to, int64_t head) {
    if (ggml_backend_buffer_is_host(from->buffer)) {
        ggml_backend_tensor_set(to, static_cast<const uint8_t *>(from->data) + head * from->nb[2], head * to->nb[2],
                                from->nb[2]);
        return;
    }
    std::unique_ptr<ggml_context, decltype(&ggml_free)> ctx(ggml_init({2 * ggml_tensor_overhead(), nullptr, true}),
                                                            ggml_free);
    const auto rows = [&](ggml_tensor * of) {
        ggml_tensor * view = ggml_view_2d(ctx.get(), of, of->ne[0], from->ne[1], of->nb[1], head * of->nb[2]);
        ggml_backend_view_init(view);
        return view;
    };
    ggml_backend_tensor_copy(rows(from), rows(to));
}

// Rows not yet written become zeros: weights of zero are multiplied by them, so they must be finite.
void keep_rows(ggml_tensor * from, ggml_tensor * to, bool is_zero) {
    if (!to) return;
    const size_t n_kept = from ? from->nb[2] : 0;  // bytes of a head
    for (int64_t head = 0; head < to->ne[2]; ++head) {
        if (from) copy_head(from, to, head);
        if (!is_zero) ggml_backend_tensor_memset(to, 0, head * to->nb[2] + n_kept, to->nb[2] - n_kept);
    }
}

}  // namespace

SplitCache::SplitCache(const HParams & hp, CacheLayout layout, CacheTypes types,
                       std::vector<ggml_backend_buffer_type_t> buffer_types, int64_t n_ctx)
    : hp_(hp), layout_(std::move(layout)), types_(types), buffer_types_(std::move(buffer_types)), n_ctx_(n_ctx) {
    ring_.n_sink = layout_.n_sink;
    ring_.n_recent = layout_.n_recent;
    ring_.n_rows = layout_.window_rows();
    layers_.resize(layout_.layers.size());
}

SplitCache::Layer SplitCache::allocate_layer(size_t il, int64_t n_rows) const {
    const LayerLayout & layout = layout_.layers[il];
    const ggml_backend_buffer_type_t type = buffer_types_[il];
    Layer layer;
    layer.n_rows = n_rows;
    ggml_init_params params = {4 * ggml_tensor_overhead(), nullptr, true};
    layer.ctx.reset(ggml_init(params));
    if (!layer.ctx) throw DeviceError("KV cache: cannot allocate tensor headers; close other sessions");
    auto make = [&](ggml_type type, int64_t n_embd_head, int64_t rows, int32_t n_heads) -> ggml_tensor * {
        return rows == 0 || n_heads == 0 ? nullptr
                                         : ggml_new_tensor_3d(layer.ctx.get(), type, n_embd_head, rows, n_heads);
    };
    const int64_t n_window = std::min(ring_.n_rows, n_rows);
    layer.tensors.k_full = make(types_.k, hp_.n_embd_head_k, n_rows, layout.n_k_full);
    layer.tensors.v_full = make(types_.v, hp_.n_embd_head_v, n_rows, layout.n_v_full);
    layer.tensors.k_ring = make(types_.k, hp_.n_embd_head_k, n_window, layout.n_k_ring);
    layer.tensors.v_ring = make(types_.v, hp_.n_embd_head_v, n_window, layout.n_v_ring);
    if (ggml_get_first_tensor(layer.ctx.get()) == nullptr) return layer;

    place_tensors(layer, type);
    if (!layer.buffer) throw out_of_memory(n_rows, type);
    if (ggml_backend_buffer_is_host(layer.buffer.get()))
        prefer_huge_pages(ggml_backend_buffer_get_base(layer.buffer.get()),
                          ggml_backend_buffer_get_size(layer.buffer.get()));
    return layer;
}

void SplitCache::place_tensors(Layer & layer, ggml_backend_buffer_type_t type) const {
    ggml_context * ctx = layer.ctx.get();
    const size_t n_align = ggml_backend_buft_get_alignment(type);
    size_t n_bytes = 0;
    for (ggml_tensor * t = ggml_get_first_tensor(ctx); t; t = ggml_get_next_tensor(ctx, t))
        n_bytes += GGML_PAD(ggml_backend_buft_get_alloc_size(type, t), n_align);
    if (!ggml_backend_buft_is_host(type) && int64_t(n_bytes) > Gpu::room(type) - n_kept_free_) return;
    if (type == ggml_backend_cpu_buffer_type()) {
        layer.pages = Pages(n_bytes);
        if (layer.pages.data()) layer.buffer.reset(ggml_backend_cpu_buffer_from_ptr(layer.pages.data(), n_bytes));
    }
    if (!layer.buffer) {
        layer.buffer.reset(ggml_backend_alloc_ctx_tensors_from_buft(ctx, type));
        return;
    }
    ggml_tallocr place = ggml_tallocr_new(layer.buffer.get());
    for (ggml_tensor * t = ggml_get_first_tensor(ctx); t; t = ggml_get_next_tensor(ctx, t))
        if (ggml_tallocr_alloc(&place, t) != GGML_STATUS_SUCCESS) return layer.buffer.reset();
}

// What to do about a full device: how many positions there would be room for, were all layers' rows on it grown alike.
std::string SplitCache::advice(ggml_backend_buffer_type_t type) const {
    if (ggml_backend_buft_is_host(type)) return "choose a smaller n_ctx or a smaller cache type";
    int64_t n_held = 0, n_row = 0,
            n_most = 0;  // bytes: of all its layers, of a position in them, in the largest of them
    for (size_t il = 0; il < layers_.size(); ++il) {
        if (buffer_types_[il] != type) continue;
        const LayerLayout & layout = layout_.layers[il];
        const int64_t row = layout.n_k_full * row_bytes_k() + layout.n_v_full * row_bytes_v();
        n_row += row;
        n_most = std::max(n_most, row);
        if (layers_[il].buffer) n_held += int64_t(ggml_backend_buffer_get_size(layers_[il].buffer.get()));
    }
    const int64_t n_window = std::min(ring_.n_rows, n_ctx_) * ring_row_bytes();
    const int64_t n_fit =
        std::max<int64_t>(0, n_held + Gpu::room(type) - n_kept_free_ - n_window) / std::max<int64_t>(1, n_row + n_most);
    return "choose an n_ctx of at most " + std::to_string(n_fit / n_block * n_block) +
           ", a smaller cache type, fewer n_gpu_layers, or kv_offload off";
}

// Before a layer is touched: layers that have grown while others could not would only keep a device full.
void SplitCache::check_devices(int64_t n_rows) const {
    struct Need {
        int64_t more = 0,
                most = 0;  // bytes beyond what is held; of the largest layer, which is there twice while it is copied
    };
    std::map<ggml_backend_buffer_type_t, Need> needs;
    for (size_t il = 0; il < layers_.size(); ++il) {
        if (!is_on_device(int32_t(il)) || layers_[il].n_rows >= n_rows) continue;
        CacheLayout one = layout_;
        one.layers = {layout_.layers[il]};
        const int64_t n_held = layers_[il].buffer ? int64_t(ggml_backend_buffer_get_size(layers_[il].buffer.get())) : 0;
        Need & need = needs[buffer_types_[il]];
        need.more += cache_bytes(one, n_rows, row_bytes_k(), row_bytes_v()).total() - n_held;
        need.most = std::max(need.most, n_held);
    }
    for (const auto & [type, need] : needs)
        if (need.more + need.most > Gpu::room(type) - n_kept_free_) throw out_of_memory(n_rows, type);
}

DeviceError SplitCache::out_of_memory(int64_t n_rows, ggml_backend_buffer_type_t type) const {
    return DeviceError("KV cache: out of memory: expected room for " + std::to_string(n_rows) +
                       " positions, got a failed allocation on " + ggml_backend_buft_name(type) + "; " + advice(type));
}

void SplitCache::reserve(int64_t n) {
    if (n <= n_rows_) return;
    // Growing copies every row, so a long cache grows by a share of itself: a token pays for 16 rows at most.
    const auto whole_blocks = [](int64_t rows) { return (rows + n_block - 1) / n_block * n_block; };
    const int64_t n_rows = std::min(whole_blocks(std::max(n, n_rows_ + n_rows_ / 16)), whole_blocks(n_ctx_));
    check_devices(n_rows);
    // One layer at a time, so that the peak is one layer above the cache. A failure leaves some layers larger, none smaller.
    for (size_t il = 0; il < layers_.size(); ++il) {
        Layer & old = layers_[il];
        if (old.n_rows >= n_rows) continue;
        const LayerLayout & layout = layout_.layers[il];
        const bool only_rings = layout.n_k_full + layout.n_v_full == 0;
        if (only_rings && old.n_rows >= ring_.n_rows) continue;
        Layer grown = allocate_layer(il, n_rows);
        const bool is_zero = grown.pages.data() != nullptr;
        keep_rows(old.tensors.k_full, grown.tensors.k_full, is_zero);
        keep_rows(old.tensors.v_full, grown.tensors.v_full, is_zero);
        keep_rows(old.tensors.k_ring, grown.tensors.k_ring, is_zero);
        keep_rows(old.tensors.v_ring, grown.tensors.v_ring, is_zero);
        old = std::move(grown);
        generation_ = ++last_generation;
    }
    n_rows_ = n_rows;
}

void SplitCache::commit(int64_t n) {
    n_past_ += n;
    ring_.n_written = std::max(ring_.n_written, n_past_);
}

void SplitCache::clear() {
    log_.clear();
    restore_position(0, 0);
}

void SplitCache::restore_position(int64_t n_past, int64_t n_written) {
    n_past_ = n_past;
    ring_.n_written = n_written;
}

bool SplitCache::can_truncate(int64_t n) const {
    return n == n_past_ || !layout_.has_ring() || ring_.can_continue_at(n) || log_.find(n);
}

int64_t SplitCache::rollback_position(int64_t n) const {
    n = std::clamp<int64_t>(n, 0, n_past_);
    if (can_truncate(n)) return n;
    const Checkpoint * last = log_.last_until(n);
    return std::max(last ? last->n_past : 0, std::min(n, ring_.n_sink));
}

void SplitCache::truncate(int64_t n) {
    if (n == n_past_) return;
    if (layout_.has_ring() && !ring_.can_continue_at(n)) {
        return_to(*log_.find(n));
    } else {
        n_past_ = n;
        if (n <= ring_.n_sink) ring_.n_written = n;  // the ring starts afresh: no older row is needed any more
    }
    log_.remove_after(n);
}

void SplitCache::checkpoint() {
    if (!layout_.has_ring() || n_past_ <= ring_.n_sink) return;  // nothing before it is ever forgotten
    log_.add({n_past_, ring_.oldest_held(), ring_.n_written});
    if (log_.checkpoints().size() > n_most_checkpoints) log_.remove_oldest();
}

void SplitCache::hold(int64_t n) {
    if (layout_.has_ring() && ring_.overwrites_window(n_past_, n)) {
        log_.hold({n_past_, ring_.oldest_held(), ring_.n_written});
    } else {
        log_.hold({n_past_, n_past_, ring_.n_written});  // the rows that a query at n_past needs stay as they are
    }
}

void SplitCache::undo() {
    return_to(log_.held());
    log_.release();
}

bool SplitCache::reads_are_slow() const {
    for (size_t il = 0; il < layers_.size(); ++il)
        if (is_on_device(int32_t(il))) return true;
    return false;
}

void SplitCache::log_overwritten(int64_t n) {
    if (log_.is_idle() || !layout_.has_ring()) return;
    log_.held_overwritten(n_past_ + n);
    const int64_t n_ahead = reads_are_slow() ? n_log_ahead : 0;
    const int64_t end = std::min(n_past_, n_past_ + n + n_ahead - ring_.n_ring());
    for (LoggedRows & rows : log_.missing(ring_.oldest_held(), end)) {
        rows.n_stored = rows.n;
        rows.bytes.resize(size_t(rows.n * ring_row_bytes()));
        for_each_ring_stretch(rows, rows.first, rows.first + rows.n,
                              [&](const ggml_tensor * tensor, size_t offset, size_t size, size_t at) {
                                  ggml_backend_tensor_get(tensor, rows.bytes.data() + at, offset, size);
                              });
        log_.keep(std::move(rows));
    }
    while (log_.checkpoints().size() > 1 && log_.size_bytes() > n_most_windows * ring_.n_ring() * ring_row_bytes())
        log_.remove_oldest();
}

void SplitCache::return_to(const Checkpoint & checkpoint) {
    for (const auto & item : log_.rows()) {
        const LoggedRows & rows = item.second;
        const int64_t begin = std::max(rows.first, checkpoint.oldest),
                      end = std::min(rows.first + rows.n, checkpoint.n_past);
        for_each_ring_stretch(rows, begin, end, [&](ggml_tensor * tensor, size_t offset, size_t size, size_t at) {
            ggml_backend_tensor_set(tensor, rows.bytes.data() + at, offset, size);
        });
    }
    restore_position(checkpoint.n_past, checkpoint.n_written);
}

int64_t SplitCache::ring_row_bytes() const {
    int64_t total = 0;
    for (const LayerLayout & layer : layout_.layers)
        total += layer.n_k_ring * row_bytes_k() + layer.n_v_ring * row_bytes_v();
    return total;
}

int64_t SplitCache::device_bytes() const {
    int64_t n = 0;
    for (size_t il = 0; il < layers_.size(); ++il)
        if (layers_[il].buffer && is_on_device(int32_t(il)))
            n += int64_t(ggml_backend_buffer_get_size(layers_[il].buffer.get()));
    return n;
}

CacheBytes SplitCache::allocated() const {
    auto size = [](const ggml_tensor * t) { return t ? int64_t(ggml_nbytes(t)) : 0; };
    CacheBytes bytes;
    for (const Layer & layer : layers_) {
        bytes.keys += size(layer.tensors.k_full);
        bytes.values += size(layer.tensors.v_full);
        bytes.window_keys += size(layer.tensors.k_ring);
        bytes.window_values += size(layer.tensors.v_ring);
    }
    return bytes;
}

}  // namespace pysa
