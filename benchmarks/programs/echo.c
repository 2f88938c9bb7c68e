/* SPDX-License-Identifier: Apache-2.0 */
/* What the group "pipe" calls. Its name is no identifier, so it is registered by hand. */
#include <rpcflow/ffi.h>
#include <rpcflow/runtime.h>

static int echo(void *self, const rpcflow_value *args, int32_t count, rpcflow_value *result) {
  (void)self;
  if (count != 1) return rpcflow_raise("TypeError", "echo takes one argument");
  *result = args[0];
  return 0;
}

__attribute__((constructor)) static void offer(void) { (void)rpcflow_register("testing.echo", echo); }
