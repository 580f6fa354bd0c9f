// One text held in memory and evaluated under many plans: what a plan costs, measured. Not for generating.
// All rows of all heads are kept whatever the plan, so that a run can begin at the first layer that a plan changes.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "pysa/model.h"

namespace pysa {

struct TrialParams {
    std::string type_k = "f16";  // as in SessionParams
    std::string type_v = "f16";
    int32_t n_ubatch = 512;
    int64_t n_queries = 0;                       // of the last tokens, whose queries are kept
    int64_t distant_budget_bytes = 256ll << 20;  // as in SessionParams
};

// Used by one thread at a time; a second one gets SessionBusyError.
class Trial {
  public:
    using Interrupt = std::function<bool()>;

    // ArgumentError, DeviceError.
    Trial(std::shared_ptr<const Model> model, const TrialParams & params, std::vector<int32_t> tokens);
    ~Trial();

    const Model & model() const;
    int64_t n_tokens() const;
    int64_t n_queries() const;
    int64_t size_bytes() const;

    // Evaluates the text under a plan, from the first layer on that attends otherwise than in the plan kept last; all of them if
    // none was kept. `keep`: later runs begin from this one. Returns the layers evaluated. After an error there are no results until
    // the next run. PlanError, DeviceError, Interrupted.
    int32_t run(const SharingPlan & plan, bool keep, const Interrupt & interrupt);

    // Results of the last run; ArgumentError if there is none, or for an index out of range.
    // Row i scores the token after positions[i]; f32 [n_vocab, n].
    void logits(const int64_t * positions, int64_t n, float * out, const Interrupt & interrupt);
    void queries(int32_t il, float * out) const;  // f32 [n_embd_head_k, n_head, n_queries], unscaled
    void keys(int32_t il, float * out) const;     // f32 [n_embd_head_k, n_tokens, n_head_kv], as they are kept
    void values(int32_t il, float * out) const;   // f32 [n_embd_head_v, n_tokens, n_head_kv]

  private:
    class Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace pysa
