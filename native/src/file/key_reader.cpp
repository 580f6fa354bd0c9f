#include "file/key_reader.h"

#include <cmath>

namespace pysa {

std::string type_of(const GgufValue & value) {
    if (value.type != GgufType::array) return gguf_type_name(value.type);
    return std::string("array of ") + gguf_type_name(value.item_type);
}

const GgufValue * KeyReader::typed(const std::string & key, GgufType type) {
    const GgufValue * value = file_.find(key);
    if (value == nullptr || value->type == type) return value;
    faults_.add(key + ": expected " + gguf_type_name(type) + ", got " + type_of(*value));
    return nullptr;
}

const GgufValue * KeyReader::typed_array(const std::string & key, GgufType item_type) {
    const GgufValue * value = file_.find(key);
    if (value == nullptr || (value->type == GgufType::array && value->item_type == item_type)) return value;
    faults_.add(key + ": expected array of " + gguf_type_name(item_type) + ", got " + type_of(*value));
    return nullptr;
}

std::optional<uint32_t> KeyReader::u32(const std::string & key) {
    const GgufValue * value = typed(key, GgufType::u32);
    if (value == nullptr) return std::nullopt;
    return static_cast<uint32_t>(std::get<uint64_t>(value->data));
}

std::optional<uint16_t> KeyReader::u16(const std::string & key) {
    const GgufValue * value = typed(key, GgufType::u16);
    if (value == nullptr) return std::nullopt;
    return static_cast<uint16_t>(std::get<uint64_t>(value->data));
}

std::optional<float> KeyReader::f32(const std::string & key) {
    const GgufValue * value = typed(key, GgufType::f32);
    if (value == nullptr) return std::nullopt;
    return static_cast<float>(std::get<double>(value->data));
}

std::optional<bool> KeyReader::boolean(const std::string & key) {
    const GgufValue * value = typed(key, GgufType::boolean);
    if (value == nullptr) return std::nullopt;
    return std::get<bool>(value->data);
}

std::optional<std::string> KeyReader::text(const std::string & key) {
    const GgufValue * value = typed(key, GgufType::string);
    if (value == nullptr) return std::nullopt;
    return std::get<std::string>(value->data);
}

const std::vector<int64_t> * KeyReader::i32_array(const std::string & key) {
    const GgufValue * value = typed_array(key, GgufType::i32);
    return value == nullptr ? nullptr : &std::get<std::vector<int64_t>>(value->data);
}

const std::vector<double> * KeyReader::f32_array(const std::string & key) {
    const GgufValue * value = typed_array(key, GgufType::f32);
    return value == nullptr ? nullptr : &std::get<std::vector<double>>(value->data);
}

const std::vector<std::string> * KeyReader::text_array(const std::string & key) {
    const GgufValue * value = typed_array(key, GgufType::string);
    return value == nullptr ? nullptr : &std::get<std::vector<std::string>>(value->data);
}

int32_t KeyReader::count(const std::string & key, int32_t low, int32_t high, std::optional<int32_t> otherwise) {
    if (!has(key)) {
        if (!otherwise) missing(key, "u32");
        return otherwise.value_or(low);
    }
    const std::optional<uint32_t> value = u32(key);
    if (!value) return otherwise.value_or(low);
    if (int64_t(*value) < low || int64_t(*value) > high) {
        out_of_range(key, std::to_string(low) + " to " + std::to_string(high), std::to_string(*value));
        return otherwise.value_or(low);
    }
    return static_cast<int32_t>(*value);
}

float KeyReader::positive(const std::string & key, std::optional<float> otherwise) {
    if (!has(key)) {
        if (!otherwise) missing(key, "f32");
        return otherwise.value_or(1.0f);
    }
    const std::optional<float> value = f32(key);
    if (!value) return otherwise.value_or(1.0f);
    if (!std::isfinite(*value) || *value <= 0.0f) {
        out_of_range(key, "a finite number above 0", std::to_string(*value));
        return otherwise.value_or(1.0f);
    }
    return *value;
}

void KeyReader::missing(const std::string & key, const std::string & expected) {
    faults_.add(key + ": missing: expected " + expected);
}

void KeyReader::out_of_range(const std::string & key, const std::string & expected, const std::string & found) {
    faults_.add(key + ": expected " + expected + ", got " + found);
}

}  // namespace pysa
