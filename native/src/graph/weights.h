// A model's tensors in memory: mapped from the file where the CPU can use them as they lie, copied where it wants another
// layout (repacked) or where mapping is switched off.
#pragma once

#include <memory>
#include <vector>

#include "device/buffer.h"
#include "device/gpu.h"
#include "file/gguf_file.h"
#include "ggml-backend.h"
#include "graph/arch_table.h"
#include "pysa/hparams.h"

namespace pysa {

struct WeightOptions {
    bool use_mmap = true;
    bool use_repack = true;  // ggml's CPU layouts for fast matrix products, as llama.cpp uses them
    const Gpu * gpu = nullptr;
    int32_t first_gpu_layer = 0;  // n_layer: the output alone
};

// Where a file has what a spec asks for: an output that it lacks is the embedding. Null if there is none.
const GgufTensor * find_tensor(const GgufFile & file, const TensorSpec & spec);

class Weights {
  public:
    // Checks every tensor against the architecture's list first (ModelFileError with all faults), then loads.
    Weights(std::shared_ptr<const GgufFile> file, const HParams & hp, bool pruned, WeightOptions options);

    const ModelWeights & model() const { return model_; }
    int64_t size_bytes() const { return size_bytes_; }      // all tensors
    int64_t copied_bytes() const { return copied_bytes_; }  // of these, not mapped from the file
    int64_t device_bytes() const { return device_bytes_; }  // of these, on a GPU

  private:
    struct ContextDeleter {
        void operator()(ggml_context * ctx) const { ggml_free(ctx); }
    };

    void load(const std::vector<TensorSpec> & specs, const WeightOptions & options);

    std::shared_ptr<const GgufFile> file_;  // keeps the mapping alive
    ModelWeights model_;
    std::vector<std::unique_ptr<ggml_context, ContextDeleter>> contexts_;
    std::vector<BufferPtr> buffers_;
    int64_t size_bytes_ = 0;
    int64_t copied_bytes_ = 0;
    int64_t device_bytes_ = 0;
};

}  // namespace pysa
