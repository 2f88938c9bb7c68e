/* SPDX-License-Identifier: Apache-2.0 */
/* What the programs for POSIX systems share: a clock, memory, and streams over descriptors. */
#ifndef RPCFLOW_POSIX_H
#define RPCFLOW_POSIX_H

#include <signal.h>

#include "rpcflow/runtime.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
  int in;
  int out;
  int error; /* errno of what failed; 0: the other end went away in the middle of something */
  size_t begin, end; /* of what has been read and not been taken */
  int looks;         /* whether to look for the next request before sleeping */
  unsigned skips, to_skip;
  size_t kept;       /* bytes to be written with those that follow */
  volatile sig_atomic_t midway; /* a part of an answer has been written */
  uint8_t read[8192];
  uint8_t written[4096];
} rpcflow_descriptors;

/*
 * The machine: its clock, and memory for tensors, which takes none of the system's until it is written to. As much as
 * half of the system's, or what the environment variable RPCFLOW_MEMORY_NBYTES says. Returns 0, or -1 with errno.
 */
int rpcflow_posix_machine(rpcflow_machine *machine);

/*
 * A stream over two descriptors, which may be the same. They stay the caller's. Before it sleeps it looks for the next
 * request for up to 50 us, where that pays off and the environment variable RPCFLOW_POLL is not 0.
 */
rpcflow_stream rpcflow_posix_stream(rpcflow_descriptors *descriptors, int in, int out);

#ifdef __cplusplus
}
#endif
#endif
