#include "file/gguf_file.h"

#include "file/gguf_parser.h"

namespace pysa {

const char * gguf_type_name(GgufType type) {
    constexpr const char * names[] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                      "bool", "string", "array", "u64", "i64", "f64"};
    return names[static_cast<uint32_t>(type)];
}

std::shared_ptr<const GgufFile> GgufFile::open(const std::string & path) {
    std::shared_ptr<GgufFile> file(new GgufFile());
    file->path_ = path;
    file->map_ = std::make_unique<MappedFile>(path);
    GgufParser(*file).parse();
    return file;
}

const GgufValue * GgufFile::find(const std::string & key) const {
    const auto found = value_index_.find(key);
    return found == value_index_.end() ? nullptr : &values_[found->second].second;
}

const GgufTensor * GgufFile::find_tensor(const std::string & name) const {
    const auto found = tensor_index_.find(name);
    return found == tensor_index_.end() ? nullptr : &tensors_[found->second];
}

}  // namespace pysa
