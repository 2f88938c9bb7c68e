/* SPDX-License-Identifier: Apache-2.0 */
/* The C symbols of tvm-ffi and of TVM's runtime that compiled objects leave undefined, unless a library has them. */
#include "core.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
  void *sync_handle;
  int32_t num_task;
} parallel_environment;

typedef int (*parallel_task)(int id, parallel_environment *environment, void *data);

void TVMFFIErrorSetRaisedFromCStr(const char *kind, const char *message);
void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count);
int TVMFFIEnvModRegisterSystemLibSymbol(const char *name, void *symbol);
int TVMFFIEnvModLookupFromImports(void *library, const char *name, void **out);
int TVMFFIFunctionCall(void *function, rpcflow_value *args, int32_t count, rpcflow_value *result);
int TVMFFIHandleInitOnce(void **handle, int (*init)(void **result));
void *TVMBackendAllocWorkspace(int device_type, int device_id, uint64_t nbytes, int code, int bits);
int TVMBackendFreeWorkspace(int device_type, int device_id, void *address);
int TVMBackendParallelLaunch(parallel_task task, void *data, int count);
int TVMBackendParallelBarrier(int id, parallel_environment *environment);

#if !RPCFLOW_LIBRARY
void TVMFFIErrorSetRaisedFromCStr(const char *kind, const char *message) { (void)rpcflow_raise(kind, message); }

void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count) {
  int32_t i;
  (void)kind;
  rpcflow_error_clear();
  for (i = 0; i < count; i++)
    if (parts[i]) rpcflow_error_append(parts[i]);
}

/* Called from initialisers: at start-up, or when a module is loaded, which has a table of its own. */
int TVMFFIEnvModRegisterSystemLibSymbol(const char *name, void *symbol) {
  if (rpcflow_core.loading || !rpcflow_begins(name, RPCFLOW_KERNEL_PREFIX) ||
      rpcflow_same(name + RPCFLOW_KERNEL_PREFIX_NBYTES, "_library_ctx"))
    return 0; /* the address of the library's context is not wanted here */
  return rpcflow_register(name, (rpcflow_function)(uintptr_t)symbol);
}

int TVMFFIEnvModLookupFromImports(void *library, const char *name, void **out) {
  (void)library, (void)out;
  return rpcflow_error("a kernel here cannot call %s", name);
}

int TVMFFIFunctionCall(void *function, rpcflow_value *args, int32_t count, rpcflow_value *result) {
  (void)function, (void)args, (void)count, (void)result;
  return rpcflow_error("a kernel here cannot call %s", "others");
}

int TVMFFIHandleInitOnce(void **handle, int (*init)(void **result)) {
  (void)handle, (void)init;
  return rpcflow_error("a kernel here cannot call %s", "others");
}

#endif

#if RPCFLOW_LIBRARY < 2
void *TVMBackendAllocWorkspace(int device_type, int device_id, uint64_t nbytes, int code, int bits) {
  void *address = rpcflow_allocate(nbytes > SIZE_MAX ? SIZE_MAX : (size_t)nbytes);
  (void)device_type, (void)device_id, (void)code, (void)bits;
  if (!address) rpcflow_object_raise();
  return address;
}

int TVMBackendFreeWorkspace(int device_type, int device_id, void *address) {
  (void)device_type, (void)device_id;
  return rpcflow_release(address);
}

/* One after another is one task for all: so no task ever waits for another. */
int TVMBackendParallelLaunch(parallel_task task, void *data, int count) {
  parallel_environment alone = {NULL, 1};
  (void)count;
  return task(0, &alone, data);
}

int TVMBackendParallelBarrier(int id, parallel_environment *environment) {
  (void)id, (void)environment;
  return 0;
}
#endif

#ifdef __arm__
/* Named by the unwind tables of ARM objects; libgcc's would bring its whole unwinder. */
void __aeabi_unwind_cpp_pr0(void);
void __aeabi_unwind_cpp_pr0(void) {}
#endif

#ifdef __cplusplus
}
#endif
