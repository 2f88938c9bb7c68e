/* SPDX-License-Identifier: Apache-2.0 */
/* QEMU's RISC-V board `virt`, 32 bits: UART (a 16550), interrupt controller (PLIC), and the machine timer at 10 MHz. */
#include "../../hal/board.h"
#include <string.h>

#define BYTE_AT(address) (*(volatile uint8_t *)(address))
#define WORD_AT(address) (*(volatile uint32_t *)(address))

#define UART(offset) BYTE_AT(0x10000000u + (offset))
#define UART_DATA UART(0u)
#define UART_IER UART(1u)
#define UART_IIR UART(2u)
#define UART_FCR UART(2u)
#define UART_LCR UART(3u)
#define UART_MCR UART(4u)
#define UART_LSR UART(5u)
enum { IER_RX = 1, IER_TX = 2, LSR_RX_READY = 1, LSR_TX_EMPTY = 1 << 5, FIFO_NBYTES = 16 };

#define PLIC_PRIORITY(irq) WORD_AT(0x0C000000u + 4u * (irq))
#define PLIC_ENABLE WORD_AT(0x0C002000u)
#define PLIC_THRESHOLD WORD_AT(0x0C200000u)
#define PLIC_CLAIM WORD_AT(0x0C200004u)
#define UART_IRQ 10u

#define TIMER_COMPARE_LOW WORD_AT(0x02004000u)
#define TIMER_COMPARE_HIGH WORD_AT(0x02004004u)
#define TIMER_LOW WORD_AT(0x0200BFF8u)
#define TIMER_HIGH WORD_AT(0x0200BFFCu)
#define TICKS_PER_MS 10000u
#define NS_PER_TICK 100u
#define TIMER_INTERRUPT 0x80000007u

extern uint8_t rpcflow_data_begin[], rpcflow_data_end[], rpcflow_bss_begin[], rpcflow_bss_end[];
extern const uint8_t rpcflow_data_image[];
extern void (*const rpcflow_init_begin[])(void);
extern void (*const rpcflow_init_end[])(void);

/* start.S */
void rpcflow_interrupts_on(void);
void rpcflow_lock(void);
void rpcflow_unlock(void);
void rpcflow_wait(void);
void rpcflow_code_fence(void);

int main(void);
void rpcflow_begin(void);
void rpcflow_interrupt(uint32_t cause);

static uint64_t next_tick;

void rpcflow_begin(void) {
  void (*const *init)(void);
  memcpy(rpcflow_data_begin, rpcflow_data_image, (size_t)(rpcflow_data_end - rpcflow_data_begin));
  memset(rpcflow_bss_begin, 0, (size_t)(rpcflow_bss_end - rpcflow_bss_begin));
  for (init = rpcflow_init_begin; init != rpcflow_init_end; init++) (*init)();
  (void)main();
}

static uint64_t timer(void) {
  uint32_t low, high;
  do {
    high = TIMER_HIGH;
    low = TIMER_LOW;
  } while (high != TIMER_HIGH);
  return (uint64_t)high << 32 | low;
}

static void set_timer(uint64_t at) {
  TIMER_COMPARE_HIGH = 0xFFFFFFFFu; /* none may come of the two halves not belonging together */
  TIMER_COMPARE_LOW = (uint32_t)at;
  TIMER_COMPARE_HIGH = (uint32_t)(at >> 32);
}

static void fill(void) {
  int room;
  if (!(UART_LSR & LSR_TX_EMPTY)) return; /* there will be an interrupt */
  for (room = FIFO_NBYTES; room > 0; room--) {
    int byte = rpcflow_link_transmit(&rpcflow_board_link);
    if (byte < 0) {
      UART_IER = IER_RX;
      return;
    }
    UART_DATA = (uint8_t)byte;
  }
  UART_IER = IER_RX | IER_TX;
}

static void tick(void) {
  uint64_t now = timer();
  next_tick += TICKS_PER_MS;
  if (next_tick <= now) next_tick = now + TICKS_PER_MS; /* the processor was stopped for a while */
  set_timer(next_tick);
  rpcflow_link_tick(&rpcflow_board_link, (uint32_t)(now / TICKS_PER_MS));
  fill();
}

void rpcflow_interrupt(uint32_t cause) {
  if (cause == TIMER_INTERRUPT) {
    tick();
  } else {
    uint32_t claimed = PLIC_CLAIM;
    (void)UART_IIR; /* "transmitter empty" has been noticed */
    while (UART_LSR & LSR_RX_READY) rpcflow_link_receive(&rpcflow_board_link, UART_DATA);
    fill();
    PLIC_CLAIM = claimed;
  }
}

void rpcflow_board_start(void) {
  UART_IER = 0;
  UART_LCR = 0x80; /* the divisor: of 3.6864 MHz, for 115,200 baud */
  UART_DATA = 2;
  UART_IER = 0;
  UART_LCR = 3;    /* 8 bits */
  UART_FCR = 0x07; /* FIFO on and emptied, an interrupt at each byte: this is the only time */
  UART_MCR = 0x08; /* interrupts reach the controller */
  UART_IER = IER_RX;
  PLIC_PRIORITY(UART_IRQ) = 1;
  PLIC_ENABLE = 1u << UART_IRQ;
  PLIC_THRESHOLD = 0;
  next_tick = timer() + TICKS_PER_MS;
  set_timer(next_tick);
  rpcflow_lock();
  fill();
  rpcflow_interrupts_on();
}

uint64_t rpcflow_board_clock_ns(void) { return timer() * NS_PER_TICK; }

void rpcflow_board_code_written(void *code, size_t nbytes) {
  (void)code;
  (void)nbytes;
  rpcflow_code_fence();
}

const rpcflow_line rpcflow_board_line = {rpcflow_lock, rpcflow_unlock, fill, rpcflow_wait};
