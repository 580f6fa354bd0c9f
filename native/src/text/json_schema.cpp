// JSON schema to GBNF by llama.cpp's own converter, compiled in from the pinned source.
#include <algorithm>
#include <exception>
#include <string>
#include <vector>

#include "json-schema-to-grammar.h"
#include "pysa/error.h"
#include "pysa/sampler.h"
#include "text/deep_stack.h"

// The converter asks for these; their home is a file that needs all of llama.cpp's tools.
std::string string_join(const std::vector<std::string> & values, const std::string & separator) {
    std::string joined;
    for (const std::string & value : values) joined += (&value == &values.front() ? "" : separator) + value;
    return joined;
}

std::vector<std::string> string_split(const std::string & str, const std::string & delimiter) {
    std::vector<std::string> parts;
    size_t begin = 0;
    for (size_t end; (end = str.find(delimiter, begin)) != std::string::npos; begin = end + delimiter.size())
        parts.push_back(str.substr(begin, end - begin));
    parts.push_back(str.substr(begin));
    return parts;
}

std::string string_repeat(const std::string & str, size_t n) {
    std::string repeated;
    while (n-- > 0) repeated += str;
    return repeated;
}

namespace pysa {

namespace {

constexpr int n_most_levels = 64;  // a rule is named by its path, so the grammar grows with the square of the depth

int levels(const std::string & json) {
    int level = 0, most = 0;
    bool in_text = false;
    for (size_t i = 0; i < json.size(); ++i) {
        const char c = json[i];
        if (in_text && c == '\\') {
            ++i;
        } else if (c == '"') {
            in_text = !in_text;
        } else if (!in_text && (c == '{' || c == '[')) {
            most = std::max(most, ++level);
        } else if (!in_text && (c == '}' || c == ']')) {
            --level;
        }
    }
    return most;
}

}  // namespace

std::string json_schema_to_gbnf(const std::string & schema_json) {
    if (const int found = levels(schema_json); found > n_most_levels)
        throw ArgumentError("JSON schema: expected at most " + std::to_string(n_most_levels) + " levels, got " +
                            std::to_string(found));
    std::string grammar;
    with_deep_stack(schema_json.size(), [&] {  // it recurses with every level of the schema
        try {
            grammar = json_schema_to_grammar(common_json::parse(schema_json));
        } catch (const std::exception & error) {
            throw ArgumentError("JSON schema: expected one that a grammar can be made of, got: " +
                                std::string(error.what()));
        }
    });
    return grammar;
}

}  // namespace pysa
