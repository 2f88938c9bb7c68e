/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a board without an operating system gives to hal/board_main.c, and finds there. A port to another board is one
 * file with these functions, a start-up file and a linker script; see boards/.
 */
#ifndef RPCFLOW_HAL_BOARD_H
#define RPCFLOW_HAL_BOARD_H

#include <rpcflow/link.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The link on the board's UART. Its interrupt handler gives it what comes, and the timer's handler the time. */
extern rpcflow_link rpcflow_board_link;

/* The board: all that the link and the runtime call. */
void rpcflow_board_start(void); /* UART and timer on, their interrupts too */
extern const rpcflow_line rpcflow_board_line;
uint64_t rpcflow_board_clock_ns(void);
void rpcflow_board_code_written(void *code, size_t nbytes);

/* The linker script: the memory that nothing else uses, and the note that -Wl,--build-id makes. */
extern uint8_t rpcflow_memory_begin[], rpcflow_memory_end[];
extern const uint8_t rpcflow_build_id_begin[], rpcflow_build_id_end[];

#ifdef __cplusplus
}
#endif
#endif
