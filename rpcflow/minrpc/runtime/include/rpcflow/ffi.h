/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Values as compiled functions take and return them: the C ABI of tvm-ffi, laid out as in its documentation, so that
 * objects compiled by TVM link against this runtime and nothing else.
 */
#ifndef RPCFLOW_FFI_H
#define RPCFLOW_FFI_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Type indices of values. */
enum {
  RPCFLOW_NONE = 0,
  RPCFLOW_INT = 1,
  RPCFLOW_BOOL = 2,
  RPCFLOW_FLOAT = 3,
  RPCFLOW_POINTER = 4,
  RPCFLOW_DTYPE = 5,
  RPCFLOW_DEVICE = 6,
  RPCFLOW_TENSOR = 7,       /* as_tensor: borrowed for the call */
  RPCFLOW_STRING = 8,       /* as_string, NUL-terminated: borrowed for the call; as a result it must outlive it */
  RPCFLOW_BYTES = 9,        /* as_bytes: borrowed for the call; as a result it must outlive it */
  RPCFLOW_SMALL_STRING = 11,
  RPCFLOW_SMALL_BYTES = 12,
  RPCFLOW_OBJECTS = 64,     /* from here on indices are of objects with reference counts */
  RPCFLOW_STRING_OBJECT = 65,
  RPCFLOW_BYTES_OBJECT = 66,
  RPCFLOW_FUNCTION_OBJECT = 68,
  RPCFLOW_TENSOR_OBJECT = 70,
  RPCFLOW_MODULE_OBJECT = 73,
  RPCFLOW_OBJECT_REFERENCE = 115 /* on the line only: any object that has a handle */
};

typedef struct {
  int32_t type; /* 1: cpu, the only one here */
  int32_t id;
} rpcflow_device;

typedef struct {
  uint8_t code; /* 0 int, 1 uint, 2 float, 4 bfloat, 6 bool */
  uint8_t bits;
  uint16_t lanes;
} rpcflow_dtype;

typedef struct {
  const char *data;
  size_t nbytes;
} rpcflow_bytes;

/* DLPack's DLTensor: 48 bytes where pointers have 64 bits, 40 where they have 32. */
typedef struct {
  void *data;
  rpcflow_device device;
  int32_t ndim;
  rpcflow_dtype dtype;
  int64_t *shape;
  int64_t *strides; /* NULL: compact, in row-major order */
  uint64_t byte_offset;
} rpcflow_tensor;

/* One value: 16 bytes on every machine. */
typedef struct {
  int32_t type;
  uint32_t small_nbytes; /* 0 but for small strings and bytes */
  union {
    int64_t as_int;
    double as_float;
    void *as_pointer;
    rpcflow_dtype as_dtype;
    rpcflow_device as_device;
    rpcflow_tensor *as_tensor;
    const char *as_string;
    const rpcflow_bytes *as_bytes;
    char as_small[8];
  } u;
} rpcflow_value;

/*
 * A function as TVM compiles it (symbol `__tvm_ffi_NAME`) and as rpcflow calls it. Returns 0; or -1 after an error was
 * raised by rpcflow_raise or TVMFFIErrorSetRaisedFromCStrParts. `self` is NULL, and `result` None when it is called.
 * Results are None, ints, bools, floats, pointers, dtypes, devices, strings and bytes; small ones up to 7 bytes.
 */
typedef int (*rpcflow_function)(void *self, const rpcflow_value *args, int32_t count, rpcflow_value *result);

#ifdef __cplusplus
}
#endif
#endif
