// Included before llama.cpp's grammar parser: what that prints about a faulty grammar goes to llama.cpp's log instead of stderr, where an
// error message can take it up.
#pragma once

#include <cstdio>

#include "llama-impl.h"

template <class... Args> inline void pysa_grammar_print(FILE * file, const char * format, Args... args) {
    if (file == stderr) {
        llama_log_internal(GGML_LOG_LEVEL_ERROR, format, args...);
    } else {
        std::fprintf(file, format, args...);
    }
}

#define fprintf pysa_grammar_print
