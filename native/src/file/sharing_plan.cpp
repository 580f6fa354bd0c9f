// The rules of a sharing plan (docs/format.md), apart from where the plan came from.
#include "pysa/sharing_plan.h"

#include <cmath>

#include "base/bytes.h"

namespace pysa {

namespace {

// The rules that look at one head, or at one head and its source. Written so that no index is used before it is checked.
class HeadRules {
  public:
    HeadRules(const SharingPlan & plan, const HParams & hp, Faults & faults) : plan_(plan), hp_(hp), faults_(faults) {}

    void check(int32_t il, int32_t h) {
        const int32_t sl = plan_.source_layer(il, h);
        const int32_t sh = plan_.source_head(il, h);
        if (sl == -1 && sh == -1) {
            if (plan_.n_recent == 0) add(il, h, "a local head needs a window: expected n_recent above 0, got 0");
        } else if (sl < -1 || sl >= plan_.n_layer || sh < -1 || sh >= plan_.n_head || (sl == -1) != (sh == -1)) {
            add(il, h,
                "expected a source within layers 0.." + text(plan_.n_layer - 1) + " and heads 0.." +
                    text(plan_.n_head - 1) + ", or -1 for both, got " + pair(sl, sh));
        } else if (sl > il) {
            add(il, h, "expected a source in this layer or an earlier one, got layer " + text(sl));
        } else if (sl == il && sh != h) {
            add(il, h, "expected an owner to point at itself, or a source in an earlier layer, got " + pair(sl, sh));
        } else if (sl < il) {
            check_source(il, h, sl, sh);
        }
    }

    // "keys": one source layer per KV group.
    void check_group(int32_t il, int32_t g) {
        int32_t first = -1;
        for (int32_t h = g * hp_.n_gqa(); h < (g + 1) * hp_.n_gqa(); ++h) {
            const int32_t sl = plan_.source_layer(il, h);
            if (sl < 0) continue;
            if (first < 0) first = sl;
            if (sl != first) {
                add(il, h,
                    "distant 'keys' needs one source layer per KV group: expected layer " + text(first) + ", got " +
                        text(sl));
                return;
            }
        }
    }

  private:
    void check_source(int32_t il, int32_t h, int32_t sl, int32_t sh) {
        if (plan_.kind(sl, sh) != HeadKind::owner) {
            add(il, h,
                "expected a source that is an owner, got " + pair(sl, sh) + ", which is a " +
                    (plan_.kind(sl, sh) == HeadKind::local ? "local head" : "follower"));
        }
        if (plan_.distant == Distant::keys && sh / hp_.n_gqa() != h / hp_.n_gqa()) {
            add(il, h,
                "distant 'keys' needs a source in the same KV group: expected group " + text(h / hp_.n_gqa()) +
                    ", got " + text(sh / hp_.n_gqa()));
        }
    }

    static std::string text(int32_t value) { return std::to_string(value); }
    static std::string pair(int32_t sl, int32_t sh) { return "layer " + text(sl) + " head " + text(sh); }
    void add(int32_t il, int32_t h, const std::string & fault) {
        faults_.add("layer " + text(il) + " head " + text(h) + ": " + fault);
    }

    const SharingPlan & plan_;
    const HParams & hp_;
    Faults & faults_;
};

bool check_lengths(const SharingPlan & plan, const HParams & hp, Faults & faults) {
    bool fits = true;
    const auto expect = [&](const char * name, int64_t expected, int64_t found) {
        if (expected == found) return;
        fits = false;
        faults.add(std::string(name) + ": expected " + std::to_string(expected) + ", got " + std::to_string(found));
    };
    expect("n_layer", hp.n_layer, plan.n_layer);
    expect("n_head", hp.n_head, plan.n_head);
    const int64_t n = int64_t(hp.n_layer) * hp.n_head;
    expect("score_layer: values", n, static_cast<int64_t>(plan.score_layer.size()));
    expect("score_head: values", n, static_cast<int64_t>(plan.score_head.size()));
    if (!plan.mass_bias.empty()) expect("mass_bias: values", n, static_cast<int64_t>(plan.mass_bias.size()));
    return fits;
}

}  // namespace

SharingPlan dense_plan(const HParams & hp) {
    SharingPlan plan;
    plan.n_layer = hp.n_layer;
    plan.n_head = hp.n_head;
    plan.score_layer.reserve(size_t(hp.n_layer) * hp.n_head);
    plan.score_head.reserve(size_t(hp.n_layer) * hp.n_head);
    for (int32_t il = 0; il < hp.n_layer; ++il) {
        for (int32_t h = 0; h < hp.n_head; ++h) {
            plan.score_layer.push_back(il);
            plan.score_head.push_back(h);
        }
    }
    return plan;
}

void check_plan(const SharingPlan & plan, const HParams & hp, Faults & faults) {
    if (plan.version != 1) {
        faults.add("version: expected 1, got " + std::to_string(plan.version));
        return;
    }
    if (plan.n_sink < 0) faults.add("n_sink: expected at least 0, got " + std::to_string(plan.n_sink));
    if (plan.n_recent < 0) faults.add("n_recent: expected at least 0, got " + std::to_string(plan.n_recent));
    if (plan.n_recent == 0 && plan.n_sink > 0) {
        faults.add("n_sink: expected 0, as n_recent is 0, got " + std::to_string(plan.n_sink));
    }
    if (!std::isfinite(plan.skip_gate) || plan.skip_gate <= 0.0f || plan.skip_gate > 1.0f) {
        faults.add("skip_gate: expected a number above 0 and at most 1, got " + std::to_string(plan.skip_gate));
    }
    for (size_t i = 0; i < plan.mass_bias.size(); ++i) {
        if (std::isfinite(plan.mass_bias[i])) continue;
        faults.add("mass_bias: expected finite numbers, got " + std::to_string(plan.mass_bias[i]) + " at index " +
                   std::to_string(i));
        break;
    }
    if (!check_lengths(plan, hp, faults)) return;

    HeadRules rules(plan, hp, faults);
    for (int32_t il = 0; il < plan.n_layer; ++il) {
        for (int32_t h = 0; h < plan.n_head; ++h) rules.check(il, h);
        if (plan.distant != Distant::keys) continue;
        for (int32_t g = 0; g < hp.n_head_kv; ++g) rules.check_group(il, g);
    }
}

}  // namespace pysa
