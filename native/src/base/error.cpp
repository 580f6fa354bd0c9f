#include "pysa/error.h"

namespace pysa {

std::string Faults::message() const {
    constexpr size_t n_shown = 20;
    if (faults_.size() == 1) return where_ + ": " + faults_.front();
    std::string text = where_ + ": " + std::to_string(faults_.size()) + " faults:";
    for (size_t i = 0; i < faults_.size() && i < n_shown; ++i) text += "\n  - " + faults_[i];
    if (faults_.size() > n_shown) text += "\n  - ... and " + std::to_string(faults_.size() - n_shown) + " more";
    return text;
}

}  // namespace pysa
