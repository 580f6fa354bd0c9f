// The errors pysa raises; pysa/errors.py has the same names, bindings/module.cpp maps one to the other.
// Message form: `<where>: <what is wrong>: expected <X>, got <Y>; <what to do>`.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

namespace pysa {

class Error : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

class ModelFileError : public Error { using Error::Error; };         // a GGUF that is damaged or inconsistent
class UnsupportedModelError : public Error { using Error::Error; };  // a sound file that pysa cannot run
class PlanError : public Error { using Error::Error; };              // an invalid sharing plan
class ContextFullError : public Error { using Error::Error; };       // n_ctx reached
class DeviceError : public Error { using Error::Error; };            // out of memory, a backend that failed
class StateFileError : public Error { using Error::Error; };         // a saved session that does not fit or is damaged
class RollbackError : public Error { using Error::Error; };          // a position the ring has forgotten
class SessionBusyError : public Error { using Error::Error; };       // a second thread in one session
class ArgumentError : public Error { using Error::Error; };          // a value the caller passed
class Interrupted : public Error { using Error::Error; };            // the caller's callback asked to stop

// Everything wrong with one file or plan is collected, then raised as one error.
class Faults {
  public:
    explicit Faults(std::string where) : where_(std::move(where)) {}

    void add(const std::string & fault) { faults_.push_back(fault); }
    bool empty() const { return faults_.empty(); }
    std::string message() const;  // "<where>: a" or "<where>: 3 faults:\n  - a\n  - b ..." (the first 20)

    template <class E> void raise_if_any() const {
        if (!faults_.empty()) throw E(message());
    }

  private:
    std::string where_;
    std::vector<std::string> faults_;
};

}  // namespace pysa
