/* SPDX-License-Identifier: Apache-2.0 */
/* No part of any program: its object tells `python -m rpcflow.minrpc.sizes` how large the state of the runtime and of the
 * link is, and how much of that is buffers. */
#include "src/core.h"
#include <rpcflow/link.h>

#define SIZE_OF(type, field) sizeof(((type *)0)->field)

/* Room for what comes and goes: for a packet, the values and tensors of a call, a message, frames. Tables of functions,
 * tensors and so on are none. */
#define BUFFERS                                                                                                     \
  (SIZE_OF(rpcflow_state, packet) + SIZE_OF(rpcflow_state, pool) + SIZE_OF(rpcflow_state, args) +                   \
   SIZE_OF(rpcflow_state, message) + SIZE_OF(rpcflow_link, sent_frames) + SIZE_OF(rpcflow_link, come_frames))

extern char rpcflow_size_of_link[sizeof(rpcflow_link)];
extern char rpcflow_size_of_buffers[BUFFERS];
char rpcflow_size_of_link[sizeof(rpcflow_link)];
char rpcflow_size_of_buffers[BUFFERS];
