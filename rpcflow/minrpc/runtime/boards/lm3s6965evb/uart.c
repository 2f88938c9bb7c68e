/* SPDX-License-Identifier: Apache-2.0 */
/* TI's Stellaris LM3S6965 evaluation board: UART0 (a PL011), 115,200 baud, 8 data bits, no parity. */
#include "../cortex-m/cortex_m.h"

#ifndef RPCFLOW_BAUD
#define RPCFLOW_BAUD 115200u
#endif

#define CLOCK_HZ 50000000u
const uint32_t rpcflow_uart_clock_hz = CLOCK_HZ;

/* System control. */
#define RIS RPCFLOW_REGISTER_AT(0x400FE050u)
#define RCC RPCFLOW_REGISTER_AT(0x400FE060u)
#define RCGC1 RPCFLOW_REGISTER_AT(0x400FE104u)
#define RCGC2 RPCFLOW_REGISTER_AT(0x400FE108u)
/* Port A: its pins 0 and 1 are the UART's. */
#define GPIOA_AFSEL RPCFLOW_REGISTER_AT(0x40004420u)
#define GPIOA_DEN RPCFLOW_REGISTER_AT(0x4000451Cu)

#define UART(offset) RPCFLOW_REGISTER_AT(0x4000C000u + (offset))
#define UART_DR UART(0x00u)
#define UART_FR UART(0x18u)
#define UART_IBRD UART(0x24u)
#define UART_FBRD UART(0x28u)
#define UART_LCRH UART(0x2Cu)
#define UART_CTL UART(0x30u)
#define UART_IFLS UART(0x34u)
#define UART_IM UART(0x38u)
#define UART_ICR UART(0x44u)
#define NVIC_ISER RPCFLOW_REGISTER_AT(0xE000E100u)

enum { FR_RXFE = 1 << 4, FR_TXFF = 1 << 5 };                    /* receiver empty, transmitter full */
enum { INT_RX = 1 << 4, INT_TX = 1 << 5, INT_RT = 1 << 6 };     /* RT: bytes wait, and no more have come for a while */
enum { UART_IRQ = 5, FIFO_NBYTES = 16 };

/* 50 MHz: the 8 MHz crystal's PLL of 200 MHz, divided by 4. */
static void start_clock(void) {
  uint32_t rcc = RCC;
  rcc = (rcc | 1u << 11) & ~(1u << 22);                         /* run past the PLL and the divider meanwhile */
  RCC = rcc;
  rcc &= ~(0xFu << 6 | 3u << 4 | 1u << 13 | 1u << 12 | 1u << 0); /* crystal, source; power up PLL and main oscillator */
  rcc |= 0xEu << 6;                                             /* 8 MHz */
  RCC = rcc;
  rcc = (rcc & ~(0xFu << 23)) | 3u << 23 | 1u << 22;            /* divide by 4 */
  RCC = rcc;
  while (!(RIS & 1u << 6)) {}                                   /* the PLL has locked */
  RCC = rcc & ~(1u << 11);
}

void rpcflow_uart_start(void) {
  start_clock();
  RCGC1 |= 1u << 0;
  RCGC2 |= 1u << 0;
  (void)RCGC2; /* clocks need three cycles to come on */
  (void)RCGC2;
  GPIOA_AFSEL |= 3u;
  GPIOA_DEN |= 3u;
  UART_CTL = 0;
  UART_IBRD = CLOCK_HZ / (16u * RPCFLOW_BAUD);
  UART_FBRD = (CLOCK_HZ % (16u * RPCFLOW_BAUD) * 64u + 8u * RPCFLOW_BAUD) / (16u * RPCFLOW_BAUD);
  UART_LCRH = 3u << 5 | 1u << 4;   /* 8 bits, FIFO on */
  UART_IFLS = 2u << 3 | 1u << 0;   /* interrupts at 8 bytes received, 4 left to send */
  UART_IM = INT_RX | INT_RT;
  UART_CTL = 1u << 9 | 1u << 8 | 1u; /* receiver, transmitter, UART on */
  NVIC_ISER = 1u << UART_IRQ;
}

void rpcflow_uart_fill(void) {
  int room;
  for (room = FIFO_NBYTES; room > 0 && !(UART_FR & FR_TXFF); room--) {
    int byte = rpcflow_link_transmit(&rpcflow_board_link);
    if (byte < 0) {
      UART_IM = INT_RX | INT_RT;
      return;
    }
    UART_DR = (uint32_t)byte;
  }
  UART_IM = INT_RX | INT_RT | INT_TX;
}

void rpcflow_uart_interrupt(void) {
  UART_ICR = INT_RX | INT_RT | INT_TX;
  while (!(UART_FR & FR_RXFE)) rpcflow_link_receive(&rpcflow_board_link, (uint8_t)UART_DR);
  rpcflow_uart_fill();
}
