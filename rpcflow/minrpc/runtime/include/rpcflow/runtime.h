/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A TVM RPC server for one session at a time, without heap, threads or files. What it stands on is a stream of bytes
 * (a pipe, a socket, the link layer of link.h), a clock, and memory for tensors.
 *
 * C99, and valid C++17 as well, so that any compiler driver takes it. No function here recurses.
 */
#ifndef RPCFLOW_RUNTIME_H
#define RPCFLOW_RUNTIME_H

#include "config.h"
#include "ffi.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What the stream's calls and rpcflow_serve return. */
enum {
  RPCFLOW_OK = 0,
  RPCFLOW_ENDED = 1,  /* the other end is gone, or has begun a new session; of rpcflow_serve: between two packets */
  RPCFLOW_FAILED = 2  /* reading or writing failed, or what came is no packet, or half of one: it is of no more use */
};

/* Bytes in order. All calls block until they have moved all bytes, and return RPCFLOW_OK, _ENDED or _FAILED. */
typedef struct {
  void *context;
  int (*read)(void *context, void *buffer, size_t nbytes);
  int (*write)(void *context, const void *buffer, size_t nbytes);
  int (*flush)(void *context); /* a packet is whole: what was kept back goes out. NULL: nothing is ever kept back */
} rpcflow_stream;

/* The machine. rpcflow_start takes a copy; what it refers to must stay. Fields that are not used are 0. */
typedef struct {
  uint64_t (*clock_ns)(void);                 /* never goes back; any beginning */
  void (*sleep_ms)(uint32_t milliseconds);    /* NULL: the clock is watched */
  void (*code_written)(void *code, size_t nbytes); /* makes new code visible to the processor. NULL: it is at once */
  void *memory;                               /* for tensors and loaded modules, RPCFLOW_ALIGNMENT aligned */
  size_t memory_nbytes;
  const uint8_t *build_id;                    /* of this program, for `firmware=`. NULL: none */
  size_t build_id_nbytes;
} rpcflow_machine;

/* Once, before the first session. */
void rpcflow_start(const rpcflow_machine *machine);

/*
 * Serve one session: until Shutdown, the end of the stream or an error of it. What the session held is freed.
 * Returns RPCFLOW_OK after Shutdown.
 */
int rpcflow_serve(const rpcflow_stream *stream);

/*
 * Offer a function under a name, before the first session; both must stay. It may be done before rpcflow_start. Returns
 * 0, or -1 when the table of RPCFLOW_MAX_FUNCTIONS is full (a host that looks for a function there is told) or the name
 * is taken.
 *
 * The tensors that it is called with lie whole in the machine's memory, and are aligned for their elements. Nothing
 * else of its arguments has been checked, neither number nor types; and pointers are those that the host sends.
 */
int rpcflow_register(const char *name, rpcflow_function function);

/* Raise an error: `return rpcflow_raise("ValueError", "n must be positive");`. Texts are copied. Returns -1. */
int rpcflow_raise(const char *kind, const char *message);

/*
 * RPCFLOW_REGISTER(name, function): the same at start-up, next to the function; `name` is an identifier. Needs
 * .init_array to be run, as C++ constructors do.
 */
#define RPCFLOW_REGISTER(name, function)                                       \
  __attribute__((constructor)) static void rpcflow_register_##name(void) {     \
    (void)rpcflow_register(#name, function);                                   \
  }                                                                            \
  typedef int rpcflow_register_##name##_needs_a_semicolon

#ifdef __cplusplus
}
#endif
#endif
