/* SPDX-License-Identifier: Apache-2.0 */
/* Arm's MPS2 with the Cortex-M4F image AN386: UART0 (of the CMSDK: one byte each way, no FIFO), 115,200 baud. */
#include "../cortex-m/cortex_m.h"

#ifndef RPCFLOW_BAUD
#define RPCFLOW_BAUD 115200u
#endif

#define CLOCK_HZ 25000000u
const uint32_t rpcflow_uart_clock_hz = CLOCK_HZ;

#define UART(offset) RPCFLOW_REGISTER_AT(0x40004000u + (offset))
#define UART_DATA UART(0x00u)
#define UART_STATE UART(0x04u)
#define UART_CTRL UART(0x08u)
#define UART_INTCLEAR UART(0x0Cu)
#define UART_BAUDDIV UART(0x10u)
#define NVIC_ISER RPCFLOW_REGISTER_AT(0xE000E100u)

enum { STATE_TX_FULL = 1, STATE_RX_FULL = 2 };
enum { CTRL_TX = 1, CTRL_RX = 2, CTRL_TX_INT = 4, CTRL_RX_INT = 8 };
enum { INT_TX = 1, INT_RX = 2 };
enum { RX_IRQ = 0, TX_IRQ = 1 };

void rpcflow_uart_start(void) {
  UART_BAUDDIV = (CLOCK_HZ + RPCFLOW_BAUD / 2u) / RPCFLOW_BAUD;
  UART_CTRL = CTRL_TX | CTRL_RX | CTRL_TX_INT | CTRL_RX_INT;
  NVIC_ISER = 1u << RX_IRQ | 1u << TX_IRQ;
}

void rpcflow_uart_fill(void) {
  while (!(UART_STATE & STATE_TX_FULL)) { /* when it is empty again there is an interrupt */
    int byte = rpcflow_link_transmit(&rpcflow_board_link);
    if (byte < 0) return;
    UART_DATA = (uint32_t)byte;
  }
}

void rpcflow_uart_interrupt(void) {
  /* First this: for a byte that comes between emptying and clearing there would be no interrupt. */
  UART_INTCLEAR = INT_TX | INT_RX;
  while (UART_STATE & STATE_RX_FULL) rpcflow_link_receive(&rpcflow_board_link, (uint8_t)UART_DATA);
  rpcflow_uart_fill();
}
