#include "pysa/batch.h"

#include <algorithm>
#include <deque>
#include <new>
#include <numeric>

#include "engine/placement.h"
#include "engine/session_impl.h"
#include "engine/turn.h"
#include "graph/weights.h"

namespace pysa {

class Batch::Impl {
  public:
    explicit Impl(std::shared_ptr<const Model> model) : model_(std::move(model)) {
        model_->check_process();
        make_room(4);
    }

    std::vector<int64_t> step(const std::vector<BatchEntry> & entries, const LogitsSink & sink,
                              const Session::Interrupt & interrupt);

    std::shared_ptr<const Model> model_;
    std::unique_ptr<Compute> compute_;
    std::atomic_flag busy_ = ATOMIC_FLAG_INIT;

  private:
    using Held = Session::Impl;

    void make_room(size_t n_lanes);
    void check(const std::vector<BatchEntry> & entries) const;
    void run(const std::vector<BatchEntry> & entries, const std::vector<size_t> & order,
             const std::vector<int64_t> & counts, const LogitsSink & sink, const Session::Interrupt & interrupt);

    size_t n_lanes_ = 0;  // there is room for
    std::unique_ptr<Stepper> stepper_;
    std::vector<StepLane> lanes_;  // kept to avoid allocations
    std::vector<int32_t> tokens_;
};

void Batch::Impl::make_room(size_t n_lanes) {
    if (n_lanes <= n_lanes_) return;
    n_lanes = std::max(n_lanes, 2 * n_lanes_);
    const HParams & hp = model_->hparams();
    stepper_.reset();
    n_lanes_ = 0;
    compute_ =
        std::make_unique<Compute>(model_->n_threads(), 2 * step_graph_nodes(hp, n_lanes), model_->placement().gpu);
    stepper_ = std::make_unique<Stepper>(hp, model_->weights().model(), *compute_, n_lanes);
    n_lanes_ = n_lanes;
}

void Batch::Impl::check(const std::vector<BatchEntry> & entries) const {
    for (size_t i = 0; i < entries.size(); ++i) {
        const auto refuse = [i](const std::string & fault) {
            throw ArgumentError("entries[" + std::to_string(i) + "]: " + fault);
        };
        if (entries[i].session->impl_->model_ != model_)
            refuse("expected a session of the batch's model, got one of another");
        for (size_t j = 0; j < i; ++j)
            if (entries[j].session == entries[i].session)
                refuse("expected every session once, got that of entries[" + std::to_string(j) + "] again");
    }
}

std::vector<int64_t> Batch::Impl::step(const std::vector<BatchEntry> & entries, const LogitsSink & sink,
                                       const Session::Interrupt & interrupt) {
    model_->check_process();
    if (entries.empty()) return {};
    check(entries);
    std::deque<Turn> turns;
    for (const BatchEntry & entry : entries) turns.emplace_back(entry.session->impl_->busy_, "session");
    make_room(entries.size());

    std::vector<int64_t> counts(entries.size());
    size_t n_begun = 0;
    const auto revert = [&] {
        while (n_begun > 0) entries[--n_begun].session->impl_->revert();
    };
    try {
        for (size_t i = 0; i < entries.size(); ++i) {
            Held & held = *entries[i].session->impl_;
            counts[i] = held.ubatch_size(std::max<int64_t>(entries[i].n_tokens, 1));
            held.begin(std::min(counts[i], entries[i].n_tokens));
            ++n_begun;
            held.take_in(entries[i].tokens, counts[i]);
            held.cache_.log_overwritten(counts[i]);
        }
        // The results of lanes are joined one to the next, so the longest comes last.
        std::vector<size_t> order(entries.size());
        std::iota(order.begin(), order.end(), size_t(0));
        std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return counts[a] < counts[b]; });
        run(entries, order, counts, sink, interrupt);
    } catch (const std::bad_alloc &) {
        revert();
        throw DeviceError("batch: out of memory: cannot evaluate " + std::to_string(entries.size()) +
                          " sessions together; evaluate fewer");
    } catch (...) {
        revert();
        throw;
    }
    for (size_t i = 0; i < entries.size(); ++i) {
        Held & held = *entries[i].session->impl_;
        held.cache_.commit(counts[i]);
        held.keep();
    }
    return counts;
}

void Batch::Impl::run(const std::vector<BatchEntry> & entries, const std::vector<size_t> & order,
                      const std::vector<int64_t> & counts, const LogitsSink & sink,
                      const Session::Interrupt & interrupt) {
    lanes_.clear();
    tokens_.clear();
    for (size_t i : order) {
        Held & held = *entries[i].session->impl_;
        const bool wants = entries[i].wants_logits && counts[i] == entries[i].n_tokens;
        lanes_.push_back({&held.cache_, held.attention_.get(), {held.cache_.n_past(), counts[i]}, wants ? 1 : 0});
        tokens_.insert(tokens_.end(), held.tokens_.end() - counts[i], held.tokens_.end());
    }
    const float * row = stepper_->step(lanes_, StepOut::logits, tokens_.data(), interrupt);
    for (size_t lane = 0; lane < order.size(); ++lane) {
        if (lanes_[lane].n_out == 0) continue;
        sink(order[lane], row);
        row += model_->hparams().n_vocab;
    }
}

Batch::Batch(std::shared_ptr<const Model> model) : impl_(std::make_unique<Impl>(std::move(model))) {}

Batch::~Batch() = default;

std::vector<int64_t> Batch::step(const std::vector<BatchEntry> & entries, const LogitsSink & sink,
                                 const Session::Interrupt & interrupt) {
    Turn turn(impl_->busy_, "batch");
    return impl_->step(entries, sink, interrupt);
}

int32_t Batch::n_vocab() const { return impl_->model_->hparams().n_vocab; }
int64_t Batch::size_bytes() const { return impl_->compute_->size_bytes(); }

}  // namespace pysa
