// Saved sessions: a flat binary file, magic and version first, a checksum last. Read whole and checked before any of it is used.
// Layout, little-endian: "PYSASTAT", u32 version, then the fields in the order Session writes them, u64 checksum of all before it.
#pragma once

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "file/gguf_file.h"

namespace pysa {

constexpr uint32_t state_version = 3;

// Not cryptographic: it finds damage, not forgery; the fields are bounds-checked as they are read, whatever it says.
// Depends on the bytes alone, not on how they were cut into calls.
class StateHash {
  public:
    void add(const void * data, size_t size);
    uint64_t value() const;

  private:
    void add_byte(uint8_t byte);

    uint64_t hash_ = 0x9e3779b97f4a7c15ull;
    uint64_t pending_ = 0;  // bytes that do not fill a word yet
    uint32_t n_pending_ = 0;
};

// Writes beside the name and renames on finish(), so that a failure leaves an older file alone.
class StateWriter {
  public:
    StateWriter(const std::string & path, bool force);  // ArgumentError if the file exists and not `force`
    ~StateWriter();                                     // removes an unfinished file

    template <class T> void put(const T & value) { put_bytes(&value, sizeof(T)); }
    void put_text(const std::string & text);
    template <class T> void put_list(const std::vector<T> & values) {
        put<uint64_t>(values.size());
        put_bytes(values.data(), values.size() * sizeof(T));
    }
    void put_bytes(const void * data, size_t size);  // StateFileError if the disk is full
    void finish();

  private:
    [[noreturn]] void fail(const char * what);

    std::string path_, temporary_;
    std::FILE * file_ = nullptr;
    StateHash hash_;
};

class StateReader {
  public:
    explicit StateReader(const std::string & path);  // StateFileError: not a state file, another version, damaged

    template <class T> T get(const char * field) {
        T value;
        if (!reader_->read(value)) truncated(field);
        return value;
    }
    std::string get_text(const char * field);
    template <class T> std::vector<T> get_list(const char * field) {
        const uint64_t n = get<uint64_t>(field);
        if (n > reader_->left() / sizeof(T)) truncated(field);
        std::vector<T> values(n);
        get_bytes(field, values.data(), n * sizeof(T));
        return values;
    }
    void get_bytes(const char * field, void * data, size_t size);
    const uint8_t * view_bytes(const char * field, size_t size);
    void expect_end();

  private:
    [[noreturn]] void truncated(const char * field) const;

    std::string path_;
    std::unique_ptr<MappedFile> map_;
    std::unique_ptr<ByteReader> reader_;
};

}  // namespace pysa
