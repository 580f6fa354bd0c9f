// A GGUF file, parsed and checked by pysa itself: ggml and libllama never see a file that has not passed here.
// What the values mean (hyper-parameters, plan, roles of tensors) is decided by the readers beside this file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <variant>
#include <vector>

#include "ggml.h"

namespace pysa {

enum class GgufType : uint32_t {
    u8 = 0,
    i8 = 1,
    u16 = 2,
    i16 = 3,
    u32 = 4,
    i32 = 5,
    f32 = 6,
    boolean = 7,
    string = 8,
    array = 9,
    u64 = 10,
    i64 = 11,
    f64 = 12,
};

const char * gguf_type_name(GgufType type);  // "u32", "string", ...

// Integers of every width widen to (u)int64, floats to double; `type` (or `item_type` of an array) keeps the file's own.
struct GgufValue {
    GgufType type = GgufType::u32;
    GgufType item_type = GgufType::u32;
    std::variant<uint64_t, int64_t, double, bool, std::string, std::vector<uint64_t>, std::vector<int64_t>,
                 std::vector<double>, std::vector<bool>, std::vector<std::string>>
        data;
};

struct GgufTensor {
    std::string name;
    ggml_type type = GGML_TYPE_F32;
    int64_t ne[4] = {1, 1, 1, 1};
    int n_dims = 1;
    uint64_t offset = 0;      // from the start of the data section
    uint64_t size_bytes = 0;  // as ggml lays the type out
};

// A read-only view of a file's bytes.
class MappedFile {
  public:
    explicit MappedFile(const std::string & path);  // ModelFileError if it cannot be opened or is empty
    ~MappedFile();
    MappedFile(const MappedFile &) = delete;
    MappedFile & operator=(const MappedFile &) = delete;
    const uint8_t * data() const { return data_; }
    uint64_t size() const { return size_; }
    // Gives the memory of the whole pages inside a range back; they are read from the file again when next touched.
    void release(const uint8_t * data, uint64_t size_bytes) const;

  private:
    const uint8_t * data_ = nullptr;
    uint64_t size_ = 0;
};

class GgufFile {
  public:
    // Maps and checks the file. Throws ModelFileError with every fault found.
    static std::shared_ptr<const GgufFile> open(const std::string & path);

    const std::string & path() const { return path_; }
    uint32_t version() const { return version_; }
    uint64_t alignment() const { return alignment_; }
    uint64_t data_offset() const { return data_offset_; }
    uint64_t size_bytes() const { return map_->size(); }
    const std::vector<std::pair<std::string, GgufValue>> & values() const { return values_; }
    const std::vector<GgufTensor> & tensors() const { return tensors_; }

    const GgufValue * find(const std::string & key) const;           // null if absent
    const GgufTensor * find_tensor(const std::string & name) const;  // null if absent
    const uint8_t * tensor_data(const GgufTensor & tensor) const { return map_->data() + data_offset_ + tensor.offset; }
    void release(const GgufTensor & tensor) const { map_->release(tensor_data(tensor), tensor.size_bytes); }

  private:
    GgufFile() = default;

    std::string path_;
    std::unique_ptr<MappedFile> map_;
    uint32_t version_ = 0;
    uint64_t alignment_ = 32;
    uint64_t data_offset_ = 0;
    std::vector<std::pair<std::string, GgufValue>> values_;
    std::vector<GgufTensor> tensors_;
    std::unordered_map<std::string, size_t> value_index_;
    std::unordered_map<std::string, size_t> tensor_index_;

    friend class GgufParser;
};

}  // namespace pysa
