/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A device that is a process on a serial line or pseudo-terminal: one session after another, over the link layer. A
 * thread is what the interrupt handlers are on a board: it answers the host while a function runs.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* cfmakeraw */
#endif
#include "posix.h"
#include <rpcflow/link.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

enum { USAGE = 2, NO_MEMORY = 3, BROKEN_LINE = 4 };
enum { TICK_MS = 5, HELD_MS = 2, AHEAD_NS = 5000000, PIECE_NBYTES = 512 };

static struct {
  rpcflow_machine machine;
  rpcflow_link link;
  pthread_mutex_t mutex;
  pthread_cond_t ran;  /* the thread has done something */
  int tty;
  int wake[2];         /* a pipe: the thread looks what there is to transmit */
  uint8_t kicked;      /* a byte is in it */
  uint8_t out[PIECE_NBYTES];
  size_t begin, end;   /* of what the line has not taken yet */
  uint64_t byte_ns;    /* that the line takes for a byte; 0: not known */
  uint64_t idle_ns;    /* when it will have sent all that it has taken */
  int held;            /* it has taken as much as it is to for now */
} device;

static void fail(const char *what, const char *why) {
  fprintf(stderr, "%s: %s\n", what, why);
  exit(BROKEN_LINE);
}

static uint32_t now_ms(void) { return (uint32_t)(device.machine.clock_ns() / 1000000u); }

static void lock(void) { (void)pthread_mutex_lock(&device.mutex); }

static void unlock(void) { (void)pthread_mutex_unlock(&device.mutex); }

static void kick(void) {
  if (!device.kicked) device.kicked = write(device.wake[1], "", 1) == 1;
}

static void wait_for_line(void) { (void)pthread_cond_wait(&device.ran, &device.mutex); }

static const rpcflow_line line = {lock, unlock, kick, wait_for_line};

static void receive(void) {
  uint8_t piece[PIECE_NBYTES];
  ssize_t count = read(device.tty, piece, sizeof piece), i;
  if (count == 0 || (count < 0 && errno != EAGAIN && errno != EINTR)) {
    fail("the line", count == 0 ? "the other end is gone" : strerror(errno));
  }
  for (i = 0; i < count; i++) rpcflow_link_receive(&device.link, piece[i]);
}

/*
 * As much as the line takes; if we know how fast it is, not more than it sends within the next milliseconds: behind a
 * full buffer of the system's, what the host asks for again would come too late.
 */
static void transmit(void) {
  uint64_t now = device.machine.clock_ns();
  if (device.idle_ns < now) device.idle_ns = now;
  for (;;) {
    uint64_t most = device.byte_ns ? (now + AHEAD_NS - device.idle_ns) / device.byte_ns : sizeof device.out;
    ssize_t count;
    int byte;
    if (device.begin == device.end) device.begin = device.end = 0;
    device.held = most == 0;
    while (device.end < most && device.end < sizeof device.out && (byte = rpcflow_link_transmit(&device.link)) >= 0) {
      device.out[device.end++] = (uint8_t)byte;
    }
    if (device.begin == device.end) return;
    count = write(device.tty, device.out + device.begin, device.end - device.begin);
    if (count < 0) {
      if (errno != EAGAIN && errno != EINTR) fail("the line", strerror(errno));
      return;
    }
    device.begin += (size_t)count;
    device.idle_ns += (uint64_t)count * device.byte_ns;
  }
}

static void *run_line(void *unused) {
  (void)unused;
  for (;;) {
    struct pollfd waiting[2];
    waiting[0].fd = device.tty;
    waiting[0].events = device.begin < device.end ? POLLIN | POLLOUT : POLLIN; /* only this thread writes these two */
    waiting[0].revents = 0;
    waiting[1].fd = device.wake[0];
    waiting[1].events = POLLIN;
    waiting[1].revents = 0;
    (void)poll(waiting, 2, device.held ? HELD_MS : TICK_MS);
    lock();
    if (waiting[1].revents & POLLIN) {
      char byte;
      device.kicked = read(device.wake[0], &byte, 1) != 1;
    }
    rpcflow_link_tick(&device.link, now_ms());
    if (waiting[0].revents & (POLLIN | POLLHUP | POLLERR)) receive();
    transmit();
    (void)pthread_cond_broadcast(&device.ran);
    unlock();
  }
  return NULL;
}

static speed_t speed_of(unsigned long baud) {
  static const struct {
    unsigned long baud;
    speed_t speed;
  } known[] = {{9600, B9600},       {19200, B19200},   {38400, B38400},
               {57600, B57600},     {115200, B115200}, {230400, B230400},
#ifdef B921600
               {460800, B460800},   {921600, B921600},
#endif
#ifdef B2000000
               {1000000, B1000000}, {2000000, B2000000},
#endif
  };
  size_t i;
  for (i = 0; i < sizeof known / sizeof known[0]; i++) {
    if (known[i].baud == baud) return known[i].speed;
  }
  return B0;
}

static int open_tty(const char *path, speed_t speed) {
  struct termios settings;
  int tty = open(path, O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
  if (tty < 0 || tcgetattr(tty, &settings)) fail(path, strerror(errno));
  cfmakeraw(&settings);
  settings.c_cflag |= CLOCAL | CREAD;
  settings.c_cc[VMIN] = 1; /* so that a read of nothing is the end of the line */
  settings.c_cc[VTIME] = 0;
  if (cfsetispeed(&settings, speed) || cfsetospeed(&settings, speed) || tcsetattr(tty, TCSANOW, &settings)) {
    fail(path, strerror(errno));
  }
  return tty;
}

int main(int argc, char **argv) {
  rpcflow_stream stream;
  pthread_t thread;
  const char *path = NULL;
  speed_t speed = B115200;
  int i;
  for (i = 1; i + 1 < argc; i += 2) {
    if (strcmp(argv[i], "--device") == 0) {
      path = argv[i + 1];
    } else if (strcmp(argv[i], "--baud") == 0) {
      unsigned long baud = strtoul(argv[i + 1], NULL, 10);
      speed = speed_of(baud);
      device.byte_ns = baud ? 10000000000u / baud : 0;
    } else {
      break;
    }
  }
  if (i != argc || !path || speed == B0) {
    fprintf(stderr, "usage: %s --device /dev/ttyS0 [--baud 115200]\n", argc ? argv[0] : "device");
    return USAGE;
  }
  if (rpcflow_posix_machine(&device.machine)) {
    fprintf(stderr, "no memory for tensors: %s (RPCFLOW_MEMORY_NBYTES)\n", strerror(errno));
    return NO_MEMORY;
  }
  rpcflow_start(&device.machine);
  device.tty = open_tty(path, speed);
  if (pipe(device.wake) || pthread_mutex_init(&device.mutex, NULL) || pthread_cond_init(&device.ran, NULL)) {
    fail("start", strerror(errno));
  }
  rpcflow_link_start(&device.link, &line, now_ms());
  if (pthread_create(&thread, NULL, run_line, NULL)) fail("start", "no thread to be had");
  stream = rpcflow_link_stream(&device.link);
  for (;;) {
    rpcflow_link_accept(&device.link);
    (void)rpcflow_serve(&stream); /* whatever ended it: a host that listens is told by the link */
  }
}
