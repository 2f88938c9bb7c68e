/* SPDX-License-Identifier: Apache-2.0 */
/* From reset to main, and what to do when the program has crashed: start again, and the link says so to the host. */
#include "cortex_m.h"
#include <string.h>

/* The linker script's. The stack lies at the bottom of the memory: one that overflows is a fault, not a wrong tensor. */
extern uint8_t rpcflow_stack_end[];
extern uint8_t rpcflow_data_begin[], rpcflow_data_end[], rpcflow_bss_begin[], rpcflow_bss_end[];
extern const uint8_t rpcflow_data_image[];
extern void (*const rpcflow_init_begin[])(void);
extern void (*const rpcflow_init_end[])(void);

int main(void);
void rpcflow_reset(void);
void rpcflow_tick(void);
void rpcflow_crash(void);

static void ignore(void) {}

void rpcflow_reset(void) {
  void (*const *init)(void);
#ifdef __ARM_FP
  RPCFLOW_REGISTER_AT(0xE000ED88u) |= 0xFu << 20; /* CPACR: the floating-point unit */
  __asm volatile("dsb\n\tisb" ::: "memory");
#endif
  memcpy(rpcflow_data_begin, rpcflow_data_image, (size_t)(rpcflow_data_end - rpcflow_data_begin));
  memset(rpcflow_bss_begin, 0, (size_t)(rpcflow_bss_end - rpcflow_bss_begin));
  for (init = rpcflow_init_begin; init != rpcflow_init_end; init++) (*init)();
  (void)main();
  rpcflow_crash();
}

/* Needs no stack, which may be what the crash was about. */
__attribute__((naked)) void rpcflow_crash(void) {
#ifdef RPCFLOW_SEMIHOSTING /* an emulator or debugger that listens sees status 99 */
  __asm volatile(
      "ldr r0, =0x20\n\t" /* SYS_EXIT_EXTENDED */
      "ldr r1, =0f\n\t"
      "bkpt 0xab\n"
      "1: b 1b\n\t"
      ".balign 4\n"
      "0: .word 0x20026, 99\n\t" /* ADP_Stopped_ApplicationExit */
      ".ltorg");
#else
  __asm volatile(
      "ldr r0, =0xE000ED0C\n\t" /* AIRCR */
      "ldr r1, =0x05FA0004\n\t" /* SYSRESETREQ */
      "str r1, [r0]\n"
      "1: b 1b\n\t"
      ".ltorg");
#endif
}

typedef struct {
  uint8_t *stack;
  void (*handlers[15])(void);
  void (*interrupts[8])(void); /* the boards here use no higher ones */
} rpcflow_vectors;

__attribute__((section(".vectors"), used)) const rpcflow_vectors rpcflow_vector_table = {
    rpcflow_stack_end,
    {rpcflow_reset, rpcflow_crash, rpcflow_crash, rpcflow_crash, rpcflow_crash, rpcflow_crash, 0, 0, 0, 0, ignore,
     ignore, 0, ignore, rpcflow_tick},
    {rpcflow_uart_interrupt, rpcflow_uart_interrupt, rpcflow_uart_interrupt, rpcflow_uart_interrupt,
     rpcflow_uart_interrupt, rpcflow_uart_interrupt, rpcflow_uart_interrupt, rpcflow_uart_interrupt}};
