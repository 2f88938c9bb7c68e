/* SPDX-License-Identifier: Apache-2.0 */
/* The main program of a board: one session after another on its UART, for ever. */
#include "board.h"
#include <string.h>

rpcflow_link rpcflow_board_link;

/* Of an ELF note: three lengths and the name "GNU". */
enum { NOTE_HEAD_NBYTES = 16 };

int main(void) {
  static rpcflow_machine machine;
  rpcflow_stream stream;
  machine.clock_ns = rpcflow_board_clock_ns;
  machine.code_written = rpcflow_board_code_written;
  machine.memory = rpcflow_memory_begin;
  machine.memory_nbytes = (size_t)(rpcflow_memory_end - rpcflow_memory_begin);
  if (rpcflow_build_id_end - rpcflow_build_id_begin > NOTE_HEAD_NBYTES) {
    machine.build_id = rpcflow_build_id_begin + NOTE_HEAD_NBYTES;
    machine.build_id_nbytes = (size_t)(rpcflow_build_id_end - rpcflow_build_id_begin) - NOTE_HEAD_NBYTES;
  }
  rpcflow_start(&machine);
  rpcflow_link_start(&rpcflow_board_link, &rpcflow_board_line, 0);
  rpcflow_board_start();
  stream = rpcflow_link_stream(&rpcflow_board_link);
  for (;;) {
    rpcflow_link_accept(&rpcflow_board_link);
    (void)rpcflow_serve(&stream); /* whatever ended it: a host that listens is told by the link */
  }
}
