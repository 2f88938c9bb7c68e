/* SPDX-License-Identifier: Apache-2.0 */
/* A module to be loaded at run time. */
#include "rpcflow/runtime.h"

int TVMFFIEnvModRegisterSystemLibSymbol(const char *name, void *symbol);
void initialise(void);
int triple(void *self, const rpcflow_value *args, int32_t count, rpcflow_value *result);
int initialised(void *self, const rpcflow_value *args, int32_t count, rpcflow_value *result);

static int times = 1;

void initialise(void) {
  times += 6;
  (void)TVMFFIEnvModRegisterSystemLibSymbol("__tvm_ffi_triple", (void *)(uintptr_t)triple); /* as TVM's objects do */
}

int triple(void *self, const rpcflow_value *args, int32_t count, rpcflow_value *result) {
  (void)self;
  if (count != 1 || args[0].type != RPCFLOW_INT) return rpcflow_raise("TypeError", "triple takes an int");
  result->type = RPCFLOW_INT;
  result->u.as_int = 3 * args[0].u.as_int;
  return 0;
}

int initialised(void *self, const rpcflow_value *args, int32_t count, rpcflow_value *result) {
  (void)self, (void)args, (void)count;
  result->type = RPCFLOW_INT;
  result->u.as_int = times;
  return 0;
}
