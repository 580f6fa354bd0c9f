#include "file/gguf_parser.h"

#include <algorithm>
#include <limits>

#include "base/checked.h"

namespace pysa {

namespace {

// Far above any real model, and low enough that a header cannot ask for more memory than a machine has.
constexpr uint64_t max_header_bytes = uint64_t(1) << 30;
constexpr uint64_t max_keys = 1000000;
constexpr uint64_t max_tensors = 1000000;
constexpr uint64_t max_items = uint64_t(1) << 24;
constexpr uint64_t max_name_bytes = 65535;
constexpr uint64_t max_alignment = uint64_t(1) << 20;

std::string number(uint64_t value) { return std::to_string(value); }

}  // namespace

GgufParser::GgufParser(GgufFile & file)
    : file_(file), faults_(file.path_), reader_(file.map_->data(), std::min(file.map_->size(), max_header_bytes)) {}

void GgufParser::parse() {
    parse_counts();
    for (uint64_t i = 0; i < n_keys_; ++i) parse_key(i);
    check_alignment();
    for (uint64_t i = 0; i < n_tensors_; ++i) parse_tensor(i);
    check_layout();
    faults_.raise_if_any<ModelFileError>();
}

void GgufParser::parse_counts() {
    if (reader_.left() < 4 || std::memcmp(reader_.cursor(), "GGUF", 4) != 0) {
        const std::string found(reinterpret_cast<const char *>(reader_.cursor()),
                                std::min<uint64_t>(4, reader_.left()));
        stop("magic: not a GGUF file: expected 'GGUF', got " + quoted(found));
    }
    reader_.skip(4);
    file_.version_ = take<uint32_t>("version");
    if (file_.version_ < 2 || file_.version_ > 3) {
        const bool big_endian = file_.version_ != 0 && (file_.version_ & 0xFFFF) == 0;
        stop("version: expected 2 or 3, got " + number(file_.version_) + (big_endian ? "; a big-endian file" : ""));
    }
    n_tensors_ = take<uint64_t>("tensor count");
    n_keys_ = take<uint64_t>("key count");
    if (n_tensors_ > max_tensors)
        stop("tensor count: expected at most " + number(max_tensors) + ", got " + number(n_tensors_));
    if (n_keys_ > max_keys) stop("key count: expected at most " + number(max_keys) + ", got " + number(n_keys_));
}

void GgufParser::parse_key(uint64_t index) {
    const std::string place = "key " + number(index);
    const std::string key = take_string(place);
    if (key.empty() || key.size() > max_name_bytes || !is_plain_name(key)) {
        faults_.add(place + ": expected a name in UTF-8, got " + quoted(key));
    }
    GgufValue value;
    value.type = take_type(quoted(key));
    if (value.type == GgufType::array) {
        parse_array(quoted(key), value);
    } else {
        parse_scalar(quoted(key), value.type, value);
    }
    if (!file_.value_index_.emplace(key, file_.values_.size()).second) {
        faults_.add(place + ": expected a new key, got " + quoted(key) + " a second time");
        return;
    }
    file_.values_.emplace_back(key, std::move(value));
}

void GgufParser::parse_array(const std::string & key, GgufValue & value) {
    value.item_type = take_type(key);
    const uint64_t n = take<uint64_t>(key);
    if (value.item_type == GgufType::array) stop(key + ": expected an array of scalars, got nested arrays");
    // Every item takes at least one byte, so a length beyond the file is found before anything is allocated.
    if (n > reader_.left())
        stop(key + ": expected at most " + number(reader_.left()) + " items in the file, got " + number(n));
    n_items_ += n;
    if (n_items_ > max_items) stop(key + ": expected at most " + number(max_items) + " items in all arrays, got more");
    switch (value.item_type) {
        case GgufType::u8: return take_items<uint8_t, uint64_t>(key, n, value);
        case GgufType::u16: return take_items<uint16_t, uint64_t>(key, n, value);
        case GgufType::u32: return take_items<uint32_t, uint64_t>(key, n, value);
        case GgufType::u64: return take_items<uint64_t, uint64_t>(key, n, value);
        case GgufType::i8: return take_items<int8_t, int64_t>(key, n, value);
        case GgufType::i16: return take_items<int16_t, int64_t>(key, n, value);
        case GgufType::i32: return take_items<int32_t, int64_t>(key, n, value);
        case GgufType::i64: return take_items<int64_t, int64_t>(key, n, value);
        case GgufType::f32: return take_items<float, double>(key, n, value);
        case GgufType::f64: return take_items<double, double>(key, n, value);
        case GgufType::boolean: {
            std::vector<bool> items(n);
            for (uint64_t i = 0; i < n; ++i) items[i] = take_boolean(key) == 1;
            value.data = std::move(items);
            return;
        }
        case GgufType::string: {
            if (n > reader_.left() / 8) stop(key + ": the file ends inside the array");
            std::vector<std::string> items(n);
            for (std::string & item : items) item = take_string(key);
            value.data = std::move(items);
            return;
        }
        case GgufType::array: break;
    }
}

void GgufParser::parse_scalar(const std::string & key, GgufType type, GgufValue & value) {
    value.item_type = type;
    switch (type) {
        case GgufType::u8: value.data = uint64_t(take<uint8_t>(key)); break;
        case GgufType::u16: value.data = uint64_t(take<uint16_t>(key)); break;
        case GgufType::u32: value.data = uint64_t(take<uint32_t>(key)); break;
        case GgufType::u64: value.data = take<uint64_t>(key); break;
        case GgufType::i8: value.data = int64_t(take<int8_t>(key)); break;
        case GgufType::i16: value.data = int64_t(take<int16_t>(key)); break;
        case GgufType::i32: value.data = int64_t(take<int32_t>(key)); break;
        case GgufType::i64: value.data = take<int64_t>(key); break;
        case GgufType::f32: value.data = double(take<float>(key)); break;
        case GgufType::f64: value.data = take<double>(key); break;
        case GgufType::boolean: value.data = take_boolean(key) == 1; break;
        case GgufType::string: value.data = take_string(key); break;
        case GgufType::array: break;
    }
}

void GgufParser::parse_tensor(uint64_t index) {
    GgufTensor tensor;
    tensor.name = take_string("tensor " + number(index));
    const std::string place = "tensor " + quoted(tensor.name);
    if (tensor.name.empty() || tensor.name.size() >= GGML_MAX_NAME || !is_plain_name(tensor.name)) {
        faults_.add("tensor " + number(index) + ": expected a name of 1 to " + number(GGML_MAX_NAME - 1) +
                    " bytes of UTF-8, got " + quoted(tensor.name));
    }
    const uint32_t n_dims = take<uint32_t>(place);
    if (n_dims < 1 || n_dims > GGML_MAX_DIMS) stop(place + ": expected 1 to 4 dimensions, got " + number(n_dims));
    tensor.n_dims = static_cast<int>(n_dims);
    for (uint32_t i = 0; i < n_dims; ++i) tensor.ne[i] = take<int64_t>(place);
    const uint32_t raw_type = take<uint32_t>(place);
    tensor.offset = take<uint64_t>(place);
    check_shape(tensor, raw_type);
    if (!file_.tensor_index_.emplace(tensor.name, file_.tensors_.size()).second) {
        faults_.add(place + ": expected a new name, got this one a second time");
    }
    file_.tensors_.push_back(std::move(tensor));
}

void GgufParser::check_shape(GgufTensor & tensor, uint32_t raw_type) {
    const std::string place = "tensor " + quoted(tensor.name);
    // Types that ggml has removed keep their number with an empty block.
    if (raw_type >= GGML_TYPE_COUNT || ggml_blck_size(ggml_type(raw_type)) <= 0 ||
        ggml_type_size(ggml_type(raw_type)) == 0) {
        faults_.add(place + ": expected a type of ggml, got number " + number(raw_type));
        return;
    }
    tensor.type = ggml_type(raw_type);
    const uint64_t block = static_cast<uint64_t>(ggml_blck_size(tensor.type));
    uint64_t n_elements = 1;
    for (const int64_t ne : tensor.ne) {
        if (ne < 1) {
            faults_.add(place + ": expected dimensions of at least 1, got " + std::to_string(ne));
            return;
        }
        if (!checked_mul(n_elements, static_cast<uint64_t>(ne), n_elements) || n_elements > uint64_t(INT64_MAX)) {
            faults_.add(place + ": expected at most 2^63-1 elements, got more");
            return;
        }
    }
    if (static_cast<uint64_t>(tensor.ne[0]) % block != 0) {
        faults_.add(place + ": expected rows of a multiple of " + number(block) + " elements for " +
                    ggml_type_name(tensor.type) + ", got " + std::to_string(tensor.ne[0]));
        return;
    }
    if (!checked_mul(n_elements / block, ggml_type_size(tensor.type), tensor.size_bytes)) {
        faults_.add(place + ": expected a size below 2^64 bytes, got more");
    }
}

void GgufParser::check_alignment() {
    const GgufValue * value = file_.find("general.alignment");
    if (value == nullptr) return;
    if (value->type != GgufType::u32) {
        stop("general.alignment: expected u32, got " + std::string(gguf_type_name(value->type)));
    }
    const uint64_t alignment = std::get<uint64_t>(value->data);
    if (alignment < 32 || alignment > max_alignment || (alignment & (alignment - 1)) != 0) {
        stop("general.alignment: expected a power of two from 32 to " + number(max_alignment) + ", got " +
             number(alignment));
    }
    file_.alignment_ = alignment;
}

void GgufParser::check_layout() {
    // Without tensors there is no data section and no padding before it.
    file_.data_offset_ = reader_.position();
    if (file_.tensors_.empty()) return;
    checked_pad(reader_.position(), file_.alignment_, file_.data_offset_);

    const uint64_t size = file_.map_->size();
    const uint64_t data_bytes = size > file_.data_offset_ ? size - file_.data_offset_ : 0;
    uint64_t expected = 0;
    for (const GgufTensor & tensor : file_.tensors_) {
        const std::string place = "tensor " + quoted(tensor.name);
        if (tensor.size_bytes == 0) return;  // its fault is known, and where the next one starts is not
        if (tensor.offset != expected) {
            faults_.add(place + ": expected offset " + number(expected) + ", right after the tensor before it, got " +
                        number(tensor.offset));
            return;
        }
        uint64_t end = 0;
        if (!checked_add(tensor.offset, tensor.size_bytes, end) || end > data_bytes ||
            !checked_pad(end, file_.alignment_, expected)) {
            faults_.add(place + ": the file ends inside it: expected " + number(tensor.size_bytes) +
                        " bytes at offset " + number(tensor.offset) + ", got " + number(data_bytes) +
                        " bytes of data; download it again");
            return;
        }
    }
}

template <class T> T GgufParser::take(const std::string & place) {
    T value;
    if (!reader_.read(value)) stop(place + ": the file ends here, at byte " + number(reader_.position()));
    return value;
}

std::string GgufParser::take_string(const std::string & place) {
    const uint64_t n = take<uint64_t>(place);
    if (n > reader_.left()) {
        stop(place + ": the file ends inside a string: expected at most " + number(reader_.left()) + " bytes, got " +
             number(n));
    }
    std::string text(reinterpret_cast<const char *>(reader_.cursor()), n);
    reader_.skip(n);
    return text;
}

GgufType GgufParser::take_type(const std::string & place) {
    const uint32_t type = take<uint32_t>(place);
    if (type > uint32_t(GgufType::f64)) stop(place + ": expected a value type from 0 to 12, got " + number(type));
    return GgufType(type);
}

uint8_t GgufParser::take_boolean(const std::string & place) {
    const uint8_t value = take<uint8_t>(place);
    if (value > 1) stop(place + ": expected a bool of 0 or 1, got " + number(value));
    return value;
}

template <class Raw, class Wide> void GgufParser::take_items(const std::string & place, uint64_t n, GgufValue & value) {
    if (n > reader_.left() / sizeof(Raw)) stop(place + ": the file ends inside the array");
    std::vector<Wide> items(n);
    for (Wide & item : items) item = static_cast<Wide>(take<Raw>(place));
    value.data = std::move(items);
}

void GgufParser::stop(const std::string & fault) {
    faults_.add(fault);
    throw ModelFileError(faults_.message());
}

}  // namespace pysa
