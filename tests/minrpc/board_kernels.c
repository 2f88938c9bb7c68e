/* SPDX-License-Identifier: Apache-2.0 */
/* What tests of firmware call besides the kernels of examples/firmware. */
#include <rpcflow/runtime.h>

#ifdef __unix__
#include <time.h>

static uint64_t clock_ns(void) {
  struct timespec now;
  timespec_get(&now, TIME_UTC);
  return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}
#else
uint64_t rpcflow_board_clock_ns(void);
#define clock_ns rpcflow_board_clock_ns
#endif

static int integer(const rpcflow_value *args, int32_t count) {
  return count == 1 && args[0].type == RPCFLOW_INT ? 0 : rpcflow_raise("TypeError", "one integer is wanted");
}

/* count(i): how often it has been called since the start, and i: calls that run twice are found out. */
static int count_calls(void *self, const rpcflow_value *args, int32_t count, rpcflow_value *result) {
  static int64_t calls;
  (void)self;
  if (integer(args, count)) return -1;
  result->type = RPCFLOW_INT;
  result->u.as_int = ++calls * 1000000 + args[0].u.as_int;
  return 0;
}
RPCFLOW_REGISTER(count, count_calls);

/* spin(ms): keep the processor busy for as long. */
static int spin(void *self, const rpcflow_value *args, int32_t count, rpcflow_value *result) {
  uint64_t began = clock_ns();
  (void)self;
  (void)result;
  if (integer(args, count)) return -1;
  while (clock_ns() - began < (uint64_t)args[0].u.as_int * 1000000u) {}
  return 0;
}
RPCFLOW_REGISTER(spin, spin);

/* crash(): run an instruction that is none. */
static int crash(void *self, const rpcflow_value *args, int32_t count, rpcflow_value *result) {
  (void)self;
  (void)args;
  (void)count;
  (void)result;
  __builtin_trap();
  return 0;
}
RPCFLOW_REGISTER(crash, crash);

/* overflow(): use more stack than there is. */
static int deeper(volatile char *above) {
  volatile char here[64];
  here[0] = *above;
  return here[0] ? 0 : deeper(here) + 1;
}

static int overflow(void *self, const rpcflow_value *args, int32_t count, rpcflow_value *result) {
  volatile char top = 0;
  (void)self;
  (void)args;
  (void)count;
  result->type = RPCFLOW_INT;
  result->u.as_int = deeper(&top);
  return 0;
}
RPCFLOW_REGISTER(overflow, overflow);

/* lost(): crash where the stack is in no memory, so that nothing can be saved. */
static int lost(void *self, const rpcflow_value *args, int32_t count, rpcflow_value *result) {
  (void)self;
  (void)args;
  (void)count;
  (void)result;
#if defined(__riscv)
  __asm volatile("li sp, 0x1000\n\t.word 0");
#elif defined(__arm__)
  __asm volatile("mov r0, #0xC0000000\n\tmov sp, r0\n\tudf #0");
#endif
  return 0;
}
RPCFLOW_REGISTER(lost, lost);
