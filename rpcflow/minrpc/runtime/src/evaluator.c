/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The time evaluator: runs a function again and again and says how long one run takes. Whole numbers throughout:
 * arithmetic with doubles would take more room than all of this.
 */
#include <string.h>

#include "core.h"

/* The arguments. */
enum { MODULE, NAME, DEVICE_TYPE, DEVICE_ID, FIRST_SETTING, PREPARE = FIRST_SETTING + RPCFLOW_SETTINGS };

void rpcflow_free_evaluator(rpcflow_evaluator *evaluator) {
  evaluator->generation = 0;
  if (evaluator->target.module) rpcflow_let_go(evaluator->target.module);
  rpcflow_object_release(evaluator->target.self);
  rpcflow_object_release(evaluator->prepare_self);
}

/* The function of a handle, if it is no part of this runtime: those could call each other without end. */
static int find_target(uint64_t handle, const char *name, rpcflow_target *target) {
  if (handle && rpcflow_resolve(handle, target) == 0 && target->trust != RPCFLOW_BUILTIN) return 0;
  return rpcflow_error("there is no function %s to be measured", name);
}

static int find_prepare(rpcflow_evaluator *evaluator, const char *name) {
  rpcflow_target prepare;
  uint64_t handle = rpcflow_find(name);
  if (find_target(handle, name, &prepare)) return -1;
  evaluator->prepare = prepare.function;
  evaluator->prepare_self = rpcflow_object_take(handle);
  return 0;
}

int rpcflow_make_evaluator(void *self, const rpcflow_value *args, int32_t count, rpcflow_value *result) {
  rpcflow_evaluator *evaluator = rpcflow_core.evaluators, *end = evaluator + RPCFLOW_MAX_EVALUATORS;
  const char *name;
  uint64_t handle;
  uint32_t i;
  (void)self;
  if (rpcflow_expect("*81111111118", args, count)) return -1;
  if (args[DEVICE_TYPE].u.as_int != 1 || args[DEVICE_ID].u.as_int) return rpcflow_no_device();
  while (evaluator->generation)
    if (++evaluator == end)
      return rpcflow_no_room("RPCFLOW_MAX_EVALUATORS", RPCFLOW_MAX_EVALUATORS, RPCFLOW_MAX_EVALUATORS + 1);
  for (i = 0; i < RPCFLOW_SETTINGS; i++) {
    int64_t setting = args[FIRST_SETTING + i].u.as_int;
    int at_least_one = i <= RPCFLOW_REPEAT ||
                       (i == RPCFLOW_REPEATS_TO_COOLDOWN && evaluator->settings[RPCFLOW_COOLDOWN_MS]);
    if (setting < at_least_one || setting > INT32_MAX)
      return rpcflow_error("argument %lu is out of range", (unsigned long)(FIRST_SETTING + i));
    evaluator->settings[i] = (uint32_t)setting;
  }
  name = args[NAME].u.as_string;
  if (args[MODULE].type == RPCFLOW_NONE)
    handle = rpcflow_find(name);
  else if (rpcflow_module_function((uint64_t)args[MODULE].u.as_int, name, &handle))
    return -1; /* from here on the function's module is held */
  if (find_target(handle, name, &evaluator->target)) return -1;
  (void)rpcflow_object_take(handle); /* the evaluator has its reference */
  evaluator->prepare = NULL;
  evaluator->prepare_self = NULL;
  name = args[PREPARE].u.as_string;
  if (*name && find_prepare(evaluator, name)) {
    rpcflow_free_evaluator(evaluator);
    return -1;
  }
  evaluator->generation = ++rpcflow_core.generation;
  result->type = RPCFLOW_FUNCTION_OBJECT;
  result->u.as_int = (int64_t)RPCFLOW_HANDLE(RPCFLOW_HANDLE_EVALUATOR, evaluator - rpcflow_core.evaluators, 0,
                                             evaluator->generation);
  return 0;
}

/* n / d as the bits of a double, rounded towards 0; d is not 0 and below 2^63. */
static uint64_t quotient(uint64_t n, uint64_t d) {
  uint64_t bits = 0;
  uint32_t exponent = 1023;
  int i;
  if (!n) return 0;
  for (; n < d; n <<= 1) exponent--;
  for (; n - d >= d; d <<= 1) exponent++;
  for (i = 0; i < 53; i++) { /* here n < 2 d */
    bits <<= 1;
    if (n >= d) {
      n -= d;
      bits |= 1;
    }
    n <<= 1;
  }
  return (bits & ~((uint64_t)1 << 52)) | (uint64_t)exponent << 52;
}

/* How many runs to try next, as TVM has it: what is missing, or half as many again and some. */
static uint32_t grown(uint32_t number, uint64_t elapsed, uint64_t wanted) {
  uint64_t more = (uint64_t)number * 1657 >> 10; /* x 1.618 */
  if (more == number) more++;
  if (elapsed) {
    uint64_t enough;
    for (; wanted >> 23; wanted >>= 1) elapsed >>= 1; /* divisions of 64 bits take more room than all this */
    enough = number * (((uint32_t)wanted << 8) / ((uint32_t)elapsed + 1) + (uint64_t)1) >> 8;
    if (enough >= more) more = enough + 1;
  }
  return more > INT32_MAX ? INT32_MAX : (uint32_t)more;
}

static int run(rpcflow_function function, void *self, const rpcflow_value *args, int32_t count, uint32_t number) {
  for (; number; number--) {
    rpcflow_value ignored;
    ignored.type = RPCFLOW_NONE;
    ignored.small_nbytes = 0;
    ignored.u.as_int = 0;
    if (function(self, args, count, &ignored)) return -1;
    if (self) rpcflow_object_drop(&ignored);
  }
  return 0;
}

static void rest(uint32_t milliseconds) {
  uint64_t began = rpcflow_core.machine.clock_ns();
  if (rpcflow_core.machine.sleep_ms)
    rpcflow_core.machine.sleep_ms(milliseconds);
  else
    while (rpcflow_core.machine.clock_ns() - began < milliseconds * (uint64_t)1000000) {
    }
}

int rpcflow_evaluate(void *self, const rpcflow_value *args, int32_t count, rpcflow_value *result) {
  const rpcflow_evaluator *e = (const rpcflow_evaluator *)self;
  const uint32_t *settings = e->settings;
  uint64_t (*clock_ns)(void) = rpcflow_core.machine.clock_ns;
  uint8_t *times = rpcflow_core.packet + rpcflow_core.used; /* behind the packet, which has the arguments */
  uint64_t wanted = settings[RPCFLOW_MIN_REPEAT_MS] * (uint64_t)1000000;
  uint32_t number = settings[RPCFLOW_NUMBER], i;
  if (settings[RPCFLOW_REPEAT] > (sizeof rpcflow_core.packet - rpcflow_core.used) / 8)
    return rpcflow_no_room("RPCFLOW_PACKET_NBYTES", RPCFLOW_PACKET_NBYTES,
                           rpcflow_core.used + 8 * (size_t)settings[RPCFLOW_REPEAT]);
  if (run(e->target.function, e->target.self, args, count, 1)) return -1; /* not counted */
  for (i = 0; i < settings[RPCFLOW_REPEAT]; i++) {
    uint64_t elapsed, bits;
    uint32_t zeros = 0, more;
    if (e->prepare && run(e->prepare, e->prepare_self, args, count, 1)) return -1;
    if (settings[RPCFLOW_FLUSH_NBYTES]) { /* the caches are filled with something else */
      void *spare = rpcflow_allocate(settings[RPCFLOW_FLUSH_NBYTES]);
      if (!spare) return -1;
      memset(spare, 0, settings[RPCFLOW_FLUSH_NBYTES]);
      rpcflow_release(spare);
    }
    for (;;) {
      uint64_t began = clock_ns();
      if (run(e->target.function, e->target.self, args, count, number)) return -1;
      elapsed = clock_ns() - began;
      if (!elapsed) zeros++;
      if (elapsed >= wanted || zeros > settings[RPCFLOW_LIMIT_ZERO_TIMES]) break;
      more = grown(number, elapsed, wanted);
      if (more == number) break; /* as many as can be counted */
      number = more;
    }
    bits = quotient(elapsed, number * (uint64_t)1000000000);
    memcpy(times + 8 * i, &bits, 8);
    if (settings[RPCFLOW_COOLDOWN_MS] && i % settings[RPCFLOW_REPEATS_TO_COOLDOWN] == 0)
      rest(settings[RPCFLOW_COOLDOWN_MS]);
  }
  rpcflow_core.result_bytes.data = (const char *)times;
  rpcflow_core.result_bytes.nbytes = 8 * (size_t)settings[RPCFLOW_REPEAT];
  result->type = RPCFLOW_BYTES;
  result->u.as_bytes = &rpcflow_core.result_bytes;
  return 0;
}
