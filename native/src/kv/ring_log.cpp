#include "kv/ring_log.h"

#include <algorithm>
#include <iterator>
#include <utility>

namespace pysa {

const Checkpoint * RingLog::find(int64_t n_past) const {
    const auto at = checkpoints_.find(n_past);
    return at == checkpoints_.end() ? nullptr : &at->second;
}

const Checkpoint * RingLog::last_until(int64_t n_past) const {
    const auto after = checkpoints_.upper_bound(n_past);
    return after == checkpoints_.begin() ? nullptr : &std::prev(after)->second;
}

void RingLog::remove_after(int64_t n_past) {
    checkpoints_.erase(checkpoints_.upper_bound(n_past), checkpoints_.end());
    prune();
    for (auto & [first, rows] : rows_) rows.n = std::min(rows.n, n_past - first);  // at least 1: some of it is needed
}

void RingLog::remove_oldest() {
    if (!checkpoints_.empty()) checkpoints_.erase(checkpoints_.begin());
    prune();
}

void RingLog::clear() {
    checkpoints_.clear();
    prune();
}

void RingLog::hold(const Checkpoint & checkpoint) {
    held_ = checkpoint;
    is_holding_ = true;
}

void RingLog::held_overwritten(int64_t end) {
    if (held_.oldest == held_.n_past) held_.n_written = std::max(held_.n_written, end);
}

void RingLog::release() {
    is_holding_ = false;
    if (held_.oldest < held_.n_past) prune();
}

bool RingLog::is_needed(int64_t pos) const {
    const auto needs = [pos](const Checkpoint & c) { return c.oldest <= pos && pos < c.n_past; };
    if (is_holding_ && needs(held_)) return true;
    for (auto at = checkpoints_.upper_bound(pos); at != checkpoints_.end(); ++at)
        if (needs(at->second)) return true;
    return false;
}

bool RingLog::is_kept(int64_t pos) const {
    const auto after = rows_.upper_bound(pos);
    if (after == rows_.begin()) return false;
    const LoggedRows & rows = std::prev(after)->second;
    return pos < rows.first + rows.n;
}

std::vector<LoggedRows> RingLog::missing(int64_t begin, int64_t end) const {
    std::vector<LoggedRows> stretches;
    for (int64_t pos = begin; pos < end; ++pos) {
        if (!is_needed(pos) || is_kept(pos)) continue;
        const bool goes_on = !stretches.empty() && stretches.back().first + stretches.back().n == pos;
        if (goes_on) {
            ++stretches.back().n;
        } else {
            stretches.push_back({pos, 1, 0, {}});
        }
    }
    return stretches;
}

void RingLog::keep(LoggedRows rows) {
    size_bytes_ += int64_t(rows.bytes.size());
    rows_[rows.first] = std::move(rows);
}

bool RingLog::is_complete(const Checkpoint & checkpoint, int64_t oldest_in_ring) const {
    for (int64_t pos = checkpoint.oldest; pos < checkpoint.n_past && pos < oldest_in_ring; ++pos)
        if (!is_kept(pos)) return false;
    return true;
}

// Whole stretches: one goes when nobody needs any of its positions.
void RingLog::prune() {
    if (is_idle()) {
        rows_.clear();
        size_bytes_ = 0;
    }
    for (auto at = rows_.begin(); at != rows_.end();) {
        const LoggedRows & rows = at->second;
        bool needed = false;
        for (int64_t pos = rows.first; pos < rows.first + rows.n && !needed; ++pos) needed = is_needed(pos);
        if (!needed) size_bytes_ -= int64_t(rows.bytes.size());
        at = needed ? std::next(at) : rows_.erase(at);
    }
}

}  // namespace pysa
