#include "ops/composed_inputs.h"

#include <algorithm>
#include <limits>

#include "ggml-backend.h"

namespace pysa {

namespace {

// Writes a block of mask columns, from `first` on: 0 where the query at t may see the column's position, else -inf.
template <class Position, class Visible>
void fill(ggml_tensor * mask, const AttnStep & step, int64_t first, int64_t n, Position position, Visible visible) {
    if (!mask || !mask->buffer) return;
    std::vector<float> row(size_t(n), 0.0f);
    for (int64_t i = 0; i < step.n_tokens; ++i) {
        for (int64_t c = 0; c < n; ++c)
            row[c] = visible(step.n_past + i, position(c)) ? 0.0f : -std::numeric_limits<float>::infinity();
        ggml_backend_tensor_set(mask, row.data(), i * mask->nb[1] + first * sizeof(float), row.size() * sizeof(float));
    }
}

template <class ToRow> void set_index(ggml_tensor * index, const std::vector<int64_t> & positions, ToRow to_row) {
    if (!index || !index->buffer) return;
    std::vector<int32_t> rows(positions.size());
    std::transform(positions.begin(), positions.end(), rows.begin(), [&](int64_t pos) { return int32_t(to_row(pos)); });
    for (int64_t i = 0; i < index->ne[1]; ++i)
        ggml_backend_tensor_set(index, rows.data(), i * index->nb[1], rows.size() * sizeof(int32_t));
}

}  // namespace

void ComposedInputs::begin(ggml_context * ctx, const AttnStep & step) {
    step_ = step;
    old_positions_.clear();
    const auto input = [&](ggml_type type, int64_t ne0, int64_t ne1) {
        ggml_tensor * tensor = ggml_new_tensor_2d(ctx, type, ne0, ne1);
        ggml_set_input(tensor);
        return tensor;
    };
    mask_causal = input(GGML_TYPE_F32, step.n_kv(), step.n_tokens);
    mask_window = mask_split = old_pos = old_row = nullptr;
    if (table_.n_recent == 0) return;

    const int64_t n_sinks = std::min<int64_t>(table_.n_sink, step.n_past);
    for (int64_t pos = 0; pos < n_sinks; ++pos) old_positions_.push_back(pos);
    for (int64_t pos = ring_.oldest_needed(step.n_past); pos < step.n_past; ++pos) old_positions_.push_back(pos);
    mask_window = input(GGML_TYPE_F32, n_window(), step.n_tokens);
    mask_split = input(GGML_TYPE_F32, n_window() + step.n_kv(), step.n_tokens);
    if (old_positions_.empty()) return;
    old_pos = input(GGML_TYPE_I32, n_old(), table_.hp.n_head_kv);
    old_row = input(GGML_TYPE_I32, n_old(), table_.hp.n_head_kv);
}

void ComposedInputs::set() const {
    const int64_t n_sink = table_.n_sink, n_recent = table_.n_recent;
    const auto near = [=](int64_t t, int64_t pos) { return pos <= t && (pos < n_sink || pos > t - n_recent); };
    const auto far = [=](int64_t t, int64_t pos) { return pos >= n_sink && pos <= t - n_recent; };
    const auto window_position = [this](int64_t c) {
        return c < n_old() ? old_positions_[size_t(c)] : step_.n_past + c - n_old();
    };
    const auto same = [](int64_t c) { return c; };
    fill(mask_causal, step_, 0, step_.n_kv(), same, [](int64_t t, int64_t pos) { return pos <= t; });
    fill(mask_window, step_, 0, n_window(), window_position, near);
    fill(mask_split, step_, 0, n_window(), window_position, near);
    fill(mask_split, step_, n_window(), step_.n_kv(), same, far);
    set_index(old_pos, old_positions_, same);
    set_index(old_row, old_positions_, [this](int64_t pos) { return ring_.row(pos); });
}

}  // namespace pysa
