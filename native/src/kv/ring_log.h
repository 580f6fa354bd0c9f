// Window rows that were overwritten while a checkpoint still needs them. A checkpoint itself copies nothing: it costs the rows that are
// overwritten after it, once for all checkpoints that share them. Plain bookkeeping: it never touches a tensor.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

namespace pysa {

// Rows of positions [first, first + n), as the cache lays them out: [row bytes, n_stored] of each head of each layer.
struct LoggedRows {
    int64_t first = 0;
    int64_t n = 0;
    int64_t n_stored = 0;  // n at first; positions that are forgotten leave their rows behind
    std::vector<uint8_t> bytes;
};

// A position to return to, and what the ring held there: rows of positions [oldest, n_past).
struct Checkpoint {
    int64_t n_past = 0;
    int64_t oldest = 0;
    int64_t n_written = 0;
};

class RingLog {
  public:
    void add(const Checkpoint & checkpoint) { checkpoints_[checkpoint.n_past] = checkpoint; }
    const Checkpoint * find(int64_t n_past) const;
    // The last one at or before a position; null if there is none.
    const Checkpoint * last_until(int64_t n_past) const;
    // Positions >= n_past are forgotten: other tokens may come there.
    void remove_after(int64_t n_past);
    void remove_oldest();
    void clear();

    // A checkpoint of an evaluation in progress, which a failure returns to.
    void hold(const Checkpoint & checkpoint);
    // Positions up to `end` are written during it, over rows that a hold without rows of its own does not bring back.
    void held_overwritten(int64_t end);
    void release();
    const Checkpoint & held() const { return held_; }

    // Stretches of positions in [begin, end) that a checkpoint needs and that are not kept yet, without bytes.
    std::vector<LoggedRows> missing(int64_t begin, int64_t end) const;
    void keep(LoggedRows rows);

    // Whether every position that the checkpoint needs is kept, or at least `oldest_in_ring`.
    bool is_complete(const Checkpoint & checkpoint, int64_t oldest_in_ring) const;

    const std::map<int64_t, Checkpoint> & checkpoints() const { return checkpoints_; }
    const std::map<int64_t, LoggedRows> & rows() const {
        return rows_;
    }  // by their first position; they do not overlap
    int64_t size_bytes() const { return size_bytes_; }
    bool is_idle() const { return checkpoints_.empty() && !is_holding_; }

  private:
    bool is_needed(int64_t pos) const;
    bool is_kept(int64_t pos) const;
    void prune();

    std::map<int64_t, Checkpoint> checkpoints_;
    std::map<int64_t, LoggedRows> rows_;
    Checkpoint held_;
    bool is_holding_ = false;
    int64_t size_bytes_ = 0;
};

}  // namespace pysa
