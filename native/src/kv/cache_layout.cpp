#include "kv/cache_layout.h"

#include <algorithm>

namespace pysa {

bool CacheLayout::has_ring() const {
    return std::any_of(layers.begin(), layers.end(), [](const LayerLayout & l) { return l.n_k_ring + l.n_v_ring > 0; });
}

CacheLayout make_cache_layout(const SharingPlan & plan, const HParams & hp, int32_t n_slack) {
    CacheLayout layout;
    layout.n_sink = plan.n_sink;
    layout.n_recent = plan.n_recent;
    layout.n_slack = plan.n_recent == 0 ? 0 : n_slack;
    const bool has_window = plan.n_recent > 0;
    for (int32_t il = 0; il < hp.n_layer; ++il) {
        LayerLayout layer;
        layer.needs_q = has_window || plan.distant == Distant::keys;
        for (int32_t kv = 0; kv < hp.n_head_kv; ++kv) {
            bool any_owner = false, all_local = true;
            for (int32_t h = kv * hp.n_gqa(); h < (kv + 1) * hp.n_gqa(); ++h) {
                any_owner |= plan.kind(il, h) == HeadKind::owner;
                all_local &= plan.kind(il, h) == HeadKind::local;
            }
            KvHeadLayout head;
            head.k_full = any_owner;
            head.v_full = !all_local;
            head.k_index = head.k_full ? layer.n_k_full++ : layer.n_k_ring++;
            head.v_index = head.v_full ? layer.n_v_full++ : layer.n_v_ring++;
            layer.needs_q |= any_owner;
            layer.kv_heads.push_back(head);
        }
        layer.needs_k = layer.n_k_full > 0 || has_window;
        layout.layers.push_back(layer);
    }
    return layout;
}

CacheBytes cache_bytes(const CacheLayout & layout, int64_t n, int64_t row_k, int64_t row_v) {
    const int64_t n_window = std::min(n, layout.window_rows());
    CacheBytes bytes;
    for (const LayerLayout & layer : layout.layers) {
        bytes.keys += n * layer.n_k_full * row_k;
        bytes.values += n * layer.n_v_full * row_v;
        bytes.window_keys += n_window * layer.n_k_ring * row_k;
        bytes.window_values += n_window * layer.n_v_ring * row_v;
    }
    return bytes;
}

}  // namespace pysa
