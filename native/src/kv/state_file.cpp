#include "kv/state_file.h"

#include <cerrno>
#include <cstring>
#include <filesystem>

#ifndef _WIN32
#include <fcntl.h>
#include <unistd.h>
#endif

#include "pysa/error.h"

namespace pysa {

namespace {

constexpr char magic[8] = {'P', 'Y', 'S', 'A', 'S', 'T', 'A', 'T'};

}  // namespace

void StateHash::add(const void * data, size_t size) {
    const uint8_t * p = static_cast<const uint8_t *>(data);
    const auto mix = [this](uint64_t word) {
        hash_ = (hash_ ^ word) * 0xff51afd7ed558ccdull;
        hash_ ^= hash_ >> 32;
    };
    for (; size > 0 && n_pending_ > 0; --size, ++p) add_byte(*p);
    for (; size >= 8; size -= 8, p += 8) {
        uint64_t word;
        std::memcpy(&word, p, 8);
        mix(word);
    }
    for (; size > 0; --size, ++p) add_byte(*p);
}

void StateHash::add_byte(uint8_t byte) {
    pending_ |= uint64_t(byte) << (8 * n_pending_);
    if (++n_pending_ < 8) return;
    const uint64_t word = pending_;
    pending_ = 0;
    n_pending_ = 0;
    add(&word, sizeof(word));
}

uint64_t StateHash::value() const {
    const uint64_t tail = (hash_ ^ pending_ ^ (uint64_t(n_pending_) << 56)) * 0xff51afd7ed558ccdull;
    return tail ^ (tail >> 32);
}

StateWriter::StateWriter(const std::string & path, bool force) : path_(path), temporary_(path + ".part") {
    std::error_code ignored;
    if (!force && std::filesystem::exists(path, ignored))
        throw ArgumentError(path + ": expected no file there, got one; pass force=True to replace it");
    file_ = std::fopen(temporary_.c_str(), "wb");
    if (!file_) fail("cannot be created");
    put_bytes(magic, sizeof(magic));
    put(state_version);
}

StateWriter::~StateWriter() {
    if (!file_) return;
    std::fclose(file_);
    std::remove(temporary_.c_str());
}

void StateWriter::fail(const char * what) {
    throw StateFileError(temporary_ + ": " + what + ": " + std::strerror(errno));
}

void StateWriter::put_text(const std::string & text) {
    put<uint64_t>(text.size());
    put_bytes(text.data(), text.size());
}

void StateWriter::put_bytes(const void * data, size_t size) {
    if (size == 0) return;
    if (std::fwrite(data, 1, size, file_) != size) fail("cannot be written");
    hash_.add(data, size);
}

void StateWriter::finish() {
    const uint64_t hash = hash_.value();
    if (std::fwrite(&hash, 1, sizeof(hash), file_) != sizeof(hash) || std::fflush(file_) != 0)
        fail("cannot be written");
#ifndef _WIN32
    if (fsync(fileno(file_)) != 0) fail("cannot be flushed");
#endif
    const int closed = std::fclose(file_);
    file_ = nullptr;
    std::error_code error;
    if (closed == 0) std::filesystem::rename(temporary_, path_, error);
    if (closed != 0 || error) {
        std::remove(temporary_.c_str());
        throw StateFileError(path_ + ": cannot be written: " + error.message());
    }
}

StateReader::StateReader(const std::string & path) : path_(path) {
    try {
        map_ = std::make_unique<MappedFile>(path);
    } catch (const Error & error) {
        throw StateFileError(error.what());
    }
    const size_t least = sizeof(magic) + sizeof(state_version) + sizeof(uint64_t);
    if (map_->size() < least || std::memcmp(map_->data(), magic, sizeof(magic)) != 0)
        throw StateFileError(path + ": expected a saved pysa session, got another kind of file");
    uint32_t version;
    std::memcpy(&version, map_->data() + sizeof(magic), sizeof(version));
    if (version != state_version)
        throw StateFileError(path + ": version: expected " + std::to_string(state_version) + ", got " +
                             std::to_string(version) + "; save it again with this pysa");
    const size_t n_hashed = size_t(map_->size() - sizeof(uint64_t));
    uint64_t expected;
    std::memcpy(&expected, map_->data() + n_hashed, sizeof(expected));
    StateHash hash;
    hash.add(map_->data(), n_hashed);
    if (hash.value() != expected)
        throw StateFileError(path + ": checksum: expected the one stored, got another; the file is damaged");
    reader_ = std::make_unique<ByteReader>(map_->data(), n_hashed);
    reader_->skip(sizeof(magic) + sizeof(state_version));
}

std::string StateReader::get_text(const char * field) {
    const std::vector<char> bytes = get_list<char>(field);
    return std::string(bytes.begin(), bytes.end());
}

void StateReader::get_bytes(const char * field, void * data, size_t size) {
    if (size > 0) std::memcpy(data, view_bytes(field, size), size);
}

const uint8_t * StateReader::view_bytes(const char * field, size_t size) {
    const uint8_t * at = reader_->cursor();
    if (!reader_->skip(size)) truncated(field);
    return at;
}

void StateReader::expect_end() {
    if (reader_->left() != 0)
        throw StateFileError(path_ + ": expected its end, got " + std::to_string(reader_->left()) + " more bytes");
}

void StateReader::truncated(const char * field) const {
    throw StateFileError(path_ + ": " + field + ": expected more bytes, got the end of the file");
}

}  // namespace pysa
