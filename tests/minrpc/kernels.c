/* SPDX-License-Identifier: Apache-2.0 */
/* Functions for the tests to call. */
#include <stdlib.h>
#include <string.h>

#include "rpcflow/runtime.h"

#define UNUSED (void)self, (void)args, (void)count, (void)result

void *TVMBackendAllocWorkspace(int device_type, int device_id, uint64_t nbytes, int code, int bits);
int TVMBackendFreeWorkspace(int device_type, int device_id, void *address);

static int add(void *self, const rpcflow_value *args, int32_t count, rpcflow_value *result) {
  UNUSED;
  if (count != 2 || args[0].type != RPCFLOW_INT || args[1].type != RPCFLOW_INT)
    return rpcflow_raise("TypeError", "add takes two ints");
  result->type = RPCFLOW_INT;
  result->u.as_int = args[0].u.as_int + args[1].u.as_int;
  return 0;
}
RPCFLOW_REGISTER(add, add);

static int echo(void *self, const rpcflow_value *args, int32_t count, rpcflow_value *result) {
  UNUSED;
  if (count) *result = args[count - 1];
  return 0;
}
RPCFLOW_REGISTER(echo, echo);

static int small(void *self, const rpcflow_value *args, int32_t count, rpcflow_value *result) {
  UNUSED;
  result->type = RPCFLOW_SMALL_STRING + (count != 0);
  result->small_nbytes = 3;
  memcpy(result->u.as_small, "abc", 3);
  return 0;
}
RPCFLOW_REGISTER(small, small);

/* A result that no server can send. */
static int senseless(void *self, const rpcflow_value *args, int32_t count, rpcflow_value *result) {
  UNUSED;
  if (count && args[0].type == RPCFLOW_INT) result->type = (int32_t)args[0].u.as_int;
  return 0;
}
RPCFLOW_REGISTER(senseless, senseless);

static int fill(void *self, const rpcflow_value *args, int32_t count, rpcflow_value *result) {
  float *data;
  int64_t n = 1, i;
  UNUSED;
  if (count != 2 || args[0].type != RPCFLOW_TENSOR || args[1].type != RPCFLOW_FLOAT)
    return rpcflow_raise("TypeError", "fill takes a tensor and a float");
  for (i = 0; i < args[0].u.as_tensor->ndim; i++) n *= args[0].u.as_tensor->shape[i];
  data = (float *)((char *)args[0].u.as_tensor->data + args[0].u.as_tensor->byte_offset);
  for (i = 0; i < n; i++) data[i] = (float)args[1].u.as_float;
  return 0;
}
RPCFLOW_REGISTER(fill, fill);

/* All of an error's message, however long. */
static int fail(void *self, const rpcflow_value *args, int32_t count, rpcflow_value *result) {
  UNUSED;
  if (!count) return -1;
  return rpcflow_raise("ValueError", args[0].type == RPCFLOW_STRING ? args[0].u.as_string : "?");
}
RPCFLOW_REGISTER(fail, fail);

static int64_t calls;

static int counted(void *self, const rpcflow_value *args, int32_t count, rpcflow_value *result) {
  UNUSED;
  result->type = RPCFLOW_INT;
  result->u.as_int = ++calls;
  return 0;
}
RPCFLOW_REGISTER(counted, counted);

/* told(text, i): an error if the text is not the first one that was told */
static int told(void *self, const rpcflow_value *args, int32_t count, rpcflow_value *result) {
  static char last[64];
  UNUSED;
  if (count != 2 || args[0].type != RPCFLOW_STRING || args[1].type != RPCFLOW_INT) {
    return rpcflow_raise("TypeError", "told takes a text and an int");
  }
  if (!last[0]) strncpy(last, args[0].u.as_string, sizeof last - 1);
  return strcmp(last, args[0].u.as_string) == 0 ? 0 : rpcflow_raise("ValueError", "the text has changed");
}
RPCFLOW_REGISTER(told, told);

static int64_t prepared;

static int prepare(void *self, const rpcflow_value *args, int32_t count, rpcflow_value *result) {
  UNUSED;
  result->type = RPCFLOW_INT;
  result->u.as_int = ++prepared;
  return 0;
}
RPCFLOW_REGISTER(prepare, prepare);

static int workspace(void *self, const rpcflow_value *args, int32_t count, rpcflow_value *result) {
  void *taken;
  UNUSED;
  if (count != 1 || args[0].type != RPCFLOW_INT) return rpcflow_raise("TypeError", "workspace takes an int");
  taken = TVMBackendAllocWorkspace(1, 0, (uint64_t)args[0].u.as_int, 2, 32);
  if (!taken) return -1;
  memset(taken, 1, (size_t)args[0].u.as_int);
  return TVMBackendFreeWorkspace(1, 0, taken);
}
RPCFLOW_REGISTER(workspace, workspace);

static int crash(void *self, const rpcflow_value *args, int32_t count, rpcflow_value *result) {
  UNUSED;
  abort();
}
RPCFLOW_REGISTER(crash, crash);

static int hang(void *self, const rpcflow_value *args, int32_t count, rpcflow_value *result) {
  volatile int forever = 1;
  UNUSED;
  while (forever) {
  }
  return 0;
}
RPCFLOW_REGISTER(hang, hang);

/* No bytes, which lie nowhere; with an argument some that cannot be there. */
static int nowhere(void *self, const rpcflow_value *args, int32_t count, rpcflow_value *result) {
  static rpcflow_bytes bytes;
  UNUSED;
  bytes.nbytes = (size_t)count;
  result->type = RPCFLOW_BYTES;
  result->u.as_bytes = &bytes;
  return 0;
}
RPCFLOW_REGISTER(nowhere, nowhere);
