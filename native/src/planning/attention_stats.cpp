// One sample: its scores and weights.
#include "planning/attention_stats.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <new>
#include <string>

#include "base/checked.h"
#include "planning/parallel.h"
#include "pysa/error.h"

namespace pysa {

namespace {

constexpr int64_t max_heads = 16384;  // of all layers: similarity takes 2 GiB then
constexpr int64_t n_block = 256;      // rows of keys at a time
constexpr float negligible = 1e-30f;  // below this a half share is 0: no subnormal numbers

void check_range(const char * name, int64_t value, int64_t low, int64_t high) {
    if (value < low || value > high)
        throw ArgumentError(std::string(name) + ": out of range: expected " + std::to_string(low) + ".." +
                            std::to_string(high) + ", got " + std::to_string(value));
}

// Scores -> weights e^(score - maximum).
struct Part {
    double max = -std::numeric_limits<double>::infinity();
    double sum = 0;

    Part(const float * scores, int64_t begin, int64_t end, float * out) {
        for (int64_t j = begin; j < end; ++j) max = std::max(max, double(scores[j]));
        for (int64_t j = begin; j < end; ++j) {
            const double weight = std::exp(double(scores[j]) - max);
            sum += weight;
            out[j] = float(weight);
        }
    }
};

}  // namespace

AttentionStats::AttentionStats(const AttentionShape & shape, int32_t n_threads)
    : shape_(shape), n_threads_(n_threads), kernels_(cpu_kernels()) {
    constexpr int64_t max_tokens = std::numeric_limits<int32_t>::max();
    check_range("n_layer", shape.n_layer, 1, max_heads);
    check_range("n_head", shape.n_head, 1, max_heads / shape.n_layer);
    check_range("n_head_kv", shape.n_head_kv, 1, shape.n_head);
    if (shape.n_head % shape.n_head_kv != 0)
        throw ArgumentError("n_head_kv: expected a divisor of n_head = " + std::to_string(shape.n_head) + ", got " +
                            std::to_string(shape.n_head_kv));
    check_range("n_sink", shape.n_sink, 0, max_tokens);
    check_range("n_recent", shape.n_recent, 0, max_tokens);
    check_range("n_threads", n_threads, 1, 512);
    try {
        sums_.similarity.resize(size_t(shape.n_heads() * shape.n_heads()));
        sums_.layer_dots.resize(size_t(shape.n_layer * shape.n_layer));
        sums_.mass.resize(size_t(shape.n_heads() * n_parts));
    } catch (const std::bad_alloc &) {
        throw DeviceError("attention statistics: out of memory: cannot hold " + std::to_string(shape.n_heads()) +
                          " heads by as many");
    }
}

void AttentionStats::set_sums(AttentionSums sums) {
    const auto check = [](const char * name, const std::vector<double> & got, const std::vector<double> & expected) {
        if (got.size() != expected.size())
            throw ArgumentError(std::string(name) + ": wrong size: expected " + std::to_string(expected.size()) +
                                " values, got " + std::to_string(got.size()));
        for (const double x : got)
            if (!std::isfinite(x))
                throw ArgumentError(std::string(name) + ": expected finite values, got NaN or infinity");
    };
    check("similarity", sums.similarity, sums_.similarity);
    check("layer_dots", sums.layer_dots, sums_.layer_dots);
    check("mass", sums.mass, sums_.mass);
    check_range("n_queries", sums.n_queries, 0, std::numeric_limits<int64_t>::max() / 2);
    check_range("n_distant", sums.n_distant, 0, sums.n_queries);
    sums_ = std::move(sums);
    drop_sample();
}

void AttentionStats::begin_sample(int64_t n_tokens, int64_t n_queries) {
    drop_sample();
    check_range("n_tokens", n_tokens, 1, std::numeric_limits<int32_t>::max());
    check_range("n_queries", n_queries, 1, n_tokens);
    const uint64_t n_rows = uint64_t(n_queries) * uint64_t(shape_.n_heads());  // below 2^45
    uint64_t n_values = 0, n_bytes = 0;
    try {
        if (!checked_mul(n_rows, uint64_t(n_tokens), n_values) || !checked_mul(n_values, sizeof(float), n_bytes) ||
            n_bytes > uint64_t(std::numeric_limits<int64_t>::max()))
            throw std::bad_alloc();
        if (int64_t(n_values) > capacity_) {
            capacity_ = 0;
            weights_.reset();
            weights_.reset(new float[size_t(n_values)]);
            capacity_ = int64_t(n_values);
        }
        mass_.resize(size_t(n_rows * n_parts));
        entropies_.resize(size_t(n_rows));
    } catch (const std::bad_alloc &) {
        throw DeviceError("sample: out of memory: cannot hold the attention of " + std::to_string(n_queries) +
                          " queries of " + std::to_string(shape_.n_heads()) + " heads to " + std::to_string(n_tokens) +
                          " tokens; take fewer queries at once");
    }
    n_tokens_ = n_tokens;
    n_queries_ = n_queries;
}

void AttentionStats::drop_sample() { n_tokens_ = n_queries_ = n_layers_done_ = 0; }

AttentionStats::Stretch AttentionStats::stretch(int64_t q) const {
    const int64_t end = n_tokens_ - n_queries_ + q + 1;
    const int64_t sinks = std::min(shape_.n_sink, end);
    return {sinks, std::max(sinks, end - shape_.n_recent), end};
}

void AttentionStats::add_layer(const float * queries, const float * keys, int64_t n_embd_head, float kq_scale) {
    if (n_layers_done_ >= shape_.n_layer || n_tokens_ == 0)
        throw ArgumentError("layer: expected begin_sample before and " + std::to_string(shape_.n_layer) +
                            " layers after it, got another");
    check_range("n_embd_head", n_embd_head, 1, std::numeric_limits<int32_t>::max());
    const int64_t il = n_layers_done_, stride = padded(n_embd_head, n_pad_embd);
    std::vector<Scratch> scratch;
    try {
        scratch.resize(size_t(std::min<int64_t>(n_threads_, shape_.n_head)));
        for (Scratch & one : scratch) {
            one.queries.resize(size_t(stride * n_queries_));
            one.rows.resize(size_t(stride * n_block));
            one.scores.resize(size_t((n_tokens_ + n_pad_columns) * n_queries_));
            one.row_pointers.resize(size_t(std::max(n_block, n_queries_)));
        }
    } catch (const std::bad_alloc &) {
        drop_sample();
        throw DeviceError("layer: out of memory: cannot hold the scores of " + std::to_string(n_queries_) +
                          " queries on each thread; take fewer queries at once");
    }
    std::atomic<bool> is_finite{true};
    parallel_for(int32_t(scratch.size()), shape_.n_head, [&](int64_t h, int32_t thread) {
        Scratch & mine = scratch[size_t(thread)];
        score_head(queries, keys, n_embd_head, kq_scale, h, mine);
        for (int64_t q = 0; q < n_queries_; ++q)
            if (!weigh_query(&mine.scores[size_t(q * (n_tokens_ + n_pad_columns))], q, il * shape_.n_head + h))
                is_finite = false;
    });
    if (!is_finite) {
        drop_sample();
        throw ArgumentError(
            "layer " + std::to_string(il) +
            ": a score is no number: expected queries and keys with finite products, got NaN or infinity");
    }
    ++n_layers_done_;
}

void AttentionStats::score_head(const float * queries, const float * keys, int64_t n_embd_head, float kq_scale,
                                int64_t h, Scratch & scratch) const {
    const int64_t stride = padded(n_embd_head, n_pad_embd);
    const char ** rows = scratch.row_pointers.data();
    for (int64_t q = 0; q < n_queries_; ++q)
        rows[q] = reinterpret_cast<const char *>(queries + (q * shape_.n_head + h) * n_embd_head);
    kernels_.to_float(GGML_TYPE_F32, rows, n_queries_, n_embd_head, scratch.queries.data(), stride);

    keys += h / (shape_.n_head / shape_.n_head_kv) * n_tokens_ * n_embd_head;
    for (int64_t first = 0; first < n_tokens_; first += n_block) {
        const int64_t n = std::min(n_block, n_tokens_ - first);
        for (int64_t i = 0; i < n; ++i) rows[i] = reinterpret_cast<const char *>(keys + (first + i) * n_embd_head);
        kernels_.to_float(GGML_TYPE_F32, rows, n, n_embd_head, scratch.rows.data(), stride);
        for (int64_t i = 0; i < n; ++i) rows[i] = reinterpret_cast<const char *>(&scratch.rows[size_t(i * stride)]);
        kernels_.dots(GGML_TYPE_F32, scratch.queries.data(), stride, n_queries_, rows, n, stride, kq_scale,
                      scratch.scores.data() + first, n_tokens_ + n_pad_columns);
    }
}

// False where a score is not finite.
bool AttentionStats::weigh_query(const float * scores, int64_t q, int64_t head) {
    const Stretch at = stretch(q);
    for (int64_t j = 0; j < at.end; ++j)
        if (!std::isfinite(scores[j])) return false;
    float * row = weights(q, head);
    const Part sinks(scores, 0, at.sinks, row), far(scores, at.sinks, at.distant, row),
        recent(scores, at.distant, at.end, row);
    const Part * parts[n_parts] = {&sinks, &recent, &far};
    const double max = std::max({sinks.max, recent.max, far.max});
    double total = 0;
    for (const Part * part : parts) total += part->sum * std::exp(part->max - max);
    double * mass = &mass_[size_t((q * shape_.n_heads() + head) * n_parts)];
    for (int i = 0; i < n_parts; ++i) mass[i] = parts[i]->sum * std::exp(parts[i]->max - max) / total;

    const double sink_share = std::exp(sinks.max - max) / total, recent_share = std::exp(recent.max - max) / total;
    for (int64_t j = 0; j < at.sinks; ++j) row[j] = float(row[j] * sink_share);
    for (int64_t j = at.distant; j < at.end; ++j) row[j] = float(row[j] * recent_share);
    for (int64_t j = at.sinks; j < at.distant; ++j) {
        const float half = float(row[j] * 0.5 / far.sum);
        row[j] = half < negligible ? 0.0f : half;
    }
    return true;
}

int64_t AttentionStats::size_bytes() const {
    const size_t n_doubles = sums_.similarity.size() + sums_.layer_dots.size() + sums_.mass.size() + mass_.capacity() +
                             entropies_.capacity();
    return capacity_ * int64_t(sizeof(float)) + int64_t(n_doubles * sizeof(double));
}

}  // namespace pysa
