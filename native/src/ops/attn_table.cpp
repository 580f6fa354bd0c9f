// Plan -> per-layer attention tables, with slots for the distant weights that owners keep for their followers.
#include <algorithm>
#include <map>
#include <set>

#include "ops/shared_attn.h"

namespace pysa {

namespace {

using HeadId = std::pair<int32_t, int32_t>;  // layer, head

// The last layer that reads each owner's distant weights.
std::map<HeadId, int32_t> last_readers(const SharingPlan & plan) {
    std::map<HeadId, int32_t> last;
    for (int32_t il = 0; il < plan.n_layer; ++il)
        for (int32_t h = 0; h < plan.n_head; ++h)
            if (plan.kind(il, h) == HeadKind::follower) last[{plan.source_layer(il, h), plan.source_head(il, h)}] = il;
    return last;
}

// A slot is free again in the layer after its last reader.
void assign_slots(const SharingPlan & plan, AttnTable & table) {
    const auto last = last_readers(plan);
    std::map<HeadId, int32_t> slot_of;
    std::set<int32_t> free_slots;
    for (AttnLayer & layer : table.layers) {
        for (const auto & [owner, slot] : slot_of)
            if (last.at(owner) == layer.il - 1) free_slots.insert(slot);
        for (int32_t h = 0; h < plan.n_head; ++h) {
            AttnHead & head = layer.heads[h];
            if (head.kind == HeadKind::follower) head.slot_in = slot_of.at({head.source_layer, head.source_head});
            if (head.kind != HeadKind::owner || !last.count({layer.il, h})) continue;
            if (free_slots.empty()) free_slots.insert(table.n_slots++);
            head.slot_out = *free_slots.begin();
            free_slots.erase(free_slots.begin());
            slot_of[{layer.il, h}] = head.slot_out;
        }
    }
}

}  // namespace

AttnTable make_attn_table(const SharingPlan & plan, const HParams & hp) {
    AttnTable table;
    table.hp = hp;
    table.distant = plan.distant;
    table.n_sink = plan.n_sink;
    table.n_recent = plan.n_recent;
    table.skip_gate = plan.skip_gate;
    for (int32_t il = 0; il < plan.n_layer; ++il) {
        AttnLayer layer;
        layer.il = il;
        layer.keys_layer.assign(hp.n_head_kv, -1);
        layer.is_dense = plan.skip_gate >= 1.0f;
        for (int32_t h = 0; h < plan.n_head; ++h) {
            AttnHead head;
            head.kind = plan.kind(il, h);
            head.source_layer = plan.source_layer(il, h);
            head.source_head = plan.source_head(il, h);
            head.bias = plan.bias(il, h);
            layer.is_dense &= head.kind == HeadKind::owner && head.bias == 0.0f;
            const bool scores_distant =
                head.kind == HeadKind::owner || (head.kind == HeadKind::follower && plan.distant == Distant::keys);
            if (scores_distant) layer.keys_layer[h / hp.n_gqa()] = head.source_layer;
            layer.heads.push_back(head);
        }
        table.layers.push_back(std::move(layer));
    }
    if (plan.distant == Distant::scores) assign_slots(plan, table);
    return table;
}

}  // namespace pysa
