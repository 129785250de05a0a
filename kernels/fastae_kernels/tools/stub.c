/* A CUDA driver that checks what it is given and runs nothing: the functions that Triton calls, see stub.py.

   A refused call returns CUDA_ERROR_INVALID_VALUE, and cuGetErrorString says why. Nothing allocates memory or
   waits for the device here: a kernel whose launch asks for it does not link or load. */

#include <elf.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda.h"

#define SHARED_OPTIN (227 * 1024)
#define SHARED_DEFAULT (48 * 1024)

/* Set by stub.py before the first call. */
int stub_major = 9, stub_minor = 0, stub_multiprocessors = 132;
/* Read by stub.py. */
long stub_launches, stub_tensor_maps;

typedef struct {
  char name[512];
  int shared;
} Function;

static char problem[1024];

static CUresult refuse(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(problem, sizeof problem, format, arguments);
  va_end(arguments);
  return CUDA_ERROR_INVALID_VALUE;
}

#define REQUIRE(condition, ...)                                                                                \
  if (!(condition))                                                                                            \
    return refuse(__VA_ARGS__)

/* --- device and context ----------------------------------------------------------------------------------- */

CUresult cuInit(unsigned flags) { return CUDA_SUCCESS; }

CUresult cuGetErrorString(CUresult error, const char **text) {
  *text = problem[0] ? problem : "refused by the stub driver";
  return CUDA_SUCCESS;
}

CUresult cuDriverGetVersion(int *version) {
  *version = 13000;
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetCount(int *count) {
  *count = 1;
  return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice *device, int ordinal) {
  *device = ordinal; /* stub.py numbers its targets */
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
  switch (attribute) {
  case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR:
    *value = stub_major;
    break;
  case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR:
    *value = stub_minor;
    break;
  case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT:
    *value = stub_multiprocessors;
    break;
  case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN:
    *value = SHARED_OPTIN;
    break;
  case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR:
    *value = SHARED_OPTIN + 1024;
    break;
  case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK:
    *value = 65536;
    break;
  case CU_DEVICE_ATTRIBUTE_WARP_SIZE:
    *value = 32;
    break;
  default: /* clock rates and the like */
    *value = 1;
  }
  return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
  *context = (CUcontext)1;
  return CUDA_SUCCESS;
}

CUresult cuCtxGetCurrent(CUcontext *context) {
  *context = (CUcontext)1;
  return CUDA_SUCCESS;
}

CUresult cuCtxSetCurrent(CUcontext context) { return CUDA_SUCCESS; }

CUresult cuCtxGetDevice(CUdevice *device) {
  *device = 0;
  return CUDA_SUCCESS;
}

CUresult cuCtxGetLimit(size_t *value, CUlimit limit) {
  *value = 0;
  return CUDA_SUCCESS;
}

CUresult cuCtxSetLimit(CUlimit limit, size_t value) { return CUDA_SUCCESS; }

CUresult cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus *status) {
  *status = CU_STREAM_CAPTURE_STATUS_NONE;
  return CUDA_SUCCESS;
}

CUresult cuPointerGetAttribute(void *data, CUpointer_attribute attribute, CUdeviceptr pointer) {
  REQUIRE(pointer, "a null pointer");
  if (attribute == CU_POINTER_ATTRIBUTE_DEVICE_POINTER)
    *(CUdeviceptr *)data = pointer;
  return CUDA_SUCCESS;
}

CUresult cuPointerGetAttributes(unsigned count, CUpointer_attribute *attributes, void **data, CUdeviceptr pointer) {
  for (unsigned i = 0; i < count; ++i) {
    CUresult result = cuPointerGetAttribute(data[i], attributes[i], pointer);
    if (result != CUDA_SUCCESS)
      return result;
  }
  return CUDA_SUCCESS;
}

/* --- modules and functions -------------------------------------------------------------------------------- */

CUresult cuModuleLoadData(CUmodule *module, const void *image) {
  REQUIRE(image && !memcmp(image, ELFMAG, SELFMAG), "a module that is no ELF file");
  *module = (CUmodule)image; /* Triton keeps the image as long as the module */
  return CUDA_SUCCESS;
}

CUresult cuModuleUnload(CUmodule module) { return CUDA_SUCCESS; }

CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
  const char *image = (const char *)module;
  const Elf64_Ehdr *header = (const Elf64_Ehdr *)image;
  const Elf64_Shdr *sections = (const Elf64_Shdr *)(image + header->e_shoff);
  const char *names = image + sections[header->e_shstrndx].sh_offset;
  for (int i = 0; i < header->e_shnum; ++i) {
    const char *section = names + sections[i].sh_name;
    if (!strncmp(section, ".text.", 6) && !strcmp(section + 6, name)) {
      Function *found = calloc(1, sizeof *found); /* as many as there are kernels; never freed */
      snprintf(found->name, sizeof found->name, "%s", name);
      found->shared = SHARED_DEFAULT;
      *function = (CUfunction)found;
      return CUDA_SUCCESS;
    }
  }
  return refuse("no function %s in the module", name);
}

CUresult cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction function) {
  *value = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0;
  return CUDA_SUCCESS;
}

CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) {
  Function *own = (Function *)function;
  if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES)
    return refuse("%s: the stub does not set function attribute %d", own->name, (int)attribute);
  REQUIRE(value <= SHARED_OPTIN, "%s: %d bytes of shared memory", own->name, value);
  own->shared = value;
  return CUDA_SUCCESS;
}

CUresult cuFuncSetCacheConfig(CUfunction function, CUfunc_cache config) { return CUDA_SUCCESS; }

CUresult cuOccupancyMaxActiveClusters(int *clusters, CUfunction function, const CUlaunchConfig *config) {
  *clusters = stub_multiprocessors;
  return CUDA_SUCCESS;
}

/* --- launches --------------------------------------------------------------------------------------------- */

CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function, void **parameters, void **extra) {
  const Function *own = (const Function *)function;
  const unsigned grid[3] = {config->gridDimX, config->gridDimY, config->gridDimZ};
  const unsigned long long threads =
      (unsigned long long)config->blockDimX * config->blockDimY * config->blockDimZ;
  REQUIRE(own, "a launch of no function");
  REQUIRE(grid[0] && grid[1] && grid[2] && grid[0] <= 0x7fffffff && grid[1] <= 65535 && grid[2] <= 65535,
          "%s: a grid of %u x %u x %u", own->name, grid[0], grid[1], grid[2]);
  REQUIRE(threads && threads <= 1024 && threads % 32 == 0, "%s: %llu threads", own->name, threads);
  REQUIRE((int)config->sharedMemBytes <= own->shared, "%s: %u bytes of shared memory, %d were allowed",
          own->name, config->sharedMemBytes, own->shared);
  REQUIRE(parameters && !extra, "%s: launched without parameters", own->name);
  ++stub_launches;
  return CUDA_SUCCESS;
}

/* --- tensor maps: the conditions of the CUDA driver API's documentation ------------------------------------- */

static int size_of(CUtensorMapDataType type) {
  switch (type) {
  case CU_TENSOR_MAP_DATA_TYPE_UINT8:
    return 1;
  case CU_TENSOR_MAP_DATA_TYPE_UINT16:
  case CU_TENSOR_MAP_DATA_TYPE_FLOAT16:
  case CU_TENSOR_MAP_DATA_TYPE_BFLOAT16:
    return 2;
  case CU_TENSOR_MAP_DATA_TYPE_UINT64:
  case CU_TENSOR_MAP_DATA_TYPE_INT64:
  case CU_TENSOR_MAP_DATA_TYPE_FLOAT64:
    return 8;
  default:
    return 4;
  }
}

CUresult cuTensorMapEncodeTiled(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank, void *address,
                                const cuuint64_t *sizes, const cuuint64_t *strides, const cuuint32_t *box,
                                const cuuint32_t *steps, CUtensorMapInterleave interleave,
                                CUtensorMapSwizzle swizzle, CUtensorMapL2promotion promotion,
                                CUtensorMapFloatOOBfill fill) {
  const cuuint64_t base = (cuuint64_t)address;
  const unsigned inner = box[0] * size_of(type);
  const unsigned widest[] = {256 * 8, 32, 64, 128}; /* of the inner side of a box by swizzle: none, 32 B ... */
  REQUIRE((cuuint64_t)map % 64 == 0, "a tensor map at %p, which is not aligned to 64 bytes", (void *)map);
  REQUIRE(rank >= 1 && rank <= 5, "a tensor map of rank %u", rank);
  REQUIRE(base && base % 16 == 0, "a tensor at %p, which is not aligned to 16 bytes", address);
  REQUIRE(interleave == CU_TENSOR_MAP_INTERLEAVE_NONE, "an interleaved tensor");
  for (unsigned i = 0; i < rank; ++i) {
    REQUIRE(sizes[i] && sizes[i] <= 1ull << 32, "size %u of a tensor is %llu", i, (unsigned long long)sizes[i]);
    REQUIRE(box[i] && box[i] <= 256, "side %u of a box is %u", i, box[i]);
    REQUIRE(steps[i] >= 1 && steps[i] <= 8, "element stride %u is %u", i, steps[i]);
  }
  for (unsigned i = 0; i + 1 < rank; ++i) {
    const unsigned long long stride = strides[i], row = i ? strides[i - 1] * sizes[i] : sizes[0] * size_of(type);
    REQUIRE(stride % 16 == 0 && stride < 1ull << 40, "stride %u of a tensor is %llu bytes", i, stride);
    REQUIRE(stride >= row, "rows of %llu bytes every %llu bytes", row, stride);
  }
  REQUIRE(inner % 16 == 0, "a box whose rows are %u bytes", inner);
  REQUIRE(swizzle <= CU_TENSOR_MAP_SWIZZLE_128B && inner <= widest[swizzle],
          "a box whose rows are %u bytes with swizzle %d", inner, (int)swizzle);
  memset(map, 0, sizeof *map);
  ++stub_tensor_maps;
  return CUDA_SUCCESS;
}

CUresult cuTensorMapEncodeIm2col(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank, void *address,
                                 const cuuint64_t *sizes, const cuuint64_t *strides, const int *lower,
                                 const int *upper, cuuint32_t channels, cuuint32_t pixels,
                                 const cuuint32_t *steps, CUtensorMapInterleave interleave,
                                 CUtensorMapSwizzle swizzle, CUtensorMapL2promotion promotion,
                                 CUtensorMapFloatOOBfill fill) {
  return refuse("an im2col tensor map");
}
