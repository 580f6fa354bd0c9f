#include "oracle_fill.h"

#include <cstring>
#include <stdexcept>
#include <string>

namespace {

// Reads a state from front to end and writes another one; what is not a row goes over as it is.
class Refill {
  public:
    Refill(const std::vector<uint8_t> & in, const std::vector<uint32_t> & sources) : in_(in), sources_(sources) {}

    std::vector<uint8_t> run() {
        copy<uint32_t>();  // magic
        copy<int32_t>();   // sequence
        expect("streams", copy<uint32_t>(), 1);
        n_held_ = take<uint32_t>();
        put(static_cast<uint32_t>(sources_.size()));
        if (n_held_ == 0) fail("positions held", 0, 1);
        out_.reserve(in_.size() / n_held_ * sources_.size() + in_.size());
        for (const uint32_t source : sources_) {
            if (source >= n_held_) fail("sources", source, n_held_ - 1);
        }
        positions();
        const bool v_is_transposed = copy<uint32_t>() != 0;
        const uint32_t n_layer = copy<uint32_t>();
        for (uint32_t il = 0; il < n_layer; ++il) rows();
        for (uint32_t il = 0; il < n_layer; ++il) v_is_transposed ? columns() : rows();
        expect("bytes left", in_.size() - at_, 0);
        return std::move(out_);
    }

  private:
    // Cells: position, number of sequences, the sequence.
    void positions() {
        int32_t sequence = 0;
        for (uint32_t i = 0; i < n_held_; ++i) {
            expect("position", static_cast<uint64_t>(take<int32_t>()), i);
            expect("sequences of a cell", take<uint32_t>(), 1);
            sequence = take<int32_t>();
        }
        for (size_t i = 0; i < sources_.size(); ++i) {
            put(static_cast<int32_t>(i));
            put(uint32_t(1));
            put(sequence);
        }
    }

    // One layer's K, or V: type, bytes of a row, then a row per position.
    void rows() {
        copy<int32_t>();
        gather(static_cast<size_t>(copy<uint64_t>()));
    }

    // One layer's transposed V: type, bytes of an element, elements of a row, then each element for all positions.
    void columns() {
        copy<int32_t>();
        const size_t size = copy<uint32_t>();
        const uint32_t n_columns = copy<uint32_t>();
        for (uint32_t i = 0; i < n_columns; ++i) gather(size);
    }

    void gather(size_t size) {
        const uint8_t * held = advance(size * n_held_);
        const size_t start = out_.size();
        out_.resize(start + size * sources_.size());
        for (size_t i = 0; i < sources_.size(); ++i)
            std::memcpy(out_.data() + start + i * size, held + sources_[i] * size, size);
    }

    template <class T> T take() {
        T value;
        std::memcpy(&value, advance(sizeof(T)), sizeof(T));
        return value;
    }

    template <class T> void put(T value) {
        const auto * bytes = reinterpret_cast<const uint8_t *>(&value);
        out_.insert(out_.end(), bytes, bytes + sizeof(T));
    }

    template <class T> T copy() {
        const T value = take<T>();
        put(value);
        return value;
    }

    const uint8_t * advance(size_t n) {
        if (n > in_.size() - at_) fail("bytes left", in_.size() - at_, n);
        at_ += n;
        return in_.data() + at_ - n;
    }

    static void expect(const char * what, uint64_t found, uint64_t expected) {
        if (found != expected) fail(what, found, expected);
    }

    [[noreturn]] static void fail(const char * what, uint64_t found, uint64_t expected) {
        throw std::runtime_error(std::string("fill: ") + what + ": expected " + std::to_string(expected) + ", got " +
                                 std::to_string(found) + "; this model's cache is of a kind that fill does not know");
    }

    const std::vector<uint8_t> & in_;
    const std::vector<uint32_t> & sources_;
    std::vector<uint8_t> out_;
    size_t at_ = 0;
    uint32_t n_held_ = 0;
};

}  // namespace

std::vector<uint8_t> refilled_state(const std::vector<uint8_t> & state, const std::vector<uint32_t> & sources) {
    return Refill(state, sources).run();
}
