// The kernels that serve prompts: tiles of n_lanes queries.
#include <algorithm>

#include "kernel_check_data.h"

namespace {

using pysa::n_lanes;
using pysa::n_pad_columns;

struct PromptCheck : Check {
    using Check::Check;

    void run() {
        for (const int64_t n_rows : row_counts) {
            for (const int64_t n_embd : {32, 80, 96, 256})
                for (const int64_t n_heads : {1, 2, 3}) score_tiles(n_heads, n_rows, n_embd);
            mask_tile(n_rows);
            for (const bool with_floor : {false, true})
                for (const bool with_halves : {false, true}) softmax_tile(n_rows, with_floor, with_halves);
        }
        for (int i = 0; i < 20; ++i) merge_tile();
    }

    void score_tiles(int64_t n_heads, int64_t n_rows, int64_t n_embd) {
        begin("score_tiles", "n_heads " + std::to_string(n_heads) + " n_rows " + std::to_string(n_rows) + " n_embd " +
                                 std::to_string(n_embd));
        Poisoned<float> rows(n_embd, n_rows, n_embd + 16, n_pad_columns * (n_embd + 16));
        random.fill(rows, -1.0f, 1.0f);
        std::vector<Poisoned<float>> queries, tiles;
        std::vector<const float *> query_pointers;
        std::vector<float *> tile_pointers;
        for (int64_t h = 0; h < n_heads; ++h) {
            queries.emplace_back(n_lanes, n_embd, n_lanes);
            tiles.emplace_back(n_lanes, n_rows, n_lanes, 2 * n_pad_columns * n_lanes);
            random.fill(queries.back(), -1.0f, 1.0f);
            query_pointers.push_back(queries.back().data());
            tile_pointers.push_back(tiles.back().data());
        }
        kernels.score_tiles(query_pointers.data(), tile_pointers.data(), n_heads, rows.data(), n_rows, rows.stride,
                            n_embd);
        for (int64_t h = 0; h < n_heads; ++h) {
            for (int64_t i = 0; i < n_rows; ++i)
                for (int64_t lane = 0; lane < n_lanes; ++lane) {
                    double total = 0, absolutes = 0;
                    for (int64_t d = 0; d < n_embd; ++d) {
                        const double term = double(queries[size_t(h)].row(d)[lane]) * rows.row(i)[d];
                        total += term;
                        absolutes += std::abs(term);
                    }
                    near("scores", i, lane, total, tiles[size_t(h)].row(i)[lane], sum_limit(n_embd, absolutes));
                }
            tiles[size_t(h)].check(where, 0, n_pad_columns);
        }
    }

    void mask_tile(int64_t n_rows) {
        begin("mask_tile", "n_rows " + std::to_string(n_rows));
        const int32_t first = 1000;
        Poisoned<float> tile(n_lanes, n_rows, n_lanes);
        random.fill(tile, -9.0f, 9.0f);
        Poisoned<float> before = tile;
        int32_t from[n_lanes], to[n_lanes];
        for (int lane = 0; lane < n_lanes; ++lane) {
            from[lane] = first - 3 + lane / 2;
            to[lane] = lane == 5 ? from[lane] : first + int32_t(n_rows) * lane / 12;  // 5: nothing; the last: beyond it
        }
        kernels.mask_tile(tile.data(), n_rows, first, from, to);
        for (int64_t i = 0; i < n_rows; ++i)
            for (int64_t lane = 0; lane < n_lanes; ++lane) {
                const bool is_in = first + i >= from[lane] && first + i < to[lane];
                near("tile", i, lane, is_in ? before.row(i)[lane] : minus_infinity, tile.row(i)[lane], 0.0);
            }
        tile.check(where);
    }

    void softmax_tile(int64_t n_rows, bool with_floor, bool with_halves) {
        begin("softmax_tile", "n_rows " + std::to_string(n_rows) + (with_floor ? " with floor" : "") +
                                  (with_halves ? " with halves" : ""));
        Poisoned<float> tile(n_lanes, n_rows, n_lanes), part(n_lanes, 2, n_lanes);
        Poisoned<uint16_t> halves(n_lanes, n_rows, n_lanes);
        random.fill(tile, -20.0f, 8.0f);
        float floor[n_lanes];
        for (int lane = 0; lane < n_lanes; ++lane) floor[lane] = random(-30.0f, 30.0f);
        floor[1] = floor[2] = minus_infinity;
        floor[4] = 200.0f;  // e^(x - floor) is 0
        for (int64_t i = 0; i < n_rows; ++i) {
            for (const int lane : {2, 3, 9}) tile.row(i)[lane] = minus_infinity;  // nothing seen
            if (i % 3 == 1) tile.row(i)[i % n_lanes] = i % 2 ? minus_infinity : -1e4f;
        }
        Poisoned<float> before = tile;
        kernels.softmax_tile(tile.data(), n_rows, with_floor ? floor : nullptr, with_halves ? halves.data() : nullptr,
                             part.data());
        for (int64_t lane = 0; lane < n_lanes; ++lane) {
            float most = with_floor ? floor[lane] : minus_infinity;
            for (int64_t i = 0; i < n_rows; ++i) most = std::max(most, before.row(i)[lane]);
            near("maxima", 0, lane, most, part.row(0)[lane], 0.0);
            double total = 0;
            for (int64_t i = 0; i < n_rows; ++i) {
                const double e = std::exp(double(before.row(i)[lane] - (most == minus_infinity ? 0.0f : most)));
                const float got = tile.row(i)[lane];
                near("weights", i, lane, e, got, with_halves ? half_limit(e) : exp_limit(e));
                if (with_halves) near("halves", i, lane, got, ggml_fp16_to_fp32(halves.row(i)[lane]), 0.0);
                total += got;
            }
            near("sums", 0, lane, total, part.row(1)[lane], sum_limit(n_rows, total));
        }
        tile.check(where);
        part.check(where);
        halves.check(where, with_halves ? 0 : -n_lanes);
    }

    void merge_tile() {
        begin("merge_tile");
        const float bias = random(-2.0f, 2.0f);
        Poisoned<float> seen(n_lanes, 2, n_lanes), part(n_lanes, 2, n_lanes);
        Poisoned<float> decay(n_lanes), factor(n_lanes);
        random.fill(seen, 0.0f, 90.0f);
        random.fill(part, 0.0f, 90.0f);
        for (const int lane : {0, 1, 13}) seen.row(0)[lane] = minus_infinity, seen.row(1)[lane] = 0.0f;
        for (const int lane : {1, 2, 14}) part.row(0)[lane] = minus_infinity, part.row(1)[lane] = 0.0f;
        Poisoned<float> before = seen;
        kernels.merge_tile(seen.data(), part.data(), bias, decay.data(), factor.data());
        for (int64_t lane = 0; lane < n_lanes; ++lane) {
            const float m0 = before.row(0)[lane], m1 = part.row(0)[lane] + bias, most = std::max(m0, m1);
            const float reference = most == minus_infinity ? 0.0f : most;
            const double d = std::exp(double(m0 - reference)), f = std::exp(double(m1 - reference));
            near("maxima", 0, lane, most, seen.row(0)[lane], 0.0);
            near("decay", 0, lane, d, decay.data()[lane], exp_limit(d));
            near("factor", 0, lane, f, factor.data()[lane], exp_limit(f));
            const double a = before.row(1)[lane] * d, b = part.row(1)[lane] * f;
            near("sums", 0, lane, a + b, seen.row(1)[lane],
                 before.row(1)[lane] * exp_limit(d) + part.row(1)[lane] * exp_limit(f) + sum_limit(2, a + b));
        }
        for (const auto * v : {&seen, &part, &decay, &factor}) v->check(where);
    }
};

}  // namespace

void check_prompt_kernels(const pysa::CpuKernels & kernels) { PromptCheck(kernels).run(); }
