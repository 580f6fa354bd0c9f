// The kernels that serve single tokens: rows as the cache keeps them.
#include <algorithm>

#include "kernel_check_data.h"

namespace {

using pysa::n_lanes;
using pysa::n_pad_columns;

constexpr ggml_type types[] = {GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0};

struct TokenCheck : Check {
    using Check::Check;

    void run() {
        for (const ggml_type type : types) {
            for (const int64_t n_embd : {32, 64, 96, 128, 256}) rows_of(type, n_embd);
            if (ggml_blck_size(type) == 1) to_float(type, CacheRows(type, 80, 3, random));
        }
        for (const int64_t n : {1, 2, 5, 16, 17, 63, 64, 200}) {
            softmax(n, false);
            softmax(n, true);
            masks(n);
            for (const float budget : {1e-4f, 0.02f, 1.0f}) limit(n, budget);
        }
    }

    void rows_of(ggml_type type, int64_t n_embd) {
        const CacheRows rows(type, n_embd, 64, random);
        to_float(type, rows);
        for (int64_t n_queries = 1; n_queries <= 9; ++n_queries)
            for (const int64_t n_rows : row_counts) {
                detail = std::string(ggml_type_name(type)) + " n_embd " + std::to_string(n_embd) + " n_queries " +
                         std::to_string(n_queries) + " n_rows " + std::to_string(n_rows);
                dots(type, rows, n_queries, n_rows);
                weigh(type, rows, n_queries, n_rows, n_rows + 7, 1, false);
                weigh(type, rows, n_queries, n_rows, 1, n_lanes, true);
            }
    }

    void to_float(ggml_type type, const CacheRows & rows) {
        begin("to_float", std::string(ggml_type_name(type)) + " n_embd " + std::to_string(rows.n_embd));
        const int64_t n_rows = int64_t(rows.pointers.size()), stride = rows.n_embd + 16;
        Poisoned<float> out(stride, n_rows, stride);
        kernels.to_float(type, rows.pointers.data(), n_rows, rows.n_embd, out.data(), stride);
        for (int64_t i = 0; i < n_rows; ++i)
            for (int64_t d = 0; d < stride; ++d)
                near("out", i, d, d < rows.n_embd ? rows.row(i)[d] : 0.0, out.row(i)[d], 0.0);
        out.check(where);
    }

    void dots(ggml_type type, const CacheRows & rows, int64_t n_queries, int64_t n_rows) {
        begin("dots", detail);
        const int64_t n_embd = rows.n_embd;
        const float scale = 0.125f;
        Poisoned<float> queries(n_embd, n_queries, n_embd + 9), out(n_rows, n_queries, n_rows + n_pad_columns + 3);
        random.fill(queries, -1.0f, 1.0f);
        kernels.dots(type, queries.data(), queries.stride, n_queries, rows.pointers.data(), n_rows, n_embd, scale,
                     out.data(), out.stride);
        for (int64_t q = 0; q < n_queries; ++q)
            for (int64_t i = 0; i < n_rows; ++i) {
                double total = 0, absolutes = 0;
                for (int64_t d = 0; d < n_embd; ++d) {
                    const double term = double(queries.row(q)[d]) * rows.row(i)[d];
                    total += term;
                    absolutes += std::abs(term);
                }
                near("out", q, i, total * scale, out.row(q)[i], sum_limit(n_embd, absolutes) * scale);
            }
        out.check(where, n_pad_columns);
    }

    void weigh(ggml_type type, const CacheRows & rows, int64_t n_queries, int64_t n_rows, int64_t query_step,
               int64_t row_step, bool with_decay) {
        begin(with_decay ? "weigh with decay" : "weigh", detail);
        const int64_t n_embd = rows.n_embd;
        const bool is_tile = query_step == 1;
        Poisoned<float> weights(is_tile ? n_queries : n_rows, is_tile ? n_rows : n_queries,
                                is_tile ? row_step : query_step);
        Poisoned<float> decay(n_queries), factor(n_queries), out(n_embd, n_queries, n_embd + 5);
        random.fill(weights, 0.0f, 1.0f);
        random.fill(decay, 0.0f, 1.0f);
        random.fill(factor, 0.0f, 1.0f);
        random.fill(out, -1.0f, 1.0f);
        Poisoned<float> before = out;
        std::vector<int32_t> list;
        for (int32_t i = 0; i < n_rows; ++i)
            if (!with_decay || i % 3 != 1) list.push_back(i);
        kernels.weigh(type, weights.data(), query_step, row_step, n_queries, rows.pointers.data(),
                      with_decay ? list.data() : nullptr, int64_t(list.size()), n_embd,
                      with_decay ? decay.data() : nullptr, factor.data(), out.data(), out.stride);
        for (int64_t q = 0; q < n_queries; ++q)
            for (int64_t d = 0; d < n_embd; ++d) {
                double total = double(before.row(q)[d]) * (with_decay ? decay.data()[q] : 1.0f);
                double absolutes = std::abs(total);
                for (const int32_t i : list) {
                    const double weight = double(weights.data()[q * query_step + i * row_step]) * factor.data()[q];
                    const double term = weight * rows.row(i)[d];
                    total += term;
                    absolutes += std::abs(term);
                }
                near("out", q, d, total, out.row(q)[d], sum_limit(n_rows, absolutes));
            }
        out.check(where);
    }

    void softmax(int64_t n, bool with_halves) {
        begin(with_halves ? "softmax with halves" : "softmax", "n " + std::to_string(n));
        Poisoned<float> scores(n), max(1), sum(1), unpacked(n);
        Poisoned<uint16_t> halves(n);
        random.fill(scores, -20.0f, 8.0f);
        const float rare[] = {minus_infinity, -1e4f, -3e38f, -79.0f, -86.0f, -95.0f};
        for (int64_t i = 0; i < n / 2; i += 3) scores.data()[2 * i] = rare[i / 3 % 6];
        scores.data()[n - 1] = 7.5f;
        const std::vector<float> before = scores.at;
        kernels.softmax(scores.data(), n, with_halves ? halves.data() : nullptr, max.data(), sum.data());

        const float most = *std::max_element(before.begin(), before.begin() + n);
        near("max", 0, 0, most, max.at[0], 0.0);
        double total = 0;
        for (int64_t i = 0; i < n; ++i) {
            const double e = std::exp(double(before[size_t(i)] - most));
            near("scores", 0, i, e, scores.at[size_t(i)], with_halves ? half_limit(e) : exp_limit(e));
            if (with_halves) near("halves", 0, i, scores.at[size_t(i)], ggml_fp16_to_fp32(halves.at[size_t(i)]), 0.0);
            total += scores.at[size_t(i)];
        }
        near("sum", 0, 0, total, sum.at[0], sum_limit(n, total));
        for (const auto * v : {&scores, &max, &sum}) v->check(where, v == &scores ? n_pad_columns : 0);
        halves.check(where, with_halves ? n_pad_columns : -n);

        if (!with_halves) return;
        begin("unpack", "n " + std::to_string(n));
        kernels.unpack(halves.data(), n, unpacked.data());
        for (int64_t i = 0; i < n; ++i) near("out", 0, i, scores.at[size_t(i)], unpacked.at[size_t(i)], 0.0);
        unpacked.check(where, n_pad_columns);
    }

    // The definition, by trying: sums below the five limits, largest first.
    void limit(int64_t n, float budget) {
        begin("limit", "n " + std::to_string(n) + " budget " + std::to_string(budget));
        Poisoned<float> weights(n);
        for (int64_t i = 0; i < n; ++i) weights.at[size_t(i)] = std::exp(random(-14.0f, 0.0f));
        float mass = -1.0f;
        const float got = kernels.limit(weights.data(), n, budget, &mass);
        for (float expected = budget;; expected /= 4) {
            double total = 0;
            for (int64_t i = 0; i < n; ++i) total += weights.at[size_t(i)] < expected ? weights.at[size_t(i)] : 0.0f;
            if (expected > got) {
                near("mass above the limit exceeds the budget", 0, 0, true, total * (1 + 1e-5) > budget, 0.0);
                continue;
            }
            near("limit", 0, 0, expected, got, 0.0);
            const bool is_last = expected == budget / 256;
            if (is_last) near("mass within the budget", 0, 0, true, total <= budget, 0.0);
            near("mass", 0, 0, is_last ? budget : total, mass, sum_limit(n, total));
            return;
        }
    }

    // One weight is the limit itself.
    void masks(int64_t n) {
        Poisoned<float> weights(n);
        random.fill(weights, 0.0f, 1.0f);
        for (const float limit : {0.0f, 0.4f, weights.at[size_t(n / 2)], 2.0f}) {
            begin("mask_from", "n " + std::to_string(n));
            const int64_t n_bits = std::min<int64_t>(n, 64);
            const uint64_t mask = kernels.mask_from(weights.data(), n_bits, limit);
            for (int64_t i = 0; i < 64; ++i)
                near("bit", 0, i, i < n_bits && weights.at[size_t(i)] >= limit, double(mask >> i & 1), 0.0);
        }
        begin("list_bits");
        for (const uint64_t mask :
             {uint64_t(0), ~uint64_t(0), uint64_t(0x8000000000000001), uint64_t(0x00f3a5c200010000)}) {
            std::vector<int32_t> list(64 + n_lanes);
            const int64_t n_set = kernels.list_bits(mask, 192, list.data());
            int64_t n_found = 0;
            for (int32_t i = 0; i < 64; ++i)
                if (mask >> i & 1) near("bit", 0, n_found, 192 + i, list[size_t(n_found)], 0.0), ++n_found;
            near("bits", 0, 0, double(n_found), double(n_set), 0.0);
        }
        begin("mask_from", "n 0");
        near("mask", 0, 0, 0.0, double(kernels.mask_from(weights.data(), 0, 0.0f)), 0.0);
    }

    std::string detail;
};

}  // namespace

void check_token_kernels(const pysa::CpuKernels & kernels) { TokenCheck(kernels).run(); }
