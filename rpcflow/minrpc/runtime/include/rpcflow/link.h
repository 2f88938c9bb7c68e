/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The device's end of the link layer (docs/reference/link.md): makes of a line that loses and changes bytes a stream
 * that does not, or ends.
 *
 * It has two sides. The line side never blocks and is called from the interrupt handler of the UART and of a timer (or
 * from a thread): so frames are acknowledged, and the host sees that the line lives, while a function runs. The stream
 * side is called from the main program. Between them stand rings in this structure.
 */
#ifndef RPCFLOW_LINK_H
#define RPCFLOW_LINK_H

#include "config.h"
#include "runtime.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
  void (*lock)(void);   /* keeps the line side out: disables its interrupts. Not nested */
  void (*unlock)(void);
  void (*kick)(void);   /* there is something to transmit: the line side shall ask rpcflow_link_transmit. Called locked */
  void (*wait)(void);   /* let the line side in, sleep until it has run or for a while, lock again. Called locked; as
                           with a condition variable nothing may slip in before the sleep, and it may return at once */
} rpcflow_line;

typedef struct rpcflow_link rpcflow_link; /* its size is that of its buffers, see config.h, and under 200 bytes */

/* Begin; the first frame out is RESET: the device has started. `now_ms` may wrap. */
void rpcflow_link_start(rpcflow_link *link, const rpcflow_line *line, uint32_t now_ms);

/* Line side: a byte has come. Ask rpcflow_link_transmit afterwards: there may be an answer. */
void rpcflow_link_receive(rpcflow_link *link, uint8_t byte);

/* Line side: the next byte to put on the line, or -1 when there is none. */
int rpcflow_link_transmit(rpcflow_link *link);

/* Line side: time has passed; call at least every 10 ms, and ask rpcflow_link_transmit afterwards. */
void rpcflow_link_tick(rpcflow_link *link, uint32_t now_ms);

/*
 * Stream side: wait until a host has begun a session that has not been served yet, and begin to serve it. If the one
 * served last is still open, it is closed as soon as the host has acknowledged all that was written, or is silent.
 */
void rpcflow_link_accept(rpcflow_link *link);

/* Stream side: the stream of the session accepted last. It ends when a host begins another or closes it. */
rpcflow_stream rpcflow_link_stream(rpcflow_link *link);

#ifdef __cplusplus
}
#endif
#include "link_state.h" /* the structure itself, for static allocation; its fields are nobody else's */
#endif
