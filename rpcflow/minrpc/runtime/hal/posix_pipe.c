/* SPDX-License-Identifier: Apache-2.0 */
/* A device that is a process: serves one session over the two descriptors that its arguments name, to read from and to
 * write to (PopenSession, popen://). */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "posix.h"

enum { USAGE = 2, NO_MEMORY = 3, BROKEN_LINE = 4 };

static int descriptor(const char *text) {
  char *end;
  long number = strtol(text, &end, 10);
  return *text && !*end && number >= 0 && number <= 1 << 24 ? (int)number : -1;
}

int main(int argc, char **argv) {
  static rpcflow_descriptors descriptors;
  rpcflow_machine machine;
  rpcflow_stream stream;
  int in, out;
  if (argc != 3 || (in = descriptor(argv[1])) < 0 || (out = descriptor(argv[2])) < 0) {
    fprintf(stderr, "usage: %s READ WRITE: numbers of the descriptors to read requests from and to write answers to\n",
            argc ? argv[0] : "server");
    return USAGE;
  }
  (void)signal(SIGPIPE, SIG_IGN);
  if (rpcflow_posix_machine(&machine)) {
    fprintf(stderr, "no memory for tensors: %s (RPCFLOW_MEMORY_NBYTES)\n", strerror(errno));
    return NO_MEMORY;
  }
  rpcflow_start(&machine);
  stream = rpcflow_posix_stream(&descriptors, in, out);
  if (rpcflow_serve(&stream) != RPCFLOW_FAILED) return 0;
  fprintf(stderr, "the session broke off: %s\n",
          descriptors.error ? strerror(descriptors.error) : "what came was no packet, or not a whole one");
  return BROKEN_LINE;
}
