// Several sessions of one model in one graph: they share every product with a weight, which is most of a token's work at short
// contexts. Sessions come and go between steps; each keeps its own cache, plan and settings.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "pysa/model.h"
#include "pysa/session.h"

namespace pysa {

struct BatchEntry {
    Session * session = nullptr;
    const int32_t * tokens = nullptr;  // to be evaluated after the ones held
    int64_t n_tokens = 0;              // at least 1
    bool wants_logits = false;         // of the last one
};

class Batch {
  public:
    // Takes an entry's logits where they were computed, f32 [n_vocab]; they are gone after the call.
    using LogitsSink = std::function<void(size_t entry, const float * logits)>;

    explicit Batch(std::shared_ptr<const Model> model);  // DeviceError
    ~Batch();

    // Evaluates the first tokens of every entry in one graph, at most Session::ubatch_size() of each, and returns how many of each.
    // The sink is given the logits of entries that want them and came to their end. All or nothing: on any error, Interrupted and the
    // sink's own included, every session is as it was. ArgumentError, ContextFullError, DeviceError, Interrupted.
    std::vector<int64_t> step(const std::vector<BatchEntry> & entries, const LogitsSink & sink,
                              const Session::Interrupt & interrupt);

    int32_t n_vocab() const;
    int64_t size_bytes() const;  // of activations, held between steps

  private:
    class Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace pysa
