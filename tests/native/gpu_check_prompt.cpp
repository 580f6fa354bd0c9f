// The GPU's attention of several tokens, against the formula of ops/shared_attn.h in double precision. A case is a few
// layers of one plan, so that sources leave weights and followers read them; rows that no query may see are NaN.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include "gpu_check.h"

namespace pysa::gpu::check {

namespace {

enum class Plan { dense, local, all_follow, scores, keys, mixed };

struct PromptCase {
    const char * name;
    Plan plan;
    RowType type_k, type_v;
    int n_embd, n_gqa, n_head_kv;
    int n_sink, n_recent, n_slack;
    int n_past, n_tokens;
    float skip_gate;
    float bias;
};

constexpr RowType f32 = RowType::f32, f16 = RowType::f16, bf16 = RowType::bf16, q8_0 = RowType::q8_0,
                  q4_0 = RowType::q4_0;

const PromptCase cases[] = {
    {"one tile", Plan::dense, f16, f16, 64, 1, 3, 0, 4096, 5, 0, 7, 1.0f, 0.0f},
    {"two query tiles", Plan::dense, f16, f16, 64, 1, 2, 5, 4096, 5, 0, 141, 1.0f, 0.0f},
    {"window only", Plan::dense, f16, q8_0, 96, 3, 2, 0, 100, 9, 251, 50, 1.0f, 0.0f},
    {"owners", Plan::dense, f16, bf16, 128, 4, 2, 7, 70, 9, 224, 77, 1.0f, 0.0f},
    {"owners, f32", Plan::dense, f32, f32, 128, 9, 1, 17, 64, 11, 60, 31, 1.0f, 0.0f},
    {"all sinks", Plan::dense, bf16, q4_0, 64, 2, 3, 70, 33, 11, 0, 69, 1.0f, 0.0f},
    {"no window", Plan::all_follow, f16, f16, 64, 3, 2, 0, 0, 0, 0, 77, 1.0f, 0.0f},
    {"no window, quantised", Plan::all_follow, q8_0, q4_0, 128, 8, 1, 0, 0, 0, 266, 35, 1.0f, 0.3f},
    {"no window, big heads", Plan::all_follow, f16, q8_0, 256, 2, 2, 0, 0, 0, 130, 41, 1.0f, 0.0f},
    {"streaming", Plan::local, q8_0, f16, 96, 4, 2, 4, 61, 3, 150, 67, 1.0f, 0.0f},
    {"streaming, small ring", Plan::local, f16, f32, 64, 5, 2, 3, 11, 2, 301, 29, 1.0f, 0.0f},
    {"streaming, big heads", Plan::local, bf16, q4_0, 256, 3, 2, 6, 45, 4, 95, 38, 1.0f, 0.0f},
    {"scores", Plan::scores, f16, f16, 128, 4, 2, 16, 75, 8, 210, 90, 1.0f, -0.7f},
    {"scores from the start", Plan::scores, q8_0, f16, 64, 3, 2, 5, 30, 8, 0, 150, 1.0f, 0.4f},
    {"scores, big heads", Plan::scores, q4_0, bf16, 256, 1, 3, 3, 40, 8, 200, 101, 1.0f, 0.5f},
    {"scores, one query", Plan::scores, f32, q8_0, 96, 9, 1, 16, 100, 8, 700, 1, 1.0f, 0.0f},
    {"no window, long", Plan::all_follow, f16, q8_0, 64, 2, 1, 0, 0, 0, 6001, 9, 1.0f, 0.0f},
    {"scores, long", Plan::scores, f16, q8_0, 64, 8, 1, 16, 128, 32, 685, 16, 1.0f, 0.0f},
    {"keys", Plan::keys, f16, f16, 128, 3, 2, 9, 50, 8, 177, 50, 1.0f, 0.6f},
    {"keys, quantised", Plan::keys, q4_0, q8_0, 96, 4, 2, 0, 65, 8, 200, 33, 1.0f, -0.2f},
    {"mixed", Plan::mixed, f16, f16, 64, 6, 2, 4, 40, 8, 190, 60, 1.0f, 0.5f},
    {"mixed, quantised", Plan::mixed, q8_0, q4_0, 128, 9, 1, 7, 90, 8, 260, 41, 1.0f, -0.5f},
    {"mixed, big heads", Plan::mixed, f16, f16, 256, 3, 2, 5, 50, 8, 140, 45, 1.0f, 0.0f},
    {"mixed, small heads", Plan::mixed, f16, f32, 32, 3, 2, 4, 40, 8, 190, 60, 1.0f, 0.5f},
    {"mixed, small heads, quantised", Plan::mixed, q4_0, q8_0, 32, 8, 1, 5, 50, 8, 140, 45, 0.7f, 0.3f},
    {"keys, small heads", Plan::keys, bf16, f16, 32, 4, 2, 9, 50, 8, 177, 50, 1.0f, 0.6f},
    {"mixed, many heads", Plan::mixed, bf16, f16, 64, 64, 1, 5, 50, 8, 140, 3, 1.0f, 0.0f},
    {"gate of owners", Plan::dense, f16, f16, 64, 3, 2, 6, 60, 8, 120, 60, 0.5f, 0.0f},
    {"gate of followers", Plan::scores, f16, f16, 128, 4, 2, 6, 100, 8, 150, 60, 0.7f, 0.5f},
    {"gate shut", Plan::scores, f16, f16, 64, 2, 2, 6, 100, 8, 150, 60, 0.7f, -9.0f},
    {"gate, one query", Plan::scores, f16, f16, 64, 1, 7, 4, 50, 8, 120, 1, 0.3f, 1.5f},
    {"gate, mixed", Plan::mixed, q8_0, f16, 96, 3, 2, 6, 70, 8, 90, 90, 0.7f, 0.2f},
    {"gate, big heads", Plan::mixed, f16, q8_0, 256, 3, 1, 2, 70, 8, 90, 50, 0.7f, 0.0f},
    {"gate without window", Plan::all_follow, f16, f16, 64, 2, 1, 0, 0, 0, 20, 50, 0.7f, 0.0f},
};

// Rows are the same on both sides. Queries, and rows of types other than f16, are rounded to f16, by 2^-11 of
// themselves at most: of scores, whose deviation is 2, that makes 5e-4, of values and weights 2e-4, at random. A result
// is off by the root of the sum of the squares of all that times the weights, and by a multiple once in a while.
constexpr double limit = 4e-3;
constexpr int n_spare = 37;  // rows and queries that there could still be

// The rows of a layer and KV head, as the cache holds them and as the reference reads them.
struct PromptRows {
    RowStore full, ring;
    std::vector<std::vector<float>> values;
};

class PromptCheck {
  public:
    PromptCheck(const AttnKernels & kernels, const PromptCase & what)
        : kernels_(kernels), c_(what), numbers_(uint64_t(&what - cases)) {}

    // Returns the largest error, of its limit.
    double run() {
        plan();
        fill();
        const Shape shape = shape_of();
        if (!kernels_.supports(shape)) fail("not supported");
        PromptRoom room;
        std::vector<char> bytes(
            kernels_.place_prompt(shape, n_kv() + n_spare, c_.n_tokens + n_spare, nullptr, room) + 256, char(0xff));
        char * base = reinterpret_cast<char *>((reinterpret_cast<uintptr_t>(bytes.data()) + 255) / 256 * 256);
        kernels_.place_prompt(shape, n_kv() + n_spare, c_.n_tokens + n_spare, base, room);
        for (size_t l = 0; l < layers_.size(); ++l) {
            launch(shape, room, layers_[l]);
            compare(int(l));
        }
        return worst_;
    }

    int n_gated() const { return n_gated_; }
    int n_open() const { return n_open_; }

  private:
    struct Layer {
        std::vector<Head> heads;
        std::vector<int> source_layer, source_head;
        std::vector<float> q;
        std::vector<PromptRows> k, v;  // [n_head_kv]
        RowStore k_cur, v_cur;         // [n_tokens * n_head_kv]
        std::vector<KvHead> kv_heads;
        std::vector<float> dst;
    };

    int n_head() const { return c_.n_gqa * c_.n_head_kv; }
    int n_kv() const { return c_.n_past + c_.n_tokens; }
    int q_token() const { return n_head() * c_.n_embd + 16; }

    [[noreturn]] void fail(const std::string & text) const { throw std::string(c_.name) + ": " + text; }

    Shape shape_of() const {
        Shape shape = {};
        shape.type_k = c_.type_k, shape.type_v = c_.type_v;
        shape.n_embd_k = shape.n_embd_v = c_.n_embd;
        shape.n_head = n_head(), shape.n_head_kv = c_.n_head_kv;
        shape.n_sink = c_.n_sink, shape.n_recent = c_.n_recent;
        shape.ring_rows = c_.n_recent > 0 ? c_.n_sink + c_.n_recent + c_.n_slack : 0;
        shape.n_slots = n_slots_;
        shape.kq_scale = 2.0f / std::sqrt(float(c_.n_embd));
        shape.skip_gate = c_.skip_gate;
        return shape;
    }

    void add_owners(bool leave, float bias) {
        layers_.emplace_back();
        Layer & layer = layers_.back();
        for (int h = 0; h < n_head(); ++h) {
            layer.heads.push_back({Kind::owner, 1, -1, leave ? n_slots_++ : -1, bias});
            layer.source_layer.push_back(int(layers_.size()) - 1);
            layer.source_head.push_back(h);
        }
    }

    void follow(Layer & layer, int h, int source_layer, int source_head, bool by_keys) {
        const Head & source = layers_[size_t(source_layer)].heads[size_t(source_head)];
        layer.heads[size_t(h)] = {Kind::follower, by_keys, by_keys ? -1 : source.slot_out, -1,
                                  c_.bias + 0.1f * float(h % 3)};
        layer.source_layer[size_t(h)] = source_layer;
        layer.source_head[size_t(h)] = source_head;
    }

    void plan() {
        const int n = n_head();
        if (c_.plan == Plan::dense) return add_owners(false, 0.0f);
        if (c_.plan == Plan::local) {
            add_owners(false, 0.0f);
            for (Head & head : layers_[0].heads) head = {Kind::local, 0, -1, -1, 0.0f};
            return;
        }
        const bool by_keys = c_.plan == Plan::keys;
        add_owners(!by_keys, 0.0f);
        if (c_.plan == Plan::mixed) {
            add_owners(false, 0.0f);
            Layer & layer = layers_[1];
            for (int h = 0; h < n; ++h) {
                if (h % 3 == 0) layer.heads[size_t(h)].slot_out = n_slots_++;
                if (h % 3 == 1) follow(layer, h, 0, (h * 5 + 2) % n, false);
                if (h % 3 == 2) layer.heads[size_t(h)] = {Kind::local, 0, -1, -1, 0.0f};
            }
        }
        const int from = int(layers_.size()) - 1;
        add_owners(false, 0.0f);
        for (int h = 0; h < n; ++h)
            follow(layers_.back(), h, from,
                   by_keys                  ? h
                   : c_.plan == Plan::mixed ? h * 7 % n / 3 * 3
                                            : (h * 5 + 1) % n,
                   by_keys);
    }

    // A layer's rows of one kind, and those of the step.
    void fill(std::vector<PromptRows> & heads, RowStore & cur, RowType type, float deviation) {
        const int n_ring = c_.n_recent + c_.n_slack;
        cur = RowStore(type, c_.n_embd, int64_t(c_.n_tokens) * c_.n_head_kv);
        for (int kv = 0; kv < c_.n_head_kv; ++kv) {
            heads.push_back({{type, c_.n_embd, n_kv()}, {type, c_.n_embd, c_.n_sink + n_ring}, {}});
            PromptRows & rows = heads.back();
            for (int j = 0; j < n_kv(); ++j) {
                rows.full.write(j, numbers_.normal(c_.n_embd, deviation).data());
                rows.values.push_back(rows.full.read(j));
                if (j >= c_.n_past)
                    cur.copy(kv * c_.n_tokens + j - c_.n_past, rows.full, j);
                else if (c_.n_recent > 0)
                    rows.ring.copy(j < c_.n_sink ? j : c_.n_sink + (j - c_.n_sink) % n_ring, rows.full, j);
            }
        }
    }

    void fill() {
        const bool has_window = c_.n_recent > 0;
        for (Layer & layer : layers_) {
            layer.q = numbers_.normal(int64_t(q_token()) * c_.n_tokens);
            layer.dst.assign(size_t(n_head()) * size_t(c_.n_embd) * size_t(c_.n_tokens), NAN);
            fill(layer.k, layer.k_cur, c_.type_k, 1.0f);
            fill(layer.v, layer.v_cur, c_.type_v, 0.5f);
        }
        for (Layer & layer : layers_)
            for (int kv = 0; kv < c_.n_head_kv; ++kv) {
                bool owns = false, all_local = true;
                int keys_layer = -1;
                for (int h = kv * c_.n_gqa; h < (kv + 1) * c_.n_gqa; ++h) {
                    const Head & head = layer.heads[size_t(h)];
                    owns |= head.kind == Kind::owner;
                    all_local &= head.kind == Kind::local;
                    if (head.scores_far) keys_layer = layer.source_layer[size_t(h)];
                }
                PromptRows &k = layer.k[size_t(kv)], &v = layer.v[size_t(kv)];
                KvHead head = {};
                head.k_is_ring = !owns, head.v_is_ring = all_local;
                head.k_near = !has_window ? nullptr : owns ? k.full.row(0) : k.ring.row(0);
                head.v_near = !has_window ? nullptr : all_local ? v.ring.row(0) : v.full.row(0);
                head.k_far = keys_layer < 0 ? nullptr : layers_[size_t(keys_layer)].k[size_t(kv)].full.row(0);
                head.v_far = all_local ? nullptr : v.full.row(0);
                layer.kv_heads.push_back(head);
            }
    }

    void launch(const Shape & shape, const PromptRoom & room, Layer & layer) {
        const Step step = {c_.n_past, c_.n_tokens};
        bool scores = c_.n_recent > 0;
        for (const Head & head : layer.heads) scores |= head.scores_far != 0;
        Call call = {};
        call.shape = shape;
        call.heads = layer.heads.data();
        call.kv_heads = layer.kv_heads.data();
        call.step = &step;
        call.q = scores ? layer.q.data() : nullptr;
        call.q_head = c_.n_embd * 4;
        call.q_token = q_token() * 4;
        if (c_.n_recent > 0) {
            call.k_cur = layer.k_cur.row(0), call.v_cur = layer.v_cur.row(0);
            call.k_cur_row = layer.k_cur.row_bytes(), call.v_cur_row = layer.v_cur.row_bytes();
            call.k_cur_head = call.k_cur_row * c_.n_tokens, call.v_cur_head = call.v_cur_row * c_.n_tokens;
        }
        call.dst = layer.dst.data();
        call.prompt = room;
        const char * error = kernels_.prompt(call, c_.n_tokens + n_spare, n_kv() + n_spare, nullptr);
        if (error) fail(error);
    }

    double score(int layer, int keys_layer, int h, int token, int j) const {
        const float * q = &layers_[size_t(layer)].q[size_t(token) * size_t(q_token()) + size_t(h) * size_t(c_.n_embd)];
        const float * k = layers_[size_t(keys_layer)].k[size_t(h / c_.n_gqa)].values[size_t(j)].data();
        double sum = 0;
        for (int d = 0; d < c_.n_embd; ++d) sum += double(q[d]) * k[d];
        return sum * shape_of().kq_scale;
    }

    void compare(int l) {
        const Layer & layer = layers_[size_t(l)];
        std::vector<double> scores(static_cast<size_t>(n_kv()));
        for (int token = 0; token < c_.n_tokens; ++token)
            for (int h = 0; h < n_head(); ++h) {
                const Head & head = layer.heads[size_t(h)];
                const int t = c_.n_past + token, source = layer.source_layer[size_t(h)];
                const auto is_near = [&](int j) { return c_.n_recent > 0 && (j < c_.n_sink || j > t - c_.n_recent); };
                double most = -INFINITY;
                for (int j = 0; j <= t; ++j) {
                    double & s = scores[size_t(j)];
                    if (is_near(j))
                        s = score(l, l, h, token, j);
                    else if (head.kind == Kind::local)
                        s = -INFINITY;
                    else
                        s = head.bias + (head.slot_in >= 0
                                             ? score(source, source, layer.source_head[size_t(h)], token, j)
                                             : score(l, source, h, token, j));
                    most = std::max(most, s);
                }
                double mass[2] = {}, squares[2] = {};
                std::vector<double> sums[2];
                for (auto & sum : sums) sum.resize(size_t(c_.n_embd));
                for (int j = 0; j <= t; ++j) {
                    const int is_far = !is_near(j);
                    const double w = std::exp(scores[size_t(j)] - most);
                    const float * v = layer.v[size_t(h / c_.n_gqa)].values[size_t(j)].data();
                    mass[is_far] += w;
                    squares[is_far] += w * w;
                    for (int d = 0; d < c_.n_embd; ++d) sums[is_far][size_t(d)] += w * v[d];
                }
                const double share = mass[0] / (mass[0] + mass[1]);
                const bool is_gated = c_.skip_gate < 1.0f && share >= c_.skip_gate;
                if (c_.skip_gate < 1.0f && mass[1] > 0) {
                    if (std::abs(share - c_.skip_gate) < 2e-3) continue;  // rounding decides
                    ++(is_gated ? n_gated_ : n_open_);
                }
                const double root = is_gated ? std::sqrt(squares[0]) / mass[0]
                                             : std::sqrt(squares[0] + squares[1]) / (mass[0] + mass[1]);
                for (int d = 0; d < c_.n_embd; ++d) {
                    const double expected = is_gated ? sums[0][size_t(d)] / mass[0]
                                                     : (sums[0][size_t(d)] + sums[1][size_t(d)]) / (mass[0] + mass[1]);
                    const double got =
                        layer.dst[(size_t(token) * size_t(n_head()) + size_t(h)) * size_t(c_.n_embd) + size_t(d)];
                    const double error = std::abs(got - expected) / (root * limit);
                    if (!(error <= 1.0))
                        fail("layer " + std::to_string(l) + " token " + std::to_string(token) + " head " +
                             std::to_string(h) + " value " + std::to_string(d) + ": expected " +
                             std::to_string(expected) + ", got " + std::to_string(got));
                    worst_ = std::max(worst_, error);
                }
            }
    }

    const AttnKernels & kernels_;
    const PromptCase & c_;
    Numbers numbers_;
    std::vector<Layer> layers_;
    int n_slots_ = 0;
    int n_gated_ = 0, n_open_ = 0;
    double worst_ = 0;
};

}  // namespace

int check_prompt(const AttnKernels & kernels) {
    int n_failed = 0;
    for (const PromptCase & what : cases) {
        try {
            PromptCheck check(kernels, what);
            const double worst = check.run();
            std::printf("prompt: %s: %.2f of the limit", what.name, worst);
            if (what.skip_gate < 1.0f) std::printf(", gate shut %d times, open %d", check.n_gated(), check.n_open());
            std::printf("\n");
        } catch (const std::string & text) {
            std::printf("prompt: %s\n", text.c_str());
            ++n_failed;
        }
        std::fflush(stdout);
    }
    return n_failed;
}

}  // namespace pysa::gpu::check
