// The kernel that compares attention distributions.
#include "kernel_check_data.h"

namespace {

struct PlanningCheck : Check {
    using Check::Check;

    void run() {
        for (const int64_t n : {1, 3, 16, 17, 255, 256, 257, 1000})
            for (const int64_t n_rows : {1, 3, 4, 5, 9}) {
                mean_entropies(n, n_rows, -3.0f);
                mean_entropies(n, n_rows, -80.0f);  // shares down to e^-80, as of a peaked head
            }
        extremes();
    }

    // Halves of shares that add up to 1/2.
    void fill_shares(Poisoned<float> & rows, float lowest) {
        for (int64_t i = 0; i < rows.n; ++i) {
            double total = 0;
            for (int64_t j = 0; j < rows.width; ++j) total += rows.row(i)[j] = std::exp(random(lowest, 0.0f));
            for (int64_t j = 0; j < rows.width; ++j) rows.row(i)[j] = float(rows.row(i)[j] / total / 2);
        }
    }

    void mean_entropies(int64_t n, int64_t n_rows, float lowest) {
        begin("mean_entropies",
              "n " + std::to_string(n) + " n_rows " + std::to_string(n_rows) + " lowest " + std::to_string(lowest));
        Poisoned<float> row(n), rows(n, n_rows, n + 5);
        std::vector<double> out(size_t(n_rows + 1), -7.0);
        fill_shares(row, lowest);
        fill_shares(rows, lowest);
        kernels.mean_entropies(row.data(), rows.data(), rows.stride, n_rows, n, out.data());
        for (int64_t i = 0; i < n_rows; ++i) {
            double expected = 0;
            for (int64_t j = 0; j < n; ++j) {
                const double m = double(row.data()[j]) + rows.row(i)[j];
                if (m > 0) expected -= m * std::log2(m);
            }
            near("out", 0, i, expected, out[size_t(i)], 2e-6);
            double swapped = -1, alone = -1;
            kernels.mean_entropies(rows.row(i), row.data(), n, 1, n, &swapped);
            near("swapped", 0, i, out[size_t(i)], swapped, 0.0);
            kernels.mean_entropies(row.data(), rows.row(i), n, 1, n, &alone);
            near("alone", 0, i, out[size_t(i)], alone, 0.0);
        }
        near("after the last", 0, n_rows, -7.0, out.back(), 0.0);
    }

    void extremes() {
        begin("mean_entropies", "of one-hot rows and none");
        const float row[4] = {0.5f, 0.0f, 0.0f, 1e-40f}, rows[8] = {0.5f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.5f, 0.0f};
        double out[2] = {-1, -1};
        kernels.mean_entropies(row, rows, 4, 2, 4, out);
        near("equal", 0, 0, 0.0, out[0], 2e-6);
        near("disjoint", 0, 1, 1.0, out[1], 2e-6);
        kernels.mean_entropies(row, rows, 4, 2, 0, out);
        near("nothing", 0, 0, 0.0, out[0], 0.0);
    }
};

}  // namespace

void check_planning_kernels(const pysa::CpuKernels & kernels) { PlanningCheck(kernels).run(); }
