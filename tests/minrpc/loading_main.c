/* SPDX-License-Identifier: Apache-2.0 */
/* A device that modules can be loaded into, as a process: its memory can be run, and lies where calls from it into the
 * program reach. Says on standard error when it makes new code visible. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "posix.h"

#define MEMORY ((void *)0x20000000)

static unsigned written;

static void code_written(void *code, size_t nbytes) {
  __builtin___clear_cache((char *)code, (char *)code + nbytes);
  written++;
}

static int count_written(void *self, const rpcflow_value *args, int32_t count, rpcflow_value *result) {
  (void)self, (void)args, (void)count;
  result->type = RPCFLOW_INT;
  result->u.as_int = written;
  return 0;
}
RPCFLOW_REGISTER(written, count_written);

int main(int argc, char **argv) {
  static const uint8_t build_id[] = {1, 2, 3, 0, 255};
  static rpcflow_descriptors descriptors;
  rpcflow_machine machine;
  rpcflow_stream stream;
  if (argc != 3 || rpcflow_posix_machine(&machine)) return 2;
  machine.memory_nbytes = 1 << 16;
  machine.memory = mmap(MEMORY, machine.memory_nbytes, PROT_READ | PROT_WRITE | PROT_EXEC,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
  if (machine.memory != MEMORY) {
    perror("mmap");
    return 3;
  }
  machine.code_written = code_written;
  machine.build_id = build_id;
  machine.build_id_nbytes = sizeof build_id;
  rpcflow_start(&machine);
  stream = rpcflow_posix_stream(&descriptors, atoi(argv[1]), atoi(argv[2]));
  return rpcflow_serve(&stream) == RPCFLOW_FAILED;
}
