// Bytes of unknown origin: a bounded little-endian reader, a UTF-8 check, and quoting for error messages.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>

namespace pysa {

class ByteReader {
  public:
    ByteReader(const uint8_t * data, uint64_t size) : data_(data), size_(size) {}

    uint64_t position() const { return position_; }
    uint64_t left() const { return size_ - position_; }
    const uint8_t * cursor() const { return data_ + position_; }

    bool skip(uint64_t n) {
        if (n > left()) return false;
        position_ += n;
        return true;
    }

    template <class T> bool read(T & value) {
        if (sizeof(T) > left()) return false;
        std::memcpy(&value, cursor(), sizeof(T));
        position_ += sizeof(T);
        return true;
    }

  private:
    const uint8_t * data_;
    uint64_t size_;
    uint64_t position_ = 0;
};

bool is_utf8(const std::string & text);

// True if `text` is UTF-8 without control characters: fit for a key or a tensor's name.
bool is_plain_name(const std::string & text);

// 'text', its first `n_shown` bytes, everything unprintable escaped, so that a message is always valid UTF-8.
std::string quoted(const std::string & text, size_t n_shown = 60);

}  // namespace pysa
