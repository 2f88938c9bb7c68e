/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* MAP_NORESERVE, F_SETPIPE_SZ */
#endif
#include "posix.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { PIPE_NBYTES = 1 << 20 };
enum { LOOK_NS = 50000, FIRST_SKIPS = 4, MOST_SKIPS = 256 };

static uint64_t clock_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000U + (uint64_t)now.tv_nsec;
}

static void sleep_ms(uint32_t milliseconds) {
  struct timespec left;
  left.tv_sec = (time_t)(milliseconds / 1000);
  left.tv_nsec = (long)(milliseconds % 1000) * 1000000;
  while (nanosleep(&left, &left) && errno == EINTR) {
  }
}

int rpcflow_posix_machine(rpcflow_machine *machine) {
  const char *wanted = getenv("RPCFLOW_MEMORY_NBYTES");
  size_t nbytes = (size_t)sysconf(_SC_PHYS_PAGES) / 2 * (size_t)sysconf(_SC_PAGESIZE);
  void *memory;
  if (wanted) {
    char *end;
    errno = 0;
    nbytes = (size_t)strtoull(wanted, &end, 10);
    if (errno || *end || nbytes < 4096) {
      errno = EINVAL;
      return -1;
    }
  }
  memory = mmap(NULL, nbytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return -1;
  memset(machine, 0, sizeof *machine);
  machine->clock_ns = clock_ns;
  machine->sleep_ms = sleep_ms;
  machine->memory = memory;
  machine->memory_nbytes = nbytes;
  return 0;
}

/* Whether to try again; a host may have left a descriptor non-blocking. */
static int again(int descriptor, short event) {
  struct pollfd waiting;
  if (errno == EINTR) return 1;
  if (errno != EAGAIN && errno != EWOULDBLOCK) return 0;
  waiting.fd = descriptor;
  waiting.events = event;
  waiting.revents = 0;
  return poll(&waiting, 1, -1) >= 0 || errno == EINTR;
}

/* One read of what is there; 0 at the end, or when it failed. */
static size_t read_some(rpcflow_descriptors *d, void *buffer, size_t nbytes) {
  for (;;) {
    ssize_t count = read(d->in, buffer, nbytes);
    if (count >= 0) return (size_t)count;
    if (!again(d->in, POLLIN)) {
      d->error = errno;
      return 0;
    }
  }
}

/* Waking a sleeping process costs tens of microseconds, several times what a small call costs otherwise. So look for the
 * next request about as long before sleeping; but not where that has not paid off: after a failure, not for some turns. */
static void look(rpcflow_descriptors *d) {
  struct pollfd wanted;
  uint64_t begin;
  if (!d->looks) return;
  if (d->to_skip) {
    d->to_skip--;
    return;
  }
  wanted.fd = d->in;
  wanted.events = POLLIN;
  wanted.revents = 0;
  begin = clock_ns();
  while (!poll(&wanted, 1, 0) && clock_ns() - begin <= LOOK_NS) {
  }
  if (clock_ns() - begin <= LOOK_NS) {
    d->skips /= 2;
  } else { /* nothing came, or somebody else has had the processor meanwhile */
    d->skips = d->skips ? 4 * d->skips : (unsigned)FIRST_SKIPS;
    if (d->skips > (unsigned)MOST_SKIPS) d->skips = MOST_SKIPS;
  }
  d->to_skip = d->skips;
}

static int posix_read(void *context, void *buffer, size_t nbytes) {
  rpcflow_descriptors *d = (rpcflow_descriptors *)context;
  uint8_t *at = (uint8_t *)buffer;
  size_t wanted = nbytes;
  for (;;) {
    size_t count = d->end - d->begin;
    if (count) {
      if (count > wanted) count = wanted;
      memcpy(at, d->read + d->begin, count);
      d->begin += count;
    } else if (wanted >= sizeof d->read) { /* straight to its place */
      count = read_some(d, at, wanted);
      if (!count) break;
    } else {
      look(d);
      d->begin = 0;
      d->end = read_some(d, d->read, sizeof d->read);
      if (!d->end) break;
      continue;
    }
    at += count;
    wanted -= count;
    if (!wanted) return RPCFLOW_OK;
  }
  return d->error || wanted != nbytes ? RPCFLOW_FAILED : RPCFLOW_ENDED;
}

static int write_all(rpcflow_descriptors *d, const void *data, size_t nbytes) {
  struct iovec parts[2];
  int first = 0;
  parts[0].iov_base = d->written;
  parts[0].iov_len = d->kept;
  parts[1].iov_base = (void *)(uintptr_t)data;
  parts[1].iov_len = nbytes;
  d->kept = 0;
  d->midway = 1;
  while (first < 2) {
    ssize_t count;
    if (!parts[first].iov_len) {
      first++;
      continue;
    }
    count = writev(d->out, parts + first, 2 - first);
    if (count < 0) {
      if (again(d->out, POLLOUT)) continue;
      d->error = errno;
      return errno == EPIPE ? RPCFLOW_ENDED : RPCFLOW_FAILED;
    }
    while (first < 2 && (size_t)count >= parts[first].iov_len) count -= (ssize_t)parts[first++].iov_len;
    if (first < 2) {
      parts[first].iov_base = (uint8_t *)parts[first].iov_base + count;
      parts[first].iov_len -= (size_t)count;
    }
  }
  return RPCFLOW_OK;
}

static int posix_write(void *context, const void *data, size_t nbytes) {
  rpcflow_descriptors *d = (rpcflow_descriptors *)context;
  if (nbytes > sizeof d->written - d->kept) return write_all(d, data, nbytes);
  memcpy(d->written + d->kept, data, nbytes);
  d->kept += nbytes;
  return RPCFLOW_OK;
}

static int posix_flush(void *context) {
  rpcflow_descriptors *d = (rpcflow_descriptors *)context;
  int status = d->kept ? write_all(d, NULL, 0) : RPCFLOW_OK;
  if (status == RPCFLOW_OK) d->midway = 0;
  return status;
}

rpcflow_stream rpcflow_posix_stream(rpcflow_descriptors *descriptors, int in, int out) {
  const char *poll_wanted = getenv("RPCFLOW_POLL"); /* "0": the host does not want it (poll=False) */
  rpcflow_stream stream;
  descriptors->in = in;
  descriptors->out = out;
  descriptors->error = 0;
  descriptors->midway = 0;
  descriptors->begin = descriptors->end = descriptors->kept = 0;
  descriptors->looks = sysconf(_SC_NPROCESSORS_ONLN) > 1 && !(poll_wanted && !strcmp(poll_wanted, "0"));
  descriptors->skips = descriptors->to_skip = 0;
#ifdef F_SETPIPE_SZ
  (void)fcntl(in, F_SETPIPE_SZ, PIPE_NBYTES); /* fewer turns for large tensors; no matter if it is no pipe */
  (void)fcntl(out, F_SETPIPE_SZ, PIPE_NBYTES);
#endif
  stream.context = descriptors;
  stream.read = posix_read;
  stream.write = posix_write;
  stream.flush = posix_flush;
  return stream;
}
