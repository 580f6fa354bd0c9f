#include "base/bytes.h"

#include <cstdio>

namespace pysa {

namespace {

// Bytes of the well-formed UTF-8 character at text[i]; 0 if there is none (Unicode 15, table 3-7).
size_t utf8_length(const std::string & text, size_t i) {
    const auto byte = [&](size_t k) { return i + k < text.size() ? static_cast<uint8_t>(text[i + k]) : uint8_t(0); };
    const auto tail = [&](size_t k) { return (byte(k) & 0xC0) == 0x80; };
    const uint8_t first = byte(0);
    if (first < 0x80) return 1;
    if (first >= 0xC2 && first <= 0xDF) return tail(1) ? 2 : 0;
    if (first >= 0xE0 && first <= 0xEF) {
        const bool overlong = first == 0xE0 && byte(1) < 0xA0;
        const bool surrogate = first == 0xED && byte(1) > 0x9F;
        return tail(1) && tail(2) && !overlong && !surrogate ? 3 : 0;
    }
    if (first >= 0xF0 && first <= 0xF4) {
        const bool overlong = first == 0xF0 && byte(1) < 0x90;
        const bool too_large = first == 0xF4 && byte(1) > 0x8F;
        return tail(1) && tail(2) && tail(3) && !overlong && !too_large ? 4 : 0;
    }
    return 0;
}

}  // namespace

bool is_utf8(const std::string & text) {
    for (size_t i = 0; i < text.size();) {
        const size_t n = utf8_length(text, i);
        if (n == 0) return false;
        i += n;
    }
    return true;
}

bool is_plain_name(const std::string & text) {
    for (const char c : text) {
        if (static_cast<uint8_t>(c) < 0x20 || c == 0x7F) return false;
    }
    return is_utf8(text);
}

std::string quoted(const std::string & text, size_t n_shown) {
    std::string out = "'";
    size_t i = 0;
    while (i < text.size() && i < n_shown) {
        const size_t n = utf8_length(text, i);
        const uint8_t byte = static_cast<uint8_t>(text[i]);
        if (n == 0 || byte < 0x20 || byte == 0x7F) {
            char escape[8];
            std::snprintf(escape, sizeof(escape), "\\x%02x", byte);
            out += escape;
            i += 1;
        } else {
            out.append(text, i, n);
            i += n;
        }
    }
    return out + (i < text.size() ? "...'" : "'");
}

}  // namespace pysa
