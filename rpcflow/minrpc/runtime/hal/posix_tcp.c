/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A device that is a server on TCP: one session after another, each in a process of its own, so that a kernel that
 * crashes or never ends takes nothing else with it. A client has its turn when it has said all of its handshake: those
 * that say nothing are in nobody's way.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/prctl.h>
#endif

#include "posix.h"

enum { USAGE = 2, NO_MEMORY = 3, BROKEN_LINE = 4, MOST_KEY_NBYTES = 4096, HANDSHAKE_SECONDS = 10, MOST_WAITING = 64 };
enum { PEER_SECONDS = 30 }; /* a client that has vanished without a word is given up after that */
#define MAGIC 0xFF271u
#define MISMATCH 0xFF273u

static rpcflow_descriptors descriptors;
static uint8_t last_words[160]; /* an Exception packet for when the session's time is up */
static size_t last_words_nbytes;
static volatile sig_atomic_t stopped;

/* Lines whose client has not said all of its handshake, the oldest first. */
typedef struct {
  int line;
  int wanted; /* it can be read from when so many bytes have come, or no more will */
  uint64_t since_ns;
} waiting_line;
static waiting_line waiting[MOST_WAITING];
static int waiting_count;

static void stop(int number) {
  (void)number;
  stopped = 1;
}

static void nothing(int number) { (void)number; }

static void time_is_up(int number) {
  (void)number;
  if (last_words_nbytes && !descriptors.midway)
    (void)send(descriptors.out, last_words, last_words_nbytes, MSG_DONTWAIT);
  _exit(0);
}

static void on(int number, void (*handler)(int)) {
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_handler = handler;
  (void)sigaction(number, &action, NULL);
}

static void limit_time(double seconds) {
  struct itimerval timer;
  memset(&timer, 0, sizeof timer);
  if (seconds > 1e9) seconds = 1e9;
  timer.it_value.tv_sec = (time_t)seconds;
  timer.it_value.tv_usec = (suseconds_t)((seconds - (double)timer.it_value.tv_sec) * 1e6);
  if (seconds > 0 && !timer.it_value.tv_sec && !timer.it_value.tv_usec) timer.it_value.tv_usec = 1;
  (void)setitimer(ITIMER_REAL, &timer, NULL);
}

/* The option in a client's key: seconds, and what will be said when they are over. */
static void take_timeout(const char *text) {
  uint64_t length;
  uint32_t head[3] = {5, 1, RPCFLOW_STRING};
  double seconds = strtod(text, NULL);
  int count = snprintf((char *)last_words + 28, sizeof last_words - 28,
                       "RPCSessionTimeoutError: the session's %.20s s are over: session_timeout", text);
  if (!(seconds > 0)) return;
  length = (uint64_t)count + 20;
  memcpy(last_words, &length, 8);
  memcpy(last_words + 8, head, 12);
  length = (uint64_t)count;
  memcpy(last_words + 20, &length, 8);
  last_words_nbytes = 28 + (size_t)count;
  limit_time(seconds);
}

/* 1: the client may begin. */
static int handshake(const rpcflow_stream *stream, const char *key) {
  static char text[MOST_KEY_NBYTES + 1];
  static char answer[MOST_KEY_NBYTES + 16];
  uint32_t head[2], code = MAGIC, nbytes;
  const char *word;
  char *rest;
  if (stream->read(stream->context, head, 8) || head[0] != MAGIC || head[1] > MOST_KEY_NBYTES ||
      (head[1] && stream->read(stream->context, text, head[1])) || memchr(text, 0, head[1]))
    return 0;
  text[head[1]] = 0;
  word = strtok_r(text, " \t\r\n", &rest);
  limit_time(0);
  if (!word || strncmp(word, "client:", 7) != 0 || strcmp(word + 7, key) != 0) {
    code = MISMATCH;
    (void)stream->write(stream->context, &code, 4);
    (void)stream->flush(stream->context);
    return 0;
  }
  while ((word = strtok_r(NULL, " \t\r\n", &rest)) != NULL)
    if (strncmp(word, "-timeout=", 9) == 0) take_timeout(word + 9);
  nbytes = (uint32_t)snprintf(answer, sizeof answer, "server:%s", key);
  return !stream->write(stream->context, &code, 4) && !stream->write(stream->context, &nbytes, 4) &&
         !stream->write(stream->context, answer, nbytes) && !stream->flush(stream->context);
}

static void set(int line, int level, int name, int value) { (void)setsockopt(line, level, name, &value, sizeof value); }

static int session(int line, const char *key) {
  rpcflow_stream stream = rpcflow_posix_stream(&descriptors, line, line);
  set(line, SOL_SOCKET, SO_RCVLOWAT, 1);
  set(line, IPPROTO_TCP, TCP_NODELAY, 1);
  set(line, SOL_SOCKET, SO_KEEPALIVE, 1);
#ifdef TCP_KEEPIDLE
  set(line, IPPROTO_TCP, TCP_KEEPIDLE, PEER_SECONDS / 3);
  set(line, IPPROTO_TCP, TCP_KEEPINTVL, PEER_SECONDS / 3);
  set(line, IPPROTO_TCP, TCP_KEEPCNT, 2);
#endif
#ifdef TCP_USER_TIMEOUT
  set(line, IPPROTO_TCP, TCP_USER_TIMEOUT, PEER_SECONDS * 1000);
#endif
  on(SIGALRM, time_is_up);
  limit_time(HANDSHAKE_SECONDS);
  if (!handshake(&stream, key)) return 0;
  return rpcflow_serve(&stream) == RPCFLOW_FAILED ? BROKEN_LINE : 0;
}

/* Serve one client in a process of its own. Stop signals are blocked, but while this waits for one. */
static void serve_client(int listener, int line, const char *key, const sigset_t *blocked) {
  pid_t parent = getpid(), child = fork();
  int status = 0, number;
  if (child == 0) {
    sigset_t none;
    (void)close(listener);
    while (waiting_count) (void)close(waiting[--waiting_count].line);
#ifdef __linux__
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(0);
#else
    (void)parent;
#endif
    on(SIGTERM, SIG_DFL);
    on(SIGINT, SIG_DFL);
    sigemptyset(&none);
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
    exit(session(line, key));
  }
  (void)close(line);
  if (child < 0) {
    fprintf(stderr, "no process for a session: %s\n", strerror(errno));
    return;
  }
  while (!stopped && waitpid(child, &status, WNOHANG) == 0)
    if (sigwait(blocked, &number) == 0 && number != SIGCHLD) stopped = 1;
  if (stopped) {
    (void)kill(child, SIGKILL);
    (void)waitpid(child, &status, 0);
  } else if (WIFSIGNALED(status)) {
    fprintf(stderr, "a session's process ended by signal %d (%s)\n", WTERMSIG(status), strsignal(WTERMSIG(status)));
  } else if (WEXITSTATUS(status)) {
    fprintf(stderr, "a session broke off with status %d\n", WEXITSTATUS(status));
  }
}

static void expect(waiting_line *one, int nbytes) {
  one->wanted = nbytes;
  set(one->line, SOL_SOCKET, SO_RCVLOWAT, nbytes);
}

static void forget(int i) {
  waiting_count--;
  memmove(waiting + i, waiting + i + 1, (size_t)(waiting_count - i) * sizeof *waiting);
}

static void take_in(int line, uint64_t now) {
  if (line < 0) return;
  if (line >= FD_SETSIZE) {
    (void)close(line);
    return;
  }
  if (waiting_count == MOST_WAITING) {
    (void)close(waiting[0].line);
    forget(0);
  }
  waiting[waiting_count].line = line;
  waiting[waiting_count].since_ns = now;
  expect(&waiting[waiting_count++], 8);
}

/* Of a line that can be read from: whether its client is to have its turn. That may be to be told that it is wrong. */
static int is_ready(waiting_line *one) {
  uint32_t head[2];
  int wanted = 8;
  if (recv(one->line, head, 8, MSG_PEEK | MSG_DONTWAIT) == 8 && head[0] == MAGIC && head[1] <= MOST_KEY_NBYTES)
    wanted += (int)head[1];
  if (wanted <= one->wanted) return 1;
  expect(one, wanted);
  return 0;
}

/* Wait until a line can be read from, or the oldest has waited long enough. */
static int wait_for_lines(int listener, fd_set *ready, uint64_t now, const sigset_t *mask) {
  const uint64_t most_ns = HANDSHAKE_SECONDS * (uint64_t)1000000000;
  uint64_t left = most_ns;
  struct timespec timeout;
  int i, last = listener;
  FD_ZERO(ready);
  FD_SET(listener, ready);
  for (i = 0; i < waiting_count; i++) {
    FD_SET(waiting[i].line, ready);
    if (waiting[i].line > last) last = waiting[i].line;
  }
  if (waiting_count) left = now - waiting[0].since_ns < most_ns ? most_ns - (now - waiting[0].since_ns) : 0;
  timeout.tv_sec = (time_t)(left / 1000000000U);
  timeout.tv_nsec = (long)(left % 1000000000U);
  return pselect(last + 1, ready, NULL, NULL, waiting_count ? &timeout : NULL, mask);
}

/* A socket that listens on the first port from `port` to below `port_end` that is free; -1 after saying why not. */
static int listen_on(const char *host, int port, int port_end, int *found) {
  int error = EADDRINUSE;
  for (*found = port; *found < port_end; ++*found) {
    struct addrinfo hints, *all, *one;
    char text[16];
    int failure, yes = 1;
    memset(&hints, 0, sizeof hints);
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
    (void)snprintf(text, sizeof text, "%d", *found);
    failure = getaddrinfo(host, text, &hints, &all);
    if (failure) {
      fprintf(stderr, "%s: %s\n", host, gai_strerror(failure));
      return -1;
    }
    for (one = all; one; one = one->ai_next) {
      int listener = socket(one->ai_family, SOCK_STREAM, 0);
      if (listener < 0) continue;
      (void)setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
      if (bind(listener, one->ai_addr, one->ai_addrlen) == 0 && listen(listener, 16) == 0) {
        struct sockaddr_storage address;
        socklen_t nbytes = sizeof address;
        if (!*found && getsockname(listener, (struct sockaddr *)&address, &nbytes) == 0) /* 0: any free port */
          *found = ntohs(address.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&address)->sin6_port
                                                       : ((struct sockaddr_in *)&address)->sin_port);
        freeaddrinfo(all);
        return listener;
      }
      error = errno;
      (void)close(listener);
    }
    freeaddrinfo(all);
  }
  fprintf(stderr, "no port of %s from %d to below %d can be had: %s\n", host, port, port_end, strerror(error));
  return -1;
}

static int number(const char *text) {
  char *end;
  long value = strtol(text, &end, 10);
  return *text && !*end && value >= 0 && value <= 65536 ? (int)value : -1;
}

int main(int argc, char **argv) {
  const char *host = "127.0.0.1", *key = "";
  int port = 9091, port_end = 9199, ended = 0, i, listener;
  rpcflow_machine machine;
  sigset_t blocked, before;
  for (i = 1; i + 1 < argc; i += 2) {
    if (!strcmp(argv[i], "--host")) host = argv[i + 1];
    else if (!strcmp(argv[i], "--key")) key = argv[i + 1];
    else if (!strcmp(argv[i], "--port")) port = number(argv[i + 1]);
    else if (!strcmp(argv[i], "--port-end")) port_end = number(argv[i + 1]), ended = 1;
    else break;
  }
  if (port >= 0 && !ended && port >= port_end) port_end = port + 1;
  if (i != argc || port < 0 || port > 65535 || port_end <= port || strlen(key) > MOST_KEY_NBYTES - 16 ||
      strpbrk(key, " \t\r\n")) {
    fprintf(stderr, "usage: %s [--host 127.0.0.1] [--port 9091] [--port-end 9199] [--key KEY]\n",
            argc ? argv[0] : "server");
    return USAGE;
  }
  on(SIGPIPE, SIG_IGN);
  on(SIGTERM, stop);
  on(SIGINT, stop);
  on(SIGCHLD, nothing);
  sigemptyset(&blocked);
  sigaddset(&blocked, SIGTERM);
  sigaddset(&blocked, SIGINT);
  sigaddset(&blocked, SIGCHLD);
  (void)sigprocmask(SIG_BLOCK, &blocked, &before);
  if (rpcflow_posix_machine(&machine)) {
    fprintf(stderr, "no memory for tensors: %s (RPCFLOW_MEMORY_NBYTES)\n", strerror(errno));
    return NO_MEMORY;
  }
  rpcflow_start(&machine);
  listener = listen_on(host, port, port_end, &port);
  if (listener < 0) return USAGE;
  (void)fcntl(listener, F_SETFL, O_NONBLOCK); /* who has come may be gone again */
  printf(strchr(host, ':') ? "READY tcp://[%s]:%d\n" : "READY tcp://%s:%d\n", host, port);
  (void)fflush(stdout);
  while (!stopped) {
    fd_set ready;
    uint64_t now;
    if (wait_for_lines(listener, &ready, machine.clock_ns(), &before) < 0) continue; /* a signal */
    now = machine.clock_ns();
    for (i = 0; i < waiting_count && !stopped;) {
      int line = waiting[i].line;
      if (FD_ISSET(line, &ready) ? is_ready(&waiting[i])
                                 : now - waiting[i].since_ns >= HANDSHAKE_SECONDS * (uint64_t)1000000000) {
        forget(i);
        if (FD_ISSET(line, &ready))
          serve_client(listener, line, key, &blocked);
        else
          (void)close(line);
      } else {
        i++;
      }
    }
    if (FD_ISSET(listener, &ready)) take_in(accept(listener, NULL, NULL), now);
  }
  return 0;
}
