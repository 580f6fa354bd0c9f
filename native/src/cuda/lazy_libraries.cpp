// The functions that ggml's CUDA backend calls of libcublas and libcuda, under their own names: each passes its call on to the library,
// which is opened by the first one. A missing library is an error code to the caller; devices are refused before it comes to that.
#include "cuda/lazy_libraries.h"

#include <cublas_v2.h>
#include <cuda.h>

#include <mutex>

#ifdef _WIN32
#include <windows.h>
#else
#include <dlfcn.h>
#endif

namespace pysa {

namespace {

#define PYSA_TEXT_OF(name) #name
#define PYSA_TEXT(name) PYSA_TEXT_OF(name)
#ifdef _WIN32
constexpr char cublas_file[] = "cublas64_" PYSA_TEXT(CUBLAS_VER_MAJOR) ".dll";
constexpr char cuda_file[] = "nvcuda.dll";
#else
constexpr char cublas_file[] = "libcublas.so." PYSA_TEXT(CUBLAS_VER_MAJOR);
constexpr char cuda_file[] = "libcuda.so.1";
#endif

std::vector<std::string> & library_dirs() {
    static std::vector<std::string> dirs;
    return dirs;
}

class Library {
  public:
    explicit Library(const char * file) : file_(file) {}

    void * find(const char * function) {
        open();
        if (!handle_) return nullptr;
#ifdef _WIN32
        return reinterpret_cast<void *>(GetProcAddress(static_cast<HMODULE>(handle_), function));
#else
        return dlsym(handle_, function);
#endif
    }

    std::string fault() {
        open();
        return handle_ ? std::string() : fault_;
    }

  private:
    void open() {
        std::call_once(opened_, [this] {
            for (const std::string & dir : library_dirs())
                if (try_open(dir + "/" + file_)) return;
            try_open(file_);
        });
    }

    bool try_open(const std::string & path) {
#ifdef _WIN32
        handle_ = LoadLibraryA(path.c_str());
        if (!handle_) fault_ = path + ": error " + std::to_string(GetLastError());
#else
        handle_ = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
        if (!handle_) fault_ = dlerror();
#endif
        return handle_ != nullptr;
    }

    const char * file_;
    std::once_flag opened_;
    void * handle_ = nullptr;  // kept open: its functions are in use until the process ends
    std::string fault_;
};

Library & cublas() {
    static Library library(cublas_file);
    return library;
}

Library & cuda() {
    static Library library(cuda_file);
    return library;
}

template <class Function> Function * find(Library & library, const char * name) {
    return reinterpret_cast<Function *>(library.find(name));
}

}  // namespace

void add_cuda_library_dirs(const std::vector<std::string> & dirs) {
    library_dirs().insert(library_dirs().end(), dirs.begin(), dirs.end());
}

std::string missing_cuda_library() {
    const std::string fault = cuda().fault();
    return fault.empty() ? cublas().fault() : fault;
}

}  // namespace pysa

// The names of cublas_v2.h are macros for the library's own, which PYSA_TEXT sees.
#define PYSA_FORWARD(library, Result, missing, name, parameters, arguments)                                          \
    extern "C" Result name parameters {                                                                              \
        static Result(*const function) parameters = pysa::find<Result parameters>(pysa::library(), PYSA_TEXT(name)); \
        return function ? function arguments : missing;                                                              \
    }
#define PYSA_CUBLAS(name, parameters, arguments) \
    PYSA_FORWARD(cublas, cublasStatus_t CUBLASWINAPI, CUBLAS_STATUS_NOT_INITIALIZED, name, parameters, arguments)
#define PYSA_CUDA(name, parameters, arguments) \
    PYSA_FORWARD(cuda, CUresult CUDAAPI, CUDA_ERROR_NOT_INITIALIZED, name, parameters, arguments)

PYSA_CUBLAS(cublasCreate, (cublasHandle_t * handle), (handle))
PYSA_CUBLAS(cublasDestroy, (cublasHandle_t handle), (handle))
PYSA_CUBLAS(cublasSetMathMode, (cublasHandle_t handle, cublasMath_t mode), (handle, mode))
PYSA_CUBLAS(cublasSetStream, (cublasHandle_t handle, cudaStream_t stream), (handle, stream))
PYSA_CUBLAS(cublasSetWorkspace, (cublasHandle_t handle, void * workspace, size_t size), (handle, workspace, size))
PYSA_CUBLAS(cublasLoggerConfigure, (int on, int to_stdout, int to_stderr, const char * file),
            (on, to_stdout, to_stderr, file))
PYSA_FORWARD(cublas, const char * CUBLASWINAPI, "libcublas is missing", cublasGetStatusString, (cublasStatus_t status),
             (status))
PYSA_CUBLAS(cublasSgemm,
            (cublasHandle_t handle, cublasOperation_t op_a, cublasOperation_t op_b, int m, int n, int k,
             const float * alpha, const float * a, int lda, const float * b, int ldb, const float * beta, float * c,
             int ldc),
            (handle, op_a, op_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc))
PYSA_CUBLAS(cublasSgemmBatched,
            (cublasHandle_t handle, cublasOperation_t op_a, cublasOperation_t op_b, int m, int n, int k,
             const float * alpha, const float * const a[], int lda, const float * const b[], int ldb,
             const float * beta, float * const c[], int ldc, int n_batch),
            (handle, op_a, op_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc, n_batch))
PYSA_CUBLAS(cublasSgemmStridedBatched,
            (cublasHandle_t handle, cublasOperation_t op_a, cublasOperation_t op_b, int m, int n, int k,
             const float * alpha, const float * a, int lda, long long int stride_a, const float * b, int ldb,
             long long int stride_b, const float * beta, float * c, int ldc, long long int stride_c, int n_batch),
            (handle, op_a, op_b, m, n, k, alpha, a, lda, stride_a, b, ldb, stride_b, beta, c, ldc, stride_c, n_batch))
PYSA_CUBLAS(cublasStrsmBatched,
            (cublasHandle_t handle, cublasSideMode_t side, cublasFillMode_t fill, cublasOperation_t op,
             cublasDiagType_t diagonal, int m, int n, const float * alpha, const float * const a[], int lda,
             float * const b[], int ldb, int n_batch),
            (handle, side, fill, op, diagonal, m, n, alpha, a, lda, b, ldb, n_batch))
PYSA_CUBLAS(cublasGemmEx,
            (cublasHandle_t handle, cublasOperation_t op_a, cublasOperation_t op_b, int m, int n, int k,
             const void * alpha, const void * a, cudaDataType type_a, int lda, const void * b, cudaDataType type_b,
             int ldb, const void * beta, void * c, cudaDataType type_c, int ldc, cublasComputeType_t compute,
             cublasGemmAlgo_t algorithm),
            (handle, op_a, op_b, m, n, k, alpha, a, type_a, lda, b, type_b, ldb, beta, c, type_c, ldc, compute,
             algorithm))
PYSA_CUBLAS(cublasGemmBatchedEx,
            (cublasHandle_t handle, cublasOperation_t op_a, cublasOperation_t op_b, int m, int n, int k,
             const void * alpha, const void * const a[], cudaDataType type_a, int lda, const void * const b[],
             cudaDataType type_b, int ldb, const void * beta, void * const c[], cudaDataType type_c, int ldc,
             int n_batch, cublasComputeType_t compute, cublasGemmAlgo_t algorithm),
            (handle, op_a, op_b, m, n, k, alpha, a, type_a, lda, b, type_b, ldb, beta, c, type_c, ldc, n_batch, compute,
             algorithm))
PYSA_CUBLAS(cublasGemmStridedBatchedEx,
            (cublasHandle_t handle, cublasOperation_t op_a, cublasOperation_t op_b, int m, int n, int k,
             const void * alpha, const void * a, cudaDataType type_a, int lda, long long int stride_a, const void * b,
             cudaDataType type_b, int ldb, long long int stride_b, const void * beta, void * c, cudaDataType type_c,
             int ldc, long long int stride_c, int n_batch, cublasComputeType_t compute, cublasGemmAlgo_t algorithm),
            (handle, op_a, op_b, m, n, k, alpha, a, type_a, lda, stride_a, b, type_b, ldb, stride_b, beta, c, type_c,
             ldc, stride_c, n_batch, compute, algorithm))

PYSA_CUDA(cuDeviceGet, (CUdevice * device, int ordinal), (device, ordinal))
PYSA_CUDA(cuDeviceGetAttribute, (int * value, CUdevice_attribute attribute, CUdevice device),
          (value, attribute, device))
PYSA_CUDA(cuGetErrorString, (CUresult error, const char ** text), (error, text))
PYSA_CUDA(cuMemAddressFree, (CUdeviceptr address, size_t size), (address, size))
PYSA_CUDA(cuMemAddressReserve,
          (CUdeviceptr * address, size_t size, size_t alignment, CUdeviceptr hint, unsigned long long flags),
          (address, size, alignment, hint, flags))
PYSA_CUDA(cuMemCreate,
          (CUmemGenericAllocationHandle * handle, size_t size, const CUmemAllocationProp * properties,
           unsigned long long flags),
          (handle, size, properties, flags))
PYSA_CUDA(cuMemGetAllocationGranularity,
          (size_t * granularity, const CUmemAllocationProp * properties, CUmemAllocationGranularity_flags option),
          (granularity, properties, option))
PYSA_CUDA(cuMemMap,
          (CUdeviceptr address, size_t size, size_t offset, CUmemGenericAllocationHandle handle,
           unsigned long long flags),
          (address, size, offset, handle, flags))
PYSA_CUDA(cuMemRelease, (CUmemGenericAllocationHandle handle), (handle))
PYSA_CUDA(cuMemSetAccess, (CUdeviceptr address, size_t size, const CUmemAccessDesc * access, size_t n_access),
          (address, size, access, n_access))
PYSA_CUDA(cuMemUnmap, (CUdeviceptr address, size_t size), (address, size))
