// Typed access to the keys of a GGUF: what is missing, of another type or out of range becomes a fault, never an exception,
// so that one pass over a file reports everything. Types are exact, as libllama wants them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "file/gguf_file.h"
#include "pysa/error.h"

namespace pysa {

class KeyReader {
  public:
    KeyReader(const GgufFile & file, Faults & faults) : file_(file), faults_(faults) {}

    bool has(const std::string & key) const { return file_.find(key) != nullptr; }

    // nullopt if the key is absent (no fault) or of another type (a fault).
    std::optional<uint32_t> u32(const std::string & key);
    std::optional<uint16_t> u16(const std::string & key);
    std::optional<float> f32(const std::string & key);
    std::optional<bool> boolean(const std::string & key);
    std::optional<std::string> text(const std::string & key);

    // nullptr likewise; the pointers live as long as the file.
    const std::vector<int64_t> * i32_array(const std::string & key);
    const std::vector<double> * f32_array(const std::string & key);
    const std::vector<std::string> * text_array(const std::string & key);

    // A u32 within [low, high]; without `otherwise` the key is required. Always returns a value within the range.
    int32_t count(const std::string & key, int32_t low, int32_t high, std::optional<int32_t> otherwise = std::nullopt);

    // A finite f32 above zero.
    float positive(const std::string & key, std::optional<float> otherwise = std::nullopt);

    void fault(const std::string & text) { faults_.add(text); }
    void missing(const std::string & key, const std::string & expected);
    void out_of_range(const std::string & key, const std::string & expected, const std::string & found);

  private:
    const GgufValue * typed(const std::string & key, GgufType type);
    const GgufValue * typed_array(const std::string & key, GgufType item_type);

    const GgufFile & file_;
    Faults & faults_;
};

// "u32", "array of i32", ...
std::string type_of(const GgufValue & value);

}  // namespace pysa
