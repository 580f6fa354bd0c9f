// Reads the header of a GGUF file (versions 2 and 3, little-endian) into a GgufFile.
// Faults that leave the rest readable are collected; one that hides where the next item starts ends the parse.
#pragma once

#include <string>

#include "base/bytes.h"
#include "file/gguf_file.h"
#include "pysa/error.h"

namespace pysa {

class GgufParser {
  public:
    explicit GgufParser(GgufFile & file);

    void parse();  // ModelFileError with every fault

  private:
    void parse_counts();
    void parse_key(uint64_t index);
    void parse_array(const std::string & key, GgufValue & value);
    void parse_scalar(const std::string & key, GgufType type, GgufValue & value);
    void parse_tensor(uint64_t index);
    void check_shape(GgufTensor & tensor, uint32_t raw_type);
    void check_alignment();
    void check_layout();

    template <class T> T take(const std::string & place);
    std::string take_string(const std::string & place);
    GgufType take_type(const std::string & place);
    uint8_t take_boolean(const std::string & place);
    template <class Raw, class Wide> void take_items(const std::string & place, uint64_t n, GgufValue & value);

    [[noreturn]] void stop(const std::string & fault);  // the rest cannot be read

    GgufFile & file_;
    Faults faults_;
    ByteReader reader_;
    uint64_t n_keys_ = 0;
    uint64_t n_tensors_ = 0;
    uint64_t n_items_ = 0;  // of all arrays so far
};

}  // namespace pysa
