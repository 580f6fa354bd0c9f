// An opened GGUF: hyper-parameters, tensors, vocabulary, plan. Immutable; shared by sessions and threads.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "pysa/hparams.h"
#include "pysa/kv_cache.h"
#include "pysa/sharing_plan.h"
#include "pysa/vocab.h"

namespace pysa {

class GgufFile;
class Weights;
struct Placement;

struct ModelParams {
    int32_t n_threads = 0;  // 0: one per physical core that the process may use
    bool use_mmap = true;
    bool use_repack = true;
    std::string device = "auto";  // a GPU's name as list_devices() has it, cpu, or auto: the best GPU there is
    int32_t n_gpu_layers = -1;    // the last layers are kept on it, the output counts as one more; -1: as many as fit
    // What as many as fit is estimated with:
    int64_t n_ctx = 0;  // positions of the sessions to come; 0: the model's own context length
    std::string type_k = "f16";
    std::string type_v = "f16";
    int32_t n_ubatch = 512;
    bool kv_offload = true;
};

class Model {
  public:
    // Validates the whole file before anything else reads it. ModelFileError, UnsupportedModelError, PlanError, DeviceError.
    static std::shared_ptr<const Model> open(const std::string & path, const ModelParams & params);
    ~Model();

    const HParams & hparams() const { return hp_; }
    const std::optional<SharingPlan> & plan() const { return plan_; }  // as the file has it, enabled or not
    const Vocab & vocab() const { return *vocab_; }
    std::shared_ptr<const Vocab> shared_vocab() const { return vocab_; }
    const GgufFile & file() const { return *file_; }
    const Weights & weights() const { return *weights_; }
    const Placement & placement() const { return *placement_; }
    std::string device_name() const;  // of the GPU that layers are on; cpu
    int32_t n_gpu_layers() const;
    int32_t n_threads() const { return n_threads_; }
    bool pruned() const { return pruned_; }

    // The plan that a session runs: the override if there is one, else the file's if enabled, else dense. Checked against the
    // model and against what a pruned file lacks. PlanError.
    SharingPlan effective_plan(const std::optional<SharingPlan> & override_plan) const;

    // Cache bytes at n positions by the formula of docs/format.md.
    MemoryReport cache_formula(const SharingPlan & plan, int64_t n, const std::string & type_k,
                               const std::string & type_v) const;

    // DeviceError in a process that was forked from the one that opened the model: the threads are not there.
    void check_process() const;

    // Identifies the file by its header, plan and a sample of its weights, so that a saved session is not read into
    // another model.
    uint64_t fingerprint() const { return fingerprint_; }

  private:
    Model() = default;

    std::shared_ptr<const GgufFile> file_;
    HParams hp_;
    std::optional<SharingPlan> plan_;
    bool pruned_ = false;
    std::shared_ptr<const Vocab> vocab_;
    std::unique_ptr<Placement> placement_;
    std::unique_ptr<Weights> weights_;
    int32_t n_threads_ = 1;
    uint64_t fingerprint_ = 0;
    int64_t process_ = 0;  // that opened it
};

}  // namespace pysa
