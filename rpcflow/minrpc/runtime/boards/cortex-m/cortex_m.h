/* SPDX-License-Identifier: Apache-2.0 */
/* What all boards with a Cortex-M3 or later share: start-up, the SysTick timer, sleeping. */
#ifndef RPCFLOW_CORTEX_M_H
#define RPCFLOW_CORTEX_M_H

#include "../../hal/board.h"

#define RPCFLOW_REGISTER_AT(address) (*(volatile uint32_t *)(address))

/* A board's part, in its uart.c. */
#ifdef __cplusplus
extern "C" {
#endif
extern const uint32_t rpcflow_uart_clock_hz; /* of the processor and of SysTick */
void rpcflow_uart_start(void);
void rpcflow_uart_interrupt(void); /* any interrupt that is not the processor's own */
void rpcflow_uart_fill(void);      /* give the UART as much as it takes of what the link has to send */
#ifdef __cplusplus
}
#endif
#endif
