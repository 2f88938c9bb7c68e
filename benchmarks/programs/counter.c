/* SPDX-License-Identifier: Apache-2.0 */
/* What the serial group calls: a function that counts how often it has run, and says what it was given. */
#include <rpcflow/runtime.h>

static int64_t runs;

/* next(i): i + 1 */
static int next(void *self, const rpcflow_value *args, int32_t count, rpcflow_value *result) {
  (void)self;
  if (count != 1 || args[0].type != RPCFLOW_INT) return rpcflow_raise("TypeError", "next takes an int");
  runs++;
  result->type = RPCFLOW_INT;
  result->u.as_int = args[0].u.as_int + 1;
  return 0;
}
RPCFLOW_REGISTER(next, next);

/* runs(): how often next has run */
static int runs_of_next(void *self, const rpcflow_value *args, int32_t count, rpcflow_value *result) {
  (void)self;
  (void)args;
  (void)count;
  result->type = RPCFLOW_INT;
  result->u.as_int = runs;
  return 0;
}
RPCFLOW_REGISTER(runs, runs_of_next);
