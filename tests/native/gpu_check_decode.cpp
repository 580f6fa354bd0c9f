// One token's kernels. Every case has two layers: the first one's heads are owners that leave their distance in slots,
// the second is the case's own; and two steps in the same room, so that what a step must leave as it found it shows.
//
// Tolerance: rows are the same on both sides, whatever their type, so what differs is f16 weights, each within 2^-11 of
// itself, and f32 sums: of values of size 1, 2^-11 of their mean distance from the result, and far less where errors
// cancel. With v_skip, the share of the distance left out times the size of the mean of many such values.
#include <algorithm>
#include <cstdio>

#include "cuda/emulator.h"
#include "gpu_check.h"

namespace pysa::gpu::check {

namespace {

constexpr double tolerance = 6e-4;
constexpr int n_spare = 40;  // rows that the room could still hold

struct Case {
    const char * name;
    RowType type_k, type_v;
    int n_embd_k, n_embd_v, n_head_kv, n_gqa;
    int n_kv, n_sink, n_recent, slack;
    // A letter per head, repeated: owner, Owner with followers, follower of scores, follower of keys, local.
    const char * heads;
    bool k_is_ring, v_is_ring;
    float bias, skip_gate, v_skip;
    float sharpness;  // of the softmax: deviation of the scores
};

constexpr RowType f32 = RowType::f32, f16 = RowType::f16, bf16 = RowType::bf16, q8_0 = RowType::q8_0,
                  q4_0 = RowType::q4_0;

const Case cases[] = {
    {"one position", f16, f16, 128, 64, 3, 4, 1, 2, 8, 3, "o", false, false, 0, 1, 0, 2},
    {"only sinks", f16, q8_0, 64, 128, 2, 3, 4, 7, 9, 2, "o", true, true, 0, 1, 0, 2},
    {"dense f16", f16, f16, 128, 128, 3, 4, 301, 0, 0, 0, "o", false, false, 0, 1, 0, 2},
    {"dense f32, small heads", f32, bf16, 64, 96, 2, 3, 77, 0, 0, 0, "o", false, false, 0, 1, 0, 2},
    {"dense, one head to a row", bf16, f32, 96, 256, 3, 1, 300, 0, 0, 0, "o", false, false, 0, 1, 0, 2},
    {"dense, nine heads to a row", q8_0, q4_0, 256, 64, 2, 9, 301, 0, 0, 0, "o", false, false, 0, 1, 0, 2},
    {"owners with a window", q4_0, f16, 128, 96, 3, 8, 701, 5, 150, 7, "O", false, false, 0, 1, 0, 2},
    {"followers of scores", f16, q8_0, 64, 128, 3, 4, 701, 4, 131, 30, "f", true, false, 0.3f, 1, 0, 2},
    {"followers of keys", q8_0, f16, 128, 64, 2, 4, 300, 3, 40, 5, "k", true, false, -0.4f, 1, 0, 2},
    {"everybody follows, no window", f16, f16, 64, 128, 3, 4, 301, 0, 0, 0, "f", false, false, 0, 1, 0, 2},
    {"streaming", q8_0, q8_0, 128, 64, 2, 4, 701, 6, 133, 9, "l", true, true, 0, 1, 0, 2},
    {"mixed groups", f16, bf16, 96, 128, 3, 4, 701, 4, 90, 14, "ofloO", false, false, 0.5f, 1, 0, 2},
    {"mixed groups of keys", bf16, f16, 128, 256, 2, 5, 301, 130, 33, 1, "kll", true, false, 0.2f, 1, 0, 2},
    {"mixed large groups", q4_0, q8_0, 64, 96, 2, 17, 300, 2, 61, 3, "offlO", true, false, 0.2f, 1, 0, 2},
    {"a group of scores, one of locals", f32, f32, 64, 64, 2, 3, 301, 4, 70, 4, "ffflll", true, false, 0.1f, 1, 0, 2},
    {"heads of 32", f16, f32, 32, 32, 3, 4, 701, 4, 90, 14, "ofloO", true, false, 0.5f, 1, 0, 2},
    {"heads of 32, quantised", q8_0, q4_0, 32, 32, 2, 9, 301, 2, 61, 3, "offlO", true, true, 0.2f, 1, 0, 2},
    {"heads of 32, skipping", q4_0, bf16, 32, 32, 3, 4, 701, 4, 100, 5, "oflO", true, false, 0.1f, 1, 0.03f, 3},
    {"heads of 32, f32", f32, q8_0, 32, 64, 3, 3, 301, 0, 0, 0, "o", false, false, 0, 1, 0, 2},
    {"gate", f16, f16, 64, 96, 5, 4, 701, 4, 280, 5, "oflO", false, false, 0, 0.5f, 0, 3},
    {"gate, followers", q8_0, q8_0, 128, 96, 5, 3, 701, 4, 300, 5, "f", true, false, 0, 0.5f, 0, 3},
    {"skipping, dense", f16, f16, 128, 96, 3, 1, 701, 0, 0, 0, "o", false, false, 0, 1, 0.02f, 3},
    {"skipping, window", f16, q8_0, 64, 128, 3, 4, 701, 4, 100, 5, "oO", false, false, 0, 1, 0.05f, 3},
    {"skipping, followers", q8_0, q4_0, 96, 64, 3, 3, 701, 4, 100, 5, "f", true, false, 0.1f, 1, 0.04f, 3},
    {"skipping, mixed", f16, f16, 64, 128, 2, 9, 300, 4, 50, 5, "foflO", false, false, 0.1f, 1, 0.03f, 3},
    {"skipping and gate", bf16, f16, 64, 128, 5, 4, 701, 4, 300, 5, "ofO", false, false, 0, 0.5f, 0.05f, 3},
};

// The rows of one layer and KV head up to t, as the cache holds them and as the reference reads them.
struct LayerRows {
    RowStore full, ring, cur;
    std::vector<std::vector<float>> values;
};

LayerRows make_rows(const Case & c, RowType type, int n_embd, int t, bool is_ring, Numbers & numbers) {
    const int n_ring = c.n_recent + c.slack, ring_rows = c.n_sink + n_ring;
    LayerRows rows = {{type, n_embd, t + 1}, {type, n_embd, ring_rows}, {type, n_embd, 1}, {}};
    for (int j = 0; j <= t; ++j) {
        rows.full.write(j, numbers.normal(n_embd).data());
        rows.values.push_back(rows.full.read(j));
        if (ring_rows > 0 && j < t) rows.ring.copy(j < c.n_sink ? j : c.n_sink + (j - c.n_sink) % n_ring, rows.full, j);
    }
    rows.cur.copy(0, rows.full, t);
    for (int j = 0; is_ring && j <= t; ++j)
        if (j < c.n_sink || j > t - c.n_recent) rows.full.forget(j);
    return rows;
}

struct Layer {
    std::vector<LayerRows> k, v;  // [n_head_kv]
    std::vector<float> q;         // [n_embd_k, n_head]
    std::vector<Head> heads;
    std::vector<KvHead> kv_heads;
};

class Run {
  public:
    Run(const AttnKernels & kernels, const Case & c, int t, const Shape & shape, const DecodeRoom & room)
        : kernels_(kernels), c_(c), t_(t), shape_(shape), room_(room), step_{t, 1} {
        Numbers numbers(uint64_t(t) * 1000 + (&c - cases));
        for (Layer & layer : layers_) fill(layer, numbers);
        for (int h = 0; h < shape.n_head; ++h) layers_[0].heads.push_back({Kind::owner, 1, -1, h, 0.0f});
        for (int h = 0; h < shape.n_head; ++h) layers_[1].heads.push_back(head(h));
        for (int il = 0; il < 2; ++il) place(il);
    }

    const char * layer(int il, std::vector<float> & out) {
        Layer & layer = layers_[il];
        out.assign(int64_t(shape_.n_embd_v) * shape_.n_head, NAN);
        Call call = {};
        call.shape = shape_;
        call.heads = layer.heads.data();
        call.kv_heads = layer.kv_heads.data();
        call.step = &step_;
        bool scores = c_.n_recent > 0;
        for (const Head & head : layer.heads) scores |= head.scores_far != 0;
        call.q = scores ? layer.q.data() : nullptr;
        call.q_head = shape_.n_embd_k * 4;
        call.k_cur = cur_k_[il].empty() ? nullptr : cur_k_[il].data();
        call.v_cur = cur_v_[il].empty() ? nullptr : cur_v_[il].data();
        call.k_cur_head = layer.k[0].full.row_bytes();
        call.v_cur_head = layer.v[0].full.row_bytes();
        call.dst = out.data();
        call.decode = room_;
        const int64_t n_kv_at_most = t_ + 1 + (t_ % 2) * n_spare / 2;
        return kernels_.decode(call, n_kv_at_most, nullptr);
    }

    // [n_embd_v * n_head]; a head too near the gate to be sure of gives NaN.
    std::vector<double> reference(int il, int & n_shut) const;
    int n_far() const { return std::max(0, t_ - c_.n_recent + 1 - c_.n_sink); }

  private:
    void fill(Layer & layer, Numbers & numbers) const {
        for (int kv = 0; kv < c_.n_head_kv; ++kv) {
            layer.k.push_back(make_rows(c_, c_.type_k, c_.n_embd_k, t_, c_.k_is_ring, numbers));
            layer.v.push_back(make_rows(c_, c_.type_v, c_.n_embd_v, t_, c_.v_is_ring, numbers));
        }
        layer.q = numbers.normal(int64_t(c_.n_embd_k) * shape_.n_head, c_.sharpness);
    }

    // Followers take the slot of another head of the first layer.
    Head head(int h) const {
        const int other = (h + 1) % shape_.n_head;
        switch (c_.heads[h % std::strlen(c_.heads)]) {
            case 'o': return {Kind::owner, 1, -1, -1, 0.0f};
            case 'O': return {Kind::owner, 1, -1, shape_.n_head + h, 0.0f};
            case 'f': return {Kind::follower, 0, other, -1, c_.bias};
            case 'k': return {Kind::follower, 1, -1, -1, c_.bias};
            default: return {Kind::local, 0, -1, -1, 0.0f};
        }
    }

    // Keys that the distance of a KV head of a layer is scored with.
    int keys_layer(int il, int kv) const {
        const Head & first = layers_[il].heads[kv * c_.n_gqa];
        return first.kind == Kind::follower && first.scores_far ? 0 : il;
    }

    void place(int il) {
        Layer & layer = layers_[il];
        for (int kv = 0; kv < c_.n_head_kv; ++kv) {
            bool scores_far = false, is_local = true;
            for (int g = 0; g < c_.n_gqa; ++g) {
                scores_far |= layer.heads[kv * c_.n_gqa + g].scores_far != 0;
                is_local &= layer.heads[kv * c_.n_gqa + g].kind == Kind::local;
            }
            const auto near = [this](const LayerRows & rows, bool is_ring) {
                return c_.n_recent == 0 ? nullptr : is_ring ? rows.ring.row(0) : rows.full.row(0);
            };
            layer.kv_heads.push_back({near(layer.k[kv], c_.k_is_ring), near(layer.v[kv], c_.v_is_ring),
                                      scores_far ? layers_[keys_layer(il, kv)].k[kv].full.row(0) : nullptr,
                                      is_local ? nullptr : layer.v[kv].full.row(0), c_.k_is_ring, c_.v_is_ring});
            const auto add = [](std::vector<char> & all, const RowStore & row) {
                all.insert(all.end(), row.row(0), row.row(0) + row.row_bytes());
            };
            if (c_.k_is_ring) add(cur_k_[il], layer.k[kv].cur);
            if (c_.v_is_ring) add(cur_v_[il], layer.v[kv].cur);
        }
    }

    std::vector<double> scores(int il, int h, int keys) const {
        const std::vector<LayerRows> & k = layers_[keys].k;
        std::vector<double> out;
        for (int j = 0; j <= t_; ++j) {
            double sum = 0;
            for (int i = 0; i < c_.n_embd_k; ++i)
                sum += double(layers_[il].q[h * c_.n_embd_k + i]) * k[h / c_.n_gqa].values[j][i];
            out.push_back(sum * shape_.kq_scale);
        }
        return out;
    }

    const AttnKernels & kernels_;
    const Case & c_;
    int t_;
    Shape shape_;
    DecodeRoom room_;
    Step step_;
    Layer layers_[2];
    std::vector<char> cur_k_[2], cur_v_[2];
};

std::vector<double> Run::reference(int il, int & n_shut) const {
    std::vector<double> out(int64_t(shape_.n_embd_v) * shape_.n_head, 0.0);
    for (int h = 0; h < shape_.n_head; ++h) {
        const Head & head = layers_[il].heads[h];
        const bool has_window = c_.n_recent > 0;
        std::vector<double> near = scores(il, h, il), far;
        if (head.slot_in >= 0) {
            far = scores(0, head.slot_in, 0);
        } else {
            far = scores(il, h, keys_layer(il, h / c_.n_gqa));
        }
        double near_mass = 0, far_mass = 0, max = -INFINITY;
        const auto is_near = [&](int j) { return has_window && (j < c_.n_sink || j > t_ - c_.n_recent); };
        const auto score = [&](int j) {
            return is_near(j) ? near[j] : head.kind == Kind::local ? -INFINITY : far[j] + head.bias;
        };
        for (int j = 0; j <= t_; ++j) max = std::max(max, score(j));
        for (int j = 0; j <= t_; ++j) (is_near(j) ? near_mass : far_mass) += std::exp(score(j) - max);
        const double share = near_mass / (near_mass + far_mass);
        const bool is_shut = shape_.skip_gate < 1 && share >= shape_.skip_gate && far_mass > 0;
        n_shut += is_shut;
        if (is_shut) far_mass = 0;
        const bool is_unsure = shape_.skip_gate < 1 && std::abs(share - shape_.skip_gate) < 2e-3;
        for (int j = 0; j <= t_; ++j) {
            const double weight = is_near(j) || !is_shut ? std::exp(score(j) - max) / (near_mass + far_mass) : 0.0;
            for (int i = 0; i < c_.n_embd_v; ++i)
                out[h * c_.n_embd_v + i] += is_unsure ? NAN : weight * layers_[il].v[h / c_.n_gqa].values[j][i];
        }
    }
    return out;
}

std::string compare(const Case & c, const std::vector<float> & out, const std::vector<double> & expected,
                    double & worst) {
    const double limit = tolerance + c.v_skip * 0.6;
    for (size_t i = 0; i < out.size(); ++i) {
        if (std::isnan(expected[i])) continue;
        const double error = std::abs(out[i] - expected[i]);
        worst = std::max(worst, error);
        if (error <= limit) continue;
        return "head " + std::to_string(i / c.n_embd_v) + ", value " + std::to_string(i % c.n_embd_v) + ": expected " +
               std::to_string(expected[i]) + ", got " + std::to_string(out[i]);
    }
    return "";
}

std::string check_stats(const Case & c, const SkipStats & stats, int64_t n_values) {
    if (int64_t(stats.n_values) != n_values)
        return "n_values: expected " + std::to_string(n_values) + ", got " + std::to_string(stats.n_values);
    if (stats.n_values_read > stats.n_values) return "more values read than there are";
    if (c.v_skip > 0 && stats.n_values_read * 10 > stats.n_values * 9) return "hardly a value is left out";
    if (c.v_skip > 0 && stats.n_values_read * 50 < stats.n_values) return "hardly a value is read";
    if (stats.dropped_max > c.v_skip * 1.001f)
        return "dropped " + std::to_string(stats.dropped_max) + " of a head's distance";
    if (c.v_skip > 0 && !(stats.dropped_sum > 0.2f * c.v_skip * float(stats.n_heads)))
        return "less is dropped than may be";
    return "";
}

// Returns what is wrong.
std::string run_case(const AttnKernels & kernels, const Case & c, double & worst, std::string & note) {
    Shape shape = {};
    shape.type_k = c.type_k;
    shape.type_v = c.type_v;
    shape.n_embd_k = c.n_embd_k;
    shape.n_embd_v = c.n_embd_v;
    shape.n_head_kv = c.n_head_kv;
    shape.n_head = c.n_head_kv * c.n_gqa;
    shape.n_sink = c.n_sink;
    shape.n_recent = c.n_recent;
    shape.ring_rows = c.n_sink + c.n_recent + c.slack;
    shape.n_slots = 2 * shape.n_head;
    shape.kq_scale = 1.0f / std::sqrt(float(c.n_embd_k));
    shape.skip_gate = c.skip_gate;
    shape.v_skip = c.v_skip;
    DecodeRoom room;
    const size_t n_bytes = kernels.place_decode(shape, c.n_kv + n_spare, nullptr, room);
    const std::unique_ptr<char, void (*)(void *)> memory(static_cast<char *>(std::aligned_alloc(256, n_bytes)),
                                                         std::free);
    std::memset(memory.get(), 0, n_bytes);
    if (kernels.place_decode(shape, c.n_kv + n_spare, memory.get(), room) != n_bytes) return "the room's size";

    int64_t n_values = 0;
    int n_shut = 0, n_open = 0;
    for (int t = c.n_kv - 1; t <= c.n_kv; ++t) {
        Run run(kernels, c, t, shape, room);
        for (int il = 0; il < 2; ++il) {
            std::vector<float> out;
            emulator::configure(uint64_t(t) * 2 + il, 1);
            if (const char * error = run.layer(il, out)) return error;
            n_values += int64_t(run.n_far()) * c.n_head_kv;
            const int before = n_shut;
            const std::string wrong = compare(c, out, run.reference(il, n_shut), worst);
            if (!wrong.empty()) return "t " + std::to_string(t) + ", layer " + std::to_string(il) + ": " + wrong;
            n_open += shape.n_head - (n_shut - before);
            if (t % 2 == 0) continue;
            // Another order, on two OS threads: the same bits.
            std::vector<float> again;
            emulator::configure(uint64_t(t) * 3 + il, 2);
            const SkipStats stats = *room.stats;
            if (const char * error = run.layer(il, again)) return error;
            *room.stats = stats;
            if (std::memcmp(out.data(), again.data(), out.size() * 4) != 0)
                return "results depend on the order of blocks";
        }
    }
    if (c.skip_gate < 1 && (n_shut == 0 || n_open == 0))
        return "the gate is always open, or always shut: the case tests nothing";
    if (c.v_skip > 0) {
        note = ", read " + std::to_string(room.stats->n_values_read) + " of " + std::to_string(room.stats->n_values) +
               ", dropped at most " + std::to_string(room.stats->dropped_max);
    }
    return check_stats(c, *room.stats, n_values);
}

}  // namespace

int check_decode(const AttnKernels & kernels) {
    int n_failed = 0;
    for (const Case & c : cases) {
        double worst = 0;
        std::string note;
        std::printf("decode, %s: ", c.name);
        std::fflush(stdout);  // should it crash
        const std::string wrong = run_case(kernels, c, worst, note);
        std::printf("%s (error at most %.1e%s)\n", wrong.empty() ? "ok" : wrong.c_str(), worst, note.c_str());
        n_failed += !wrong.empty();
    }
    return n_failed;
}

}  // namespace pysa::gpu::check
