#include "pysa/model.h"

#include <algorithm>

#include "base/cpu_count.h"
#include "base/log.h"
#include "base/pages.h"
#include "base/process_id.h"
#include "engine/placement.h"
#include "file/gguf_file.h"
#include "file/readers.h"
#include "graph/weights.h"
#include "kv/cache_layout.h"
#include "kv/cache_types.h"

namespace pysa {

namespace {

// FNV-1a over the file's header (keys, so also the plan, and the tensor list) and a sample of every tensor: enough to tell
// two models apart without reading their weights.
uint64_t file_hash(const GgufFile & file) {
    constexpr uint64_t n_sample = 256;  // bytes, from each end of a tensor
    uint64_t hash = 1469598103934665603ull;
    const auto add = [&hash](const uint8_t * begin, uint64_t size) {
        for (const uint8_t * p = begin; p < begin + size; ++p) hash = (hash ^ *p) * 1099511628211ull;
    };
    if (file.tensors().empty()) return hash;  // refused later
    const GgufTensor & first = file.tensors().front();
    add(file.tensor_data(first) - first.offset - file.data_offset(), file.data_offset());
    for (const GgufTensor & tensor : file.tensors()) {
        const uint64_t n = std::min(n_sample, tensor.size_bytes);
        add(file.tensor_data(tensor), n);
        add(file.tensor_data(tensor) + tensor.size_bytes - n, n);
    }
    return hash ^ file.size_bytes();
}

}  // namespace

Model::~Model() {
    weights_.reset();
    vocab_.reset();
    trim_heap();
}

std::shared_ptr<const Model> Model::open(const std::string & path, const ModelParams & params) {
    if (params.n_threads < 0 || params.n_threads > 512)
        throw ArgumentError("n_threads: expected 0 (automatic) to 512, got " + std::to_string(params.n_threads));
    init_logging();
    std::shared_ptr<Model> model(new Model());
    model->process_ = process_id();
    model->file_ = GgufFile::open(path);
    model->hp_ = read_hparams(*model->file_);
    model->plan_ = read_plan(*model->file_, model->hp_);
    model->pruned_ = read_pruned(*model->file_);
    model->vocab_ = Vocab::open(*model->file_, model->hp_);
    model->fingerprint_ = file_hash(*model->file_);  // first: loading releases the pages it touches
    const bool has_plan = model->plan_ && model->plan_->enabled;
    model->placement_ = std::make_unique<Placement>(
        place_layers(*model->file_, model->hp_, has_plan ? *model->plan_ : dense_plan(model->hp_), params));
    const Placement & placement = *model->placement_;
    model->weights_ = std::make_unique<Weights>(
        model->file_, model->hp_, model->pruned_,
        WeightOptions{params.use_mmap, params.use_repack, placement.gpu, placement.first_gpu_layer()});
    model->n_threads_ = params.n_threads > 0 ? params.n_threads : physical_cores();
    model->effective_plan(std::nullopt);  // a pruned file must be able to run its own plan
    return model;
}

std::string Model::device_name() const { return placement_->gpu ? placement_->gpu->name() : "cpu"; }

int32_t Model::n_gpu_layers() const { return placement_->n_gpu_layers; }

void Model::check_process() const {
    if (process_id() != process_)
        throw DeviceError(file_->path() + ": opened before a fork: expected the process that opened it, " +
                          std::to_string(process_) + ", got its child " + std::to_string(process_id()) +
                          "; open the model in the child, or start processes with the method \"spawn\"");
}

SharingPlan Model::effective_plan(const std::optional<SharingPlan> & override_plan) const {
    SharingPlan plan = override_plan ? *override_plan : plan_ ? *plan_ : dense_plan(hp_);
    Faults faults(override_plan ? "plan" : file_->path());
    check_plan(plan, hp_, faults);
    faults.raise_if_any<PlanError>();
    if (!plan.enabled) plan = dense_plan(hp_);

    const CacheLayout layout = make_cache_layout(plan, hp_, 0);
    for (int32_t il = 0; il < hp_.n_layer; ++il) {
        const LayerWeights & w = weights_->model().layers[il];
        if ((layout.layers[il].needs_q && !w.wq) || (layout.layers[il].needs_k && !w.wk))
            faults.add("layer " + std::to_string(il) +
                       ": expected query and key weights, got a pruned file without them; run the plan in the file");
    }
    faults.raise_if_any<PlanError>();
    return plan;
}

MemoryReport Model::cache_formula(const SharingPlan & plan, int64_t n, const std::string & type_k,
                                  const std::string & type_v) const {
    if (n < 0) throw ArgumentError("n: expected 0 or more positions, got " + std::to_string(n));
    const CacheTypes types = parse_cache_types(type_k, type_v, hp_);
    const int64_t row_k = int64_t(ggml_row_size(types.k, hp_.n_embd_head_k)),
                  row_v = int64_t(ggml_row_size(types.v, hp_.n_embd_head_v));
    const CacheLayout layout = make_cache_layout(plan, hp_, 0);
    const CacheBytes bytes = cache_bytes(layout, n, row_k, row_v);
    MemoryReport report;
    report.n_rows = n;
    report.n_window_rows = std::min(n, layout.window_rows());
    report.keys = bytes.keys;
    report.values = bytes.values;
    report.window_keys = bytes.window_keys;
    report.window_values = bytes.window_values;
    report.dense = int64_t(hp_.n_layer) * hp_.n_head_kv * n * (row_k + row_v);
    return report;
}

}  // namespace pysa
