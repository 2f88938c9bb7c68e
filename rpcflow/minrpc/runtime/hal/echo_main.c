/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Instead of board_main.c, the runtime and the link: a program that sends each byte back as it came. With it one sees
 * whether a board's UART and timer work, and how fast they are.
 */
#include "board.h"

enum { RING_NBYTES = 4096 };

rpcflow_link rpcflow_board_link; /* not in use */

static uint8_t ring[RING_NBYTES];
static uint32_t come, gone; /* bytes so far */

void rpcflow_link_receive(rpcflow_link *link, uint8_t byte) {
  (void)link;
  if (come - gone < RING_NBYTES) ring[come++ % RING_NBYTES] = byte;
}

int rpcflow_link_transmit(rpcflow_link *link) {
  (void)link;
  return gone == come ? -1 : ring[gone++ % RING_NBYTES];
}

void rpcflow_link_tick(rpcflow_link *link, uint32_t now_ms) {
  (void)link;
  (void)now_ms;
}

int main(void) {
  rpcflow_board_start();
  rpcflow_board_line.lock();
  for (;;) rpcflow_board_line.wait();
}
