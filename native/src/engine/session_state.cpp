// Saved sessions: which fields, in which order. kv/state_file.h has the file's form.
#include "engine/session_impl.h"
#include "kv/state_file.h"

namespace pysa {

void Session::Impl::save(const std::string & path, bool force) const {
    StateWriter writer(path, force);
    writer.put(model_->fingerprint());
    writer.put(params_.n_ctx);
    writer.put(params_.n_ubatch);
    writer.put(params_.n_slack);
    writer.put(params_.distant_budget_bytes);
    writer.put(params_.v_skip);
    writer.put_text(params_.type_k);
    writer.put_text(params_.type_v);
    writer.put_text(params_.attention);

    writer.put_text(plan_.method);
    writer.put(int32_t(plan_.distant));
    writer.put(plan_.n_sink);
    writer.put(plan_.n_recent);
    writer.put(plan_.skip_gate);
    writer.put_list(plan_.score_layer);
    writer.put_list(plan_.score_head);
    writer.put_list(plan_.mass_bias);

    writer.put(cache_.ring().n_written);
    writer.put_list(tokens_);
    const RingLog & log = cache_.log();
    writer.put<uint64_t>(log.checkpoints().size());
    for (const auto & [n, checkpoint] : log.checkpoints()) writer.put(checkpoint);
    writer.put<uint64_t>(log.rows().size());
    for (const auto & [first, rows] : log.rows()) {
        writer.put(rows.first);
        writer.put(rows.n);
        writer.put(rows.n_stored);
        writer.put_list(rows.bytes);
    }
    std::vector<uint8_t> bytes;
    cache_.for_each_stretch(cache_.n_past(), cache_.ring().n_written, false,
                            [&](const ggml_tensor * tensor, size_t offset, size_t size) {
                                bytes.resize(size);
                                ggml_backend_tensor_get(tensor, bytes.data(), offset, size);
                                writer.put_bytes(bytes.data(), size);
                            });
    writer.finish();
}

void Session::Impl::load_log(StateReader & reader, int64_t n_past, int64_t n_written) {
    const auto check = [](bool holds, const char * expected) {
        if (!holds)
            throw StateFileError(std::string("saved session: checkpoints: expected ") + expected + ", got others");
    };
    Ring ring = cache_.ring();
    ring.n_written = n_written;
    RingLog & log = cache_.log();
    for (uint64_t i = reader.get<uint64_t>("checkpoints"); i > 0; --i) {
        const Checkpoint checkpoint = reader.get<Checkpoint>("checkpoint");
        check(cache_.layout().has_ring() && checkpoint.n_past >= 0 && checkpoint.n_past <= n_past, "positions held");
        check(checkpoint.n_written >= checkpoint.n_past && checkpoint.n_written <= n_written, "positions written");
        ring.n_written = checkpoint.n_written;
        check(checkpoint.oldest == ring.oldest_held(), "the oldest rows of their windows");
        log.add(checkpoint);
    }
    ring.n_written = n_written;
    int64_t end = ring.n_sink;
    for (uint64_t i = reader.get<uint64_t>("rows"); i > 0; --i) {
        LoggedRows rows;
        rows.first = reader.get<int64_t>("rows");
        rows.n = reader.get<int64_t>("rows");
        rows.n_stored = reader.get<int64_t>("rows");
        rows.bytes = reader.get_list<uint8_t>("rows");
        check(rows.first >= end && rows.first < n_past && rows.n > 0 && rows.n <= n_past - rows.first,
              "window rows of positions held, in order");
        check(rows.n_stored >= rows.n && rows.n_stored <= params_.n_ctx &&
                  int64_t(rows.bytes.size()) == rows.n_stored * cache_.ring_row_bytes(),
              "as many bytes as the rows have");
        end = rows.first + rows.n;
        log.keep(std::move(rows));
    }
    for (const auto & [n, checkpoint] : log.checkpoints())
        check(log.is_complete(checkpoint, ring.oldest_held()), "all rows of their windows");
}

void Session::Impl::load_state(StateReader & reader) {
    const int64_t n_written = reader.get<int64_t>("n_written");
    tokens_ = reader.get_list<int32_t>("tokens");
    const int64_t n_past = int64_t(tokens_.size());
    const auto refuse = [](const std::string & fault) { throw StateFileError("saved session: " + fault); };
    if (n_past > params_.n_ctx || n_written < n_past || n_written > params_.n_ctx)
        refuse("positions: expected them within n_ctx, got " + std::to_string(n_written));
    for (int32_t token : tokens_)
        if (token < 0 || token >= hp_.n_vocab)
            refuse("tokens: expected ids of the vocabulary, got " + std::to_string(token));
    if (n_written > 0) cache_.reserve(n_written);

    load_log(reader, n_past, n_written);
    cache_.for_each_stretch(n_past, n_written, false, [&](ggml_tensor * tensor, size_t offset, size_t size) {
        ggml_backend_tensor_set(tensor, reader.view_bytes("cache rows", size), offset, size);
    });
    reader.expect_end();
    cache_.restore_position(n_past, n_written);
}

std::unique_ptr<Session> Session::load(std::shared_ptr<const Model> model, const std::string & path, bool kv_offload) {
    StateReader reader(path);
    if (reader.get<uint64_t>("model") != model->fingerprint())
        throw StateFileError(path + ": expected a session of this model and plan, got one of another file");
    SessionParams params;
    params.kv_offload = kv_offload;
    params.n_ctx = reader.get<int64_t>("n_ctx");
    params.n_ubatch = reader.get<int32_t>("n_ubatch");
    params.n_slack = reader.get<int32_t>("n_slack");
    params.distant_budget_bytes = reader.get<int64_t>("distant_budget_bytes");
    params.v_skip = reader.get<float>("v_skip");
    params.type_k = reader.get_text("type_k");
    params.type_v = reader.get_text("type_v");
    params.attention = reader.get_text("attention");

    SharingPlan plan;
    plan.n_layer = model->hparams().n_layer;
    plan.n_head = model->hparams().n_head;
    plan.method = reader.get_text("plan.method");
    plan.distant = reader.get<int32_t>("plan.distant") == 0 ? Distant::scores : Distant::keys;
    plan.n_sink = reader.get<int32_t>("plan.n_sink");
    plan.n_recent = reader.get<int32_t>("plan.n_recent");
    plan.skip_gate = reader.get<float>("plan.skip_gate");
    plan.score_layer = reader.get_list<int32_t>("plan.score_layer");
    plan.score_head = reader.get_list<int32_t>("plan.score_head");
    plan.mass_bias = reader.get_list<float>("plan.mass_bias");
    try {
        auto session = std::make_unique<Session>(std::move(model), params, plan);
        session->impl_->load_state(reader);
        return session;
    } catch (const StateFileError &) {
        throw;
    } catch (const DeviceError &) {
        throw;
    } catch (const Error & error) {
        throw StateFileError(path + ": " + error.what());
    }
}

}  // namespace pysa
