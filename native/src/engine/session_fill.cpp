// A long cache without the hours it takes to evaluate one: for measurements and tests. Copies of rows held stand for rows.
#include <algorithm>
#include <cstring>
#include <random>

#include "engine/session_impl.h"

namespace pysa {

namespace {

// A position to fill, and the one held whose rows and token it gets.
struct Copy {
    int64_t from = 0;
    int64_t to = 0;
    bool in_ring = false;  // the ring keeps `to`, so it must hold `from` too
};

std::vector<Copy> draw_copies(const Ring & ring, int64_t n_past, int64_t n, uint64_t seed) {
    std::mt19937_64 random(seed);
    const auto below = [&](int64_t limit) { return int64_t(random() % uint64_t(limit)); };
    const int64_t n_sinks = std::min(ring.n_sink, n_past);
    const int64_t oldest = std::clamp(ring.oldest_held(), n_sinks, n_past);  // of the ring; the sinks are held as well
    const int64_t n_held = n_sinks + n_past - oldest;
    std::vector<Copy> copies;
    for (int64_t to = n_past; to < n; ++to) {
        const bool in_ring = ring.n_rows > 0 && (to < ring.n_sink || to >= n - ring.n_ring());
        if (in_ring && n_held > 0) {
            const int64_t i = below(n_held);
            copies.push_back({i < n_sinks ? i : oldest + i - n_sinks, to, true});
        } else {
            copies.push_back({below(n_past), to, in_ring});
        }
    }
    return copies;
}

// `row` says where the tensor keeps a position.
template <class Row> void copy_rows(ggml_tensor * tensor, const std::vector<Copy> & copies, bool is_ring, Row row) {
    if (!tensor) return;
    std::vector<uint8_t> rows(tensor->nb[2]), before;  // of a head
    for (int64_t head = 0; head < tensor->ne[2]; ++head) {
        ggml_backend_tensor_get(tensor, rows.data(), head * tensor->nb[2], rows.size());
        before = rows;  // a ring's are overwritten
        for (const Copy & copy : copies)
            if (!is_ring || copy.in_ring)
                std::memcpy(rows.data() + row(copy.to) * tensor->nb[1], before.data() + row(copy.from) * tensor->nb[1],
                            tensor->nb[1]);
        ggml_backend_tensor_set(tensor, rows.data(), head * tensor->nb[2], rows.size());
    }
}

}  // namespace

void Session::Impl::fill(int64_t n, uint64_t seed) {
    const int64_t n_past = cache_.n_past();
    if (n_past == 0) throw ArgumentError("fill: expected a session that holds tokens, got none; evaluate some first");
    if (n < n_past || n > params_.n_ctx)
        throw ArgumentError("fill: n: expected " + std::to_string(n_past) + " (held) to " +
                            std::to_string(params_.n_ctx) + " (n_ctx), got " + std::to_string(n));
    cache_.reserve(n);
    cache_.log_overwritten(n - n_past);
    const Ring & ring = cache_.ring();
    const std::vector<Copy> copies = draw_copies(ring, n_past, n, seed);
    tokens_.reserve(size_t(n));
    for (const Copy & copy : copies) tokens_.push_back(tokens_[size_t(copy.from)]);
    const auto same = [](int64_t pos) { return pos; };
    const auto ring_row = [&](int64_t pos) { return ring.row(pos); };
    for (int32_t il = 0; il < hp_.n_layer; ++il) {
        const LayerCache & layer = cache_.layer(il);
        copy_rows(layer.k_full, copies, false, same);
        copy_rows(layer.v_full, copies, false, same);
        copy_rows(layer.k_ring, copies, true, ring_row);
        copy_rows(layer.v_ring, copies, true, ring_row);
    }
    cache_.commit(n - n_past);
}

}  // namespace pysa
