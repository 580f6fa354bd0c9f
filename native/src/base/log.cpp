#include "base/log.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <mutex>

#include "base/process_id.h"
#include "ggml.h"
#include "llama.h"

namespace pysa {

namespace {

// Loading and quantising log in the thread that asked, so a thread's own lines are the ones that explain its failure.
thread_local std::deque<std::string> logged_errors;
thread_local std::string open_line;

void keep_error(const char * text) {
    open_line += text;
    if (open_line.size() > 1000) open_line.resize(1000);
    if (std::strchr(text, '\n') == nullptr) return;
    while (!open_line.empty() && (open_line.back() == '\n' || open_line.back() == ' ')) open_line.pop_back();
    if (!open_line.empty()) logged_errors.push_back(open_line);
    open_line.clear();
    if (logged_errors.size() > 4) logged_errors.pop_front();
}

void on_log(ggml_log_level level, const char * text, void *) {
    static const bool print = [] {
        const char * value = std::getenv("PYSA_LOG");
        return value != nullptr && std::strcmp(value, "debug") == 0;
    }();
    if (print) std::fputs(text, stderr);
    try {
        if (level == GGML_LOG_LEVEL_ERROR || (level == GGML_LOG_LEVEL_CONT && !open_line.empty())) keep_error(text);
    } catch (...) {
        open_line.clear();
    }
}

void on_abort(const char * message) {
    std::fprintf(stderr, "pysa: ggml stopped the process: %s; this is a bug in pysa, please report it\n", message);
    std::fflush(stderr);
}

}  // namespace

void init_logging() {
    static std::once_flag once;
    std::call_once(once, [] {
        is_backends_process();  // this one
        ggml_set_abort_callback(on_abort);
        llama_log_set(on_log, nullptr);
        ggml_log_set(on_log, nullptr);
    });
}

void log_error(const char * text) { on_log(GGML_LOG_LEVEL_ERROR, (std::string(text) + "\n").c_str(), nullptr); }

std::string take_logged_errors() {
    std::string joined;
    for (const std::string & line : logged_errors) joined += (joined.empty() ? "" : "; ") + line;
    logged_errors.clear();
    open_line.clear();
    return joined;
}

}  // namespace pysa
