# Finds the llama.cpp source that ggml and libllama are built from.
# Sets PYSA_LLAMA_CPP_SOURCE: PYSA_LLAMA_CPP_DIR if given, else the tree inside the pinned sdist
# (llama_cpp.pin.txt), fetched once by pip and kept in PYSA_CACHE_DIR, outside any build tree.

set(PYSA_LLAMA_CPP_DIR "" CACHE PATH "llama.cpp checkout to build instead of the pinned sdist")

if(DEFINED ENV{PYSA_CACHE_DIR})
    set(_pysa_cache_default "$ENV{PYSA_CACHE_DIR}")
elseif(WIN32)
    set(_pysa_cache_default "$ENV{LOCALAPPDATA}/pysa")
elseif(DEFINED ENV{XDG_CACHE_HOME})
    set(_pysa_cache_default "$ENV{XDG_CACHE_HOME}/pysa")
else()
    set(_pysa_cache_default "$ENV{HOME}/.cache/pysa")
endif()
set(PYSA_CACHE_DIR "${_pysa_cache_default}" CACHE PATH "folder that keeps the fetched llama.cpp source")

function(pysa_fetch_llama_cpp out_dir)
    set(pin_file "${CMAKE_CURRENT_FUNCTION_LIST_DIR}/llama_cpp.pin.txt")
    set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${pin_file}")
    file(READ "${pin_file}" pin)
    if(NOT pin MATCHES "^llama-cpp-python==([0-9.]+) --hash=sha256:([0-9a-f]+)")
        message(FATAL_ERROR "${pin_file}: expected one line `llama-cpp-python==VERSION --hash=sha256:HEX`, got `${pin}`")
    endif()
    set(version "${CMAKE_MATCH_1}")
    string(SUBSTRING "${CMAKE_MATCH_2}" 0 12 short_hash)

    set(kept "${PYSA_CACHE_DIR}/llama-cpp-${version}-${short_hash}")
    set(source "${kept}/llama_cpp_python-${version}/vendor/llama.cpp")
    # The folder gets its name only once it is whole, so its presence is the proof of a complete fetch.
    if(NOT EXISTS "${source}/CMakeLists.txt")
        message(STATUS "pysa: fetching llama.cpp (llama-cpp-python ${version} sdist) into ${PYSA_CACHE_DIR}")
        string(RANDOM LENGTH 8 suffix)
        set(staging "${kept}.${suffix}.tmp")
        file(MAKE_DIRECTORY "${staging}")
        execute_process(
            COMMAND "${Python_EXECUTABLE}" -m pip download --disable-pip-version-check --quiet --no-deps
                    --no-binary ":all:" --no-build-isolation --require-hashes -r "${pin_file}" -d "${staging}"
            RESULT_VARIABLE failed ERROR_VARIABLE reason)
        if(failed)
            file(REMOVE_RECURSE "${staging}")
            message(FATAL_ERROR "pysa: cannot fetch llama-cpp-python ${version} with pip: ${reason}\n"
                "Check the network or the package index, or give a llama.cpp checkout with -DPYSA_LLAMA_CPP_DIR=DIR.")
        endif()
        file(GLOB archive "${staging}/*.tar.gz")
        file(ARCHIVE_EXTRACT INPUT "${archive}" DESTINATION "${staging}" PATTERNS "*/vendor/llama.cpp/*")
        file(REMOVE "${archive}")
        file(REMOVE_RECURSE "${kept}")
        file(RENAME "${staging}" "${kept}")
    endif()
    set(${out_dir} "${source}" PARENT_SCOPE)
endfunction()

if(PYSA_LLAMA_CPP_DIR)
    if(NOT EXISTS "${PYSA_LLAMA_CPP_DIR}/include/llama.h")
        message(FATAL_ERROR "PYSA_LLAMA_CPP_DIR: no llama.cpp checkout: expected include/llama.h in ${PYSA_LLAMA_CPP_DIR}")
    endif()
    set(PYSA_LLAMA_CPP_SOURCE "${PYSA_LLAMA_CPP_DIR}")
else()
    pysa_fetch_llama_cpp(PYSA_LLAMA_CPP_SOURCE)
endif()
message(STATUS "pysa: llama.cpp source: ${PYSA_LLAMA_CPP_SOURCE}")

# ggml and libllama as static archives: the extension carries them and shares no symbol with another copy in the process.
function(pysa_add_llama_cpp)
    set(BUILD_SHARED_LIBS OFF)
    set(CMAKE_POSITION_INDEPENDENT_CODE ON)
    set(CMAKE_CXX_VISIBILITY_PRESET hidden)
    set(CMAKE_C_VISIBILITY_PRESET hidden)
    # Only llama-bench needs `common`; it parses options with it and fetches nothing, so no TLS either.
    set(LLAMA_BUILD_COMMON ${PYSA_LLAMA_BENCH} CACHE BOOL "" FORCE)
    set(LLAMA_OPENSSL OFF CACHE BOOL "" FORCE)
    set(LLAMA_BUILD_APP OFF CACHE BOOL "" FORCE)
    foreach(part TESTS TOOLS EXAMPLES SERVER)
        set(LLAMA_BUILD_${part} OFF CACHE BOOL "" FORCE)
    endforeach()
    # libgomp would be a second thread pool beside torch's and a library that the wheel cannot carry.
    set(GGML_OPENMP OFF CACHE BOOL "" FORCE)
    set(GGML_NATIVE ${PYSA_NATIVE} CACHE BOOL "" FORCE)
    set(GGML_CUDA ${PYSA_CUDA} CACHE BOOL "" FORCE)
    # Flash attention is what llama-bench compares with; the engine has its own, and it takes most of the compiler's time.
    set(GGML_CUDA_FA ${PYSA_LLAMA_BENCH} CACHE BOOL "" FORCE)
    set(GGML_CUDA_NCCL OFF CACHE BOOL "" FORCE)
    set(GGML_VULKAN ${PYSA_VULKAN} CACHE BOOL "" FORCE)
    add_subdirectory("${PYSA_LLAMA_CPP_SOURCE}" "${CMAKE_BINARY_DIR}/llama.cpp" EXCLUDE_FROM_ALL)
    if(NOT MSVC)
        set_property(SOURCE "${PYSA_LLAMA_CPP_SOURCE}/src/llama-grammar.cpp" TARGET_DIRECTORY llama APPEND PROPERTY
            COMPILE_OPTIONS "-include;${CMAKE_CURRENT_FUNCTION_LIST_DIR}/grammar_log.h;-Wno-format-security")
    endif()
    # JSON schemas to grammars: a few files of `common`, the rest of which is for llama.cpp's own tools.
    set(common "${PYSA_LLAMA_CPP_SOURCE}/common")
    add_library(pysa_json_schema STATIC EXCLUDE_FROM_ALL "${common}/json-schema-to-grammar.cpp" "${common}/json-schema.cpp"
        "${common}/json.cpp" "${common}/trie.cpp" "${common}/unicode.cpp")
    target_include_directories(pysa_json_schema PUBLIC "${common}" PRIVATE "${PYSA_LLAMA_CPP_SOURCE}/vendor")
    target_link_libraries(pysa_json_schema PUBLIC llama)
    if(PYSA_LLAMA_BENCH)
        # Beside the tree it comes from, so that none of the other tools is configured: BUILD/bin/llama-bench.
        set(LLAMA_TOOLS_INSTALL OFF CACHE BOOL "" FORCE)
        set(CMAKE_RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/bin")
        add_subdirectory("${PYSA_LLAMA_CPP_SOURCE}/tools/llama-bench" "${CMAKE_BINARY_DIR}/llama-bench")
    endif()
endfunction()
