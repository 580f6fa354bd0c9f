// What a sample adds to the sums: all pairs of heads, all pairs of layers.
#include <algorithm>
#include <string>
#include <utility>

#include "planning/attention_stats.h"
#include "planning/parallel.h"
#include "pysa/error.h"

namespace pysa {

namespace {

constexpr int64_t n_tile = 16;  // heads of one stretch of pairs: their rows stay in the cache

double dot(const float * a, const float * b, int64_t n) {
    double total[4] = {};
    int64_t i = 0;
    for (; i + 4 <= n; i += 4)
        for (int k = 0; k < 4; ++k) total[k] += double(a[i + k]) * double(b[i + k]);
    for (; i < n; ++i) total[0] += double(a[i]) * double(b[i]);
    return (total[0] + total[1]) + (total[2] + total[3]);
}

}  // namespace

void AttentionStats::end_sample() {
    if (n_tokens_ == 0 || n_layers_done_ != shape_.n_layer)
        throw ArgumentError("sample: expected " + std::to_string(shape_.n_layer) + " layers before its end, got " +
                            std::to_string(n_layers_done_));
    const int64_t n_heads = shape_.n_heads();
    std::vector<std::pair<int64_t, int64_t>> tiles, layers;  // the upper triangles; nothing after them can fail
    for (int64_t i = 0; i < n_heads; i += n_tile)
        for (int64_t j = i; j < n_heads; j += n_tile) tiles.emplace_back(i, j);
    for (int64_t i = 0; i < shape_.n_layer; ++i)
        for (int64_t j = i; j < shape_.n_layer; ++j) layers.emplace_back(i, j);

    parallel_for(n_threads_, n_queries_ * n_heads, [&](int64_t row, int32_t) {
        const int64_t q = row / n_heads, head = row % n_heads;
        const Stretch at = stretch(q);
        const float * half = weights(q, head) + at.sinks;
        kernels_.mean_entropies(half, half, 0, 1, at.distant - at.sinks, &entropies_[size_t(row)]);
    });
    parallel_for(n_threads_, int64_t(tiles.size()),
                 [&](int64_t i, int32_t) { add_similarity(tiles[size_t(i)].first, tiles[size_t(i)].second); });
    parallel_for(n_threads_, int64_t(layers.size()),
                 [&](int64_t i, int32_t) { add_layer_dots(layers[size_t(i)].first, layers[size_t(i)].second); });
    for (int64_t q = 0; q < n_queries_; ++q) {
        for (int64_t i = 0; i < n_heads * n_parts; ++i)
            sums_.mass[size_t(i)] += mass_[size_t(q * n_heads * n_parts + i)];
        sums_.n_distant += stretch(q).distant > stretch(q).sinks;
    }
    sums_.n_queries += n_queries_;
    drop_sample();
}

void AttentionStats::add_similarity(int64_t first_row, int64_t first_column) {
    const int64_t n_heads = shape_.n_heads(), end = std::min(first_column + n_tile, n_heads);
    for (int64_t q = 0; q < n_queries_; ++q) {
        const Stretch at = stretch(q);
        if (at.distant == at.sinks) continue;
        const double * entropies = &entropies_[size_t(q * n_heads)];
        for (int64_t a = first_row; a < std::min(first_row + n_tile, n_heads); ++a) {
            const int64_t b0 = std::max(a, first_column);
            double mean[n_tile];
            kernels_.mean_entropies(weights(q, a) + at.sinks, weights(q, b0) + at.sinks, n_tokens_, end - b0,
                                    at.distant - at.sinks, mean);
            for (int64_t b = b0; b < end; ++b) {
                const double divergence = mean[b - b0] - (entropies[a] + entropies[b]) / 2;
                sums_.similarity[size_t(a * n_heads + b)] += 1.0 - std::min(std::max(divergence, 0.0), 1.0);
            }
        }
    }
}

void AttentionStats::add_layer_dots(int64_t il, int64_t jl) {
    double & total = sums_.layer_dots[size_t(il * shape_.n_layer + jl)];
    for (int64_t q = 0; q < n_queries_; ++q) {
        const Stretch at = stretch(q);
        const double * mass = &mass_[size_t(q * shape_.n_heads() * n_parts)];
        for (int64_t h = 0; h < shape_.n_head; ++h) {
            const int64_t i = il * shape_.n_head + h, j = jl * shape_.n_head + h;
            const float *a = weights(q, i), *b = weights(q, j);
            const double far = dot(a + at.sinks, b + at.sinks, at.distant - at.sinks);
            total += dot(a, b, at.sinks) + dot(a + at.distant, b + at.distant, at.end - at.distant) +
                     4 * mass[i * n_parts + 2] * mass[j * n_parts + 2] * far;
        }
    }
}

}  // namespace pysa
