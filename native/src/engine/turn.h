// One thread at a time in an object that is not made for two: a second one is refused instead of raced.
#pragma once

#include <atomic>
#include <string>

#include "pysa/error.h"

namespace pysa {

class Turn {
  public:
    Turn(std::atomic_flag & busy, const char * what) : busy_(busy) {
        if (busy_.test_and_set())
            throw SessionBusyError(std::string(what) +
                                   ": expected one thread at a time, got a second one; give each thread its own " +
                                   what);
    }
    ~Turn() { busy_.clear(); }
    Turn(const Turn &) = delete;
    Turn & operator=(const Turn &) = delete;

  private:
    std::atomic_flag & busy_;
};

}  // namespace pysa
