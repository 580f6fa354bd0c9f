#include "text/quantize.h"

#include "base/bytes.h"
#include "base/log.h"
#include "file/gguf_file.h"
#include "file/readers.h"
#include "llama.h"

namespace pysa {

namespace {

struct TypeRow {
    const char * name;
    llama_ftype ftype;
};

constexpr TypeRow type_table[] = {
    {"f32", LLAMA_FTYPE_ALL_F32},          {"f16", LLAMA_FTYPE_MOSTLY_F16},       {"bf16", LLAMA_FTYPE_MOSTLY_BF16},
    {"q8_0", LLAMA_FTYPE_MOSTLY_Q8_0},     {"q6_k", LLAMA_FTYPE_MOSTLY_Q6_K},     {"q5_k_m", LLAMA_FTYPE_MOSTLY_Q5_K_M},
    {"q5_k_s", LLAMA_FTYPE_MOSTLY_Q5_K_S}, {"q5_1", LLAMA_FTYPE_MOSTLY_Q5_1},     {"q5_0", LLAMA_FTYPE_MOSTLY_Q5_0},
    {"q4_k_m", LLAMA_FTYPE_MOSTLY_Q4_K_M}, {"q4_k_s", LLAMA_FTYPE_MOSTLY_Q4_K_S}, {"q4_1", LLAMA_FTYPE_MOSTLY_Q4_1},
    {"q4_0", LLAMA_FTYPE_MOSTLY_Q4_0},     {"iq4_nl", LLAMA_FTYPE_MOSTLY_IQ4_NL}, {"iq4_xs", LLAMA_FTYPE_MOSTLY_IQ4_XS},
    {"q3_k_l", LLAMA_FTYPE_MOSTLY_Q3_K_L}, {"q3_k_m", LLAMA_FTYPE_MOSTLY_Q3_K_M}, {"q3_k_s", LLAMA_FTYPE_MOSTLY_Q3_K_S},
    {"q2_k", LLAMA_FTYPE_MOSTLY_Q2_K},
};

// Tensor rows that the quantiser keeps in memory at once; its own default of 8 GiB is more than many machines have.
constexpr size_t max_buffer_bytes = size_t(256) << 20;

}  // namespace

std::vector<std::string> quantize_types() {
    std::vector<std::string> names;
    for (const TypeRow & row : type_table) names.push_back(row.name);
    return names;
}

void quantize(const std::string & src, const std::string & dst, const std::string & type, int32_t n_threads) {
    const TypeRow * chosen = nullptr;
    for (const TypeRow & row : type_table) {
        if (type == row.name) chosen = &row;
    }
    if (chosen == nullptr) throw ArgumentError("type: expected one of quantize_types(), got " + quoted(type));
    if (n_threads < 0) throw ArgumentError("n_threads: expected at least 0, got " + std::to_string(n_threads));
    if (src == dst) throw ArgumentError("dst: expected another file than src, got the same");

    {
        const std::shared_ptr<const GgufFile> file = GgufFile::open(src);
        check_vocab(*file, read_hparams(*file));
    }
    init_logging();
    take_logged_errors();
    llama_model_quantize_params params = llama_model_quantize_default_params();
    params.ftype = chosen->ftype;
    params.nthread = n_threads;
    params.max_buf_size = max_buffer_bytes;
    if (llama_model_quantize(src.c_str(), dst.c_str(), &params) != 0) {
        throw ConvertError(src + ": cannot be quantised to " + type + ": " + quoted(take_logged_errors(), 400));
    }
}

}  // namespace pysa
