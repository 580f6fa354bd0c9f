// One conversation: its split cache, its position, its tokens. Used by one thread at a time; a second one gets SessionBusyError.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "pysa/kv_cache.h"
#include "pysa/model.h"
#include "pysa/sampler.h"

namespace pysa {

enum class Logits { none, last, all, embeddings };  // embeddings: of all tokens, what their logits are made from

class Session {
  public:
    // Takes rows where they were computed, f32 [n_vocab, n_rows] or, of embeddings, [n_embd, n_rows]; they are gone after the call.
    using LogitsSink = std::function<void(const float * rows, int64_t n_rows)>;
    // Asked between the nodes of a graph and between ubatches; true stops the evaluation.
    using Interrupt = std::function<bool()>;

    Session(std::shared_ptr<const Model> model, const SessionParams & params, const std::optional<SharingPlan> & plan);
    ~Session();

    int64_t n_past() const;
    int64_t n_ctx() const;
    int32_t n_vocab() const;
    int32_t n_embd() const;
    const SharingPlan & plan() const;
    const SessionParams & params() const;
    std::string attention_name() const;   // fused, composed
    std::string kernel_name() const;      // avx512, avx2, neon, scalar; cuda; ggml; two joined by +
    int32_t first_gpu_layer() const;      // from which on attention and cache are on the GPU; n_layer: none is
    int32_t n_splits() const;             // parts of the last step between which CPU and GPU took turns; 1 without
    std::vector<int32_t> tokens() const;  // of all positions held

    // Evaluates tokens after the ones held; the sink takes the logits asked for, ubatch by ubatch. On any error, Interrupted and
    // the sink's own included, the session is as it was. ArgumentError, ContextFullError, DeviceError, Interrupted.
    void eval(const int32_t * tokens, int64_t n_tokens, Logits logits, const LogitsSink & sink,
              const Interrupt & interrupt);
    // Evaluates tokens and picks the one after them, without a copy of the logits. Otherwise as eval().
    int32_t next_token(const int32_t * tokens, int64_t n_tokens, Sampler & sampler, const Interrupt & interrupt);

    // How many of n tokens the next step of an evaluation takes at once.
    int64_t ubatch_size(int64_t n) const;

    // Whether a part of the cache is a ring that forgets, so that going back may need a checkpoint.
    bool has_window() const;
    // Forgets positions >= n. RollbackError if the window before n has been overwritten and no checkpoint lies at n.
    void truncate(int64_t n);
    // The largest position <= n to which truncate can return.
    int64_t rollback_position(int64_t n) const;
    // Keeps the window rows of this position, so that truncate can return to it. Returns the position.
    int64_t checkpoint();

    MemoryReport memory() const;
    SkipReport skip_report() const;

    // For measurements: makes the cache n positions long. The new ones get rows and tokens of positions held, drawn by `seed`.
    // ArgumentError, DeviceError.
    void fill(int64_t n, uint64_t seed);

    // A versioned file with a checksum; written beside its name, then renamed. ArgumentError if it exists and not `force`.
    void save(const std::string & path, bool force) const;
    // The session as it was saved, with its own parameters and plan; where its cache lies is this process's choice.
    // StateFileError if the file is damaged, of another version, or made with another model.
    static std::unique_ptr<Session> load(std::shared_ptr<const Model> model, const std::string & path, bool kv_offload);

    void reset();

  private:
    friend class Batch;
    class Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace pysa
