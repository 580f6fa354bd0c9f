// What a Session holds. session_eval.cpp evaluates, session.cpp rolls back, session_state.cpp saves and loads.
#pragma once

#include <atomic>
#include <memory>
#include <vector>

#include "engine/compute.h"
#include "engine/stepper.h"
#include "graph/step_graph.h"
#include "kv/split_cache.h"
#include "ops/shared_attn.h"
#include "pysa/session.h"

namespace pysa {

class StateReader;

class Session::Impl {
  public:
    Impl(std::shared_ptr<const Model> model, const SessionParams & params, const SharingPlan & plan);

    // Begins an evaluation of n tokens, which keep() or revert() ends. ContextFullError.
    void begin(int64_t n_tokens);
    // Checks its tokens and makes room for them; they are in tokens_ then.
    void take_in(const int32_t * tokens, int64_t n_tokens, bool wants_all_rows = false);
    int64_t free_bytes_for_steps(int64_t n, bool wants_all_rows) const;
    void keep() { cache_.release(); }
    void revert();
    // As many tokens as n_ubatch and the budget for shared scores allow at the depth they end at.
    int64_t ubatch_size(int64_t n_left) const;

    void eval(const int32_t * tokens, int64_t n_tokens, Logits logits, const LogitsSink & sink,
              const Interrupt & interrupt);
    void fill(int64_t n, uint64_t seed);
    void truncate(int64_t n);
    int64_t rollback_position(int64_t n) const { return cache_.rollback_position(n); }
    int64_t checkpoint();
    MemoryReport memory() const;
    void reset();

    void save(const std::string & path, bool force) const;
    void load_state(StateReader & reader);  // into a session that holds nothing yet

    std::shared_ptr<const Model> model_;
    const HParams & hp_;
    const SessionParams params_;
    const SharingPlan plan_;
    const AttnTable table_;
    const int32_t first_gpu_layer_;  // of attention and cache; n_layer: none
    Compute compute_;
    SplitCache cache_;
    std::unique_ptr<SharedAttention> attention_;
    std::unique_ptr<Stepper> stepper_;
    std::vector<int32_t> tokens_;  // of the positions held and, during an evaluation, of those to come
    std::atomic_flag busy_ = ATOMIC_FLAG_INIT;

  private:
    std::unique_ptr<SharedAttention> make_attention() const;
    void load_log(StateReader & reader, int64_t n_past, int64_t n_written);
    void check_room(int64_t n_tokens) const;
    void check_tokens(int64_t first) const;
    void eval_ubatches(Logits logits, const LogitsSink & sink, const Interrupt & interrupt);

    std::vector<StepLane> lanes_;  // one, kept to avoid an allocation per token
};

}  // namespace pysa
