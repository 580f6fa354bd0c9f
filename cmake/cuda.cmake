# What PYSA_CUDA needs: nvcc, headers and static libraries, from a CUDA toolkit or from the PyPI packages nvidia-*.
# Included before ggml, at file scope because languages are enabled. Sets CMAKE_CUDA_ARCHITECTURES.
#
# The module must load where there is no CUDA: its runtime is linked statically, and libcublas and libcuda are looked for when
# they are first called (native/src/cuda/lazy_libraries.cpp). So their targets are made here, before FindCUDAToolkit does.

set(PYSA_CUDA_ARCHITECTURES "native" CACHE STRING
    "GPU architectures, such as 75;86;90;120; native: of this machine's GPUs, or all common ones where there is none")

# Where PyPI's packages are: nvidia/cu13 or nvidia/cu12, and before CUDA 13 a folder for each of them.
execute_process(
    COMMAND "${Python_EXECUTABLE}" -c
            "import importlib.util as u, pathlib as p; s = u.find_spec('nvidia'); print(';'.join(str(d) for r in (s.submodule_search_locations if s else []) for d in sorted(p.Path(r).iterdir(), reverse=True) if (d / 'include').is_dir()))"
    OUTPUT_VARIABLE pysa_nvidia_dirs OUTPUT_STRIP_TRAILING_WHITESPACE)
find_program(pysa_nvcc nvcc HINTS ENV CUDA_PATH /usr/local/cuda ${pysa_nvidia_dirs} PATH_SUFFIXES bin)
if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX} AND pysa_nvcc)
    set(CMAKE_CUDA_COMPILER "${pysa_nvcc}")
endif()

# PyPI's nvcc looks for libraries in lib64, but they are in lib, without links to the names that linkers look for.
foreach(dir IN LISTS pysa_nvidia_dirs)
    if(EXISTS "${dir}/lib/libcudart_static.a" AND "$ENV{CUDACXX}${CMAKE_CUDA_COMPILER}" MATCHES "^${dir}/")
        if(NOT "$ENV{CUDAFLAGS}" MATCHES "${dir}/lib")
            set(ENV{CUDAFLAGS} "$ENV{CUDAFLAGS} -L${dir}/lib")
        endif()
        set(CUDA_CUDART "${dir}/lib/libcudart_static.a" CACHE FILEPATH "")
        set(CUDA_cudart_static_LIBRARY "${dir}/lib/libcudart_static.a" CACHE FILEPATH "")
    endif()
endforeach()

if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
    if(PYSA_CUDA_ARCHITECTURES STREQUAL "native")
        execute_process(COMMAND nvidia-smi -L OUTPUT_VARIABLE pysa_gpus ERROR_QUIET)
        if(pysa_gpus MATCHES "GPU 0")
            set(CMAKE_CUDA_ARCHITECTURES native)
        else()
            message(STATUS "pysa: no NVIDIA GPU here: building for the common architectures; choose with PYSA_CUDA_ARCHITECTURES")
            set(CMAKE_CUDA_ARCHITECTURES 75-virtual 80-virtual 86-real 89-real 90-real)
            set(nvcc "$ENV{CUDACXX}")
            if(NOT nvcc)
                set(nvcc "${CMAKE_CUDA_COMPILER}")
            endif()
            execute_process(COMMAND "${nvcc}" --version OUTPUT_VARIABLE nvcc_version ERROR_QUIET)
            if(nvcc_version MATCHES "release ([0-9.]+)" AND CMAKE_MATCH_1 VERSION_GREATER_EQUAL 12.8)
                list(APPEND CMAKE_CUDA_ARCHITECTURES 120-real)
            endif()
        endif()
    else()
        set(CMAKE_CUDA_ARCHITECTURES ${PYSA_CUDA_ARCHITECTURES})
    endif()
endif()
include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
    message(FATAL_ERROR "PYSA_CUDA: no working nvcc: expected one on the PATH, in CUDACXX or from PyPI; install a CUDA toolkit "
        "(12.4 or later) or `pip install nvidia-cuda-nvcc nvidia-cuda-crt nvidia-nvvm nvidia-cuda-runtime nvidia-cuda-cccl nvidia-cublas`")
endif()
enable_language(CUDA)
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.4)
    message(FATAL_ERROR "PYSA_CUDA: expected CUDA 12.4 or later, got ${CMAKE_CUDA_COMPILER_VERSION} (${CMAKE_CUDA_COMPILER})")
endif()

add_library(pysa_cudart INTERFACE)
target_link_libraries(pysa_cudart INTERFACE CUDA::cudart_static)
add_library(CUDA::cudart ALIAS pysa_cudart)
add_library(pysa_cuda_lazy STATIC EXCLUDE_FROM_ALL native/src/cuda/lazy_libraries.cpp)
set_target_properties(pysa_cuda_lazy PROPERTIES POSITION_INDEPENDENT_CODE ON CXX_VISIBILITY_PRESET hidden)
add_library(CUDA::cublas ALIAS pysa_cuda_lazy)
add_library(CUDA::cuda_driver ALIAS pysa_cuda_lazy)
find_package(CUDAToolkit REQUIRED)

find_path(PYSA_CUBLAS_INCLUDE cublas_v2.h HINTS ${CUDAToolkit_INCLUDE_DIRS} ${pysa_nvidia_dirs} PATH_SUFFIXES include)
if(NOT PYSA_CUBLAS_INCLUDE)
    message(FATAL_ERROR "PYSA_CUDA: no cublas_v2.h: expected it in the CUDA toolkit or from PyPI; "
        "`pip install nvidia-cublas` (nvidia-cublas-cu12 for CUDA 12)")
endif()
target_include_directories(pysa_cuda_lazy PRIVATE native/src PUBLIC ${CUDAToolkit_INCLUDE_DIRS} "${PYSA_CUBLAS_INCLUDE}")
target_link_libraries(pysa_cuda_lazy PUBLIC pysa_cudart PRIVATE ${CMAKE_DL_LIBS})
message(STATUS "pysa: CUDA ${CMAKE_CUDA_COMPILER_VERSION} for ${CMAKE_CUDA_ARCHITECTURES}")
