/* SPDX-License-Identifier: Apache-2.0 */
/* The SysTick timer, and how the main program keeps interrupts out and waits for one. */
#include "cortex_m.h"

#define SYST_CSR RPCFLOW_REGISTER_AT(0xE000E010u)
#define SYST_RVR RPCFLOW_REGISTER_AT(0xE000E014u)
#define SYST_CVR RPCFLOW_REGISTER_AT(0xE000E018u)
#define ICSR RPCFLOW_REGISTER_AT(0xE000ED04u)
#define PENDSTSET (1u << 26)

static volatile uint64_t milliseconds;

void rpcflow_tick(void);

/* SysTick and the UART have the same priority, so neither interrupts the other. */
void rpcflow_tick(void) {
  milliseconds = milliseconds + 1;
  rpcflow_link_tick(&rpcflow_board_link, (uint32_t)milliseconds);
  rpcflow_uart_fill();
}

static void lock(void) { __asm volatile("cpsid i" ::: "memory"); }

static void unlock(void) { __asm volatile("cpsie i" ::: "memory"); }

void rpcflow_board_start(void) {
  rpcflow_uart_start();
  SYST_CSR = 4; /* the processor's clock */
  SYST_RVR = rpcflow_uart_clock_hz / 1000u - 1u;
  SYST_CVR = 0;
  SYST_CSR = 7; /* an interrupt, on */
  lock();
  rpcflow_uart_fill();
  unlock();
}

uint64_t rpcflow_board_clock_ns(void) {
  uint32_t per_ms = rpcflow_uart_clock_hz / 1000u, left, pending;
  uint64_t ms;
  do { /* until no tick came in between */
    ms = milliseconds;
    left = SYST_CVR;
    pending = ICSR & PENDSTSET;
  } while (ms != milliseconds);
  /* Interrupts are off, and the timer has begun anew: unless it was read just before it did. */
  if (pending && left > per_ms / 2u) ms++;
  /* In 32 bits, a 256th of a nanosecond: a division of 64 bits would bring 750 bytes of library. */
  return ms * 1000000u + ((per_ms - 1u - left) * ((1000000u << 8) / per_ms) >> 8);
}

void rpcflow_board_code_written(void *code, size_t nbytes) {
  (void)code;
  (void)nbytes;
  __asm volatile("dsb\n\tisb" ::: "memory");
}

/* An interrupt wakes the processor also while it is kept out: none is missed between looking and sleeping. */
static void wait(void) { __asm volatile("wfi\n\tcpsie i\n\tisb\n\tcpsid i" ::: "memory"); }

const rpcflow_line rpcflow_board_line = {lock, unlock, rpcflow_uart_fill, wait};
