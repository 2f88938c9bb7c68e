/* SPDX-License-Identifier: Apache-2.0 */
/* What the line side (link.c) and the stream side (link_stream.c) of the link have in common; called locked. */
#ifndef RPCFLOW_SRC_LINK_MACHINE_H
#define RPCFLOW_SRC_LINK_MACHINE_H

#include "link_frame.h"
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { RPCFLOW_LINK_DUE_ACK = 8, RPCFLOW_LINK_RETRIES = 5, RPCFLOW_LINK_CLOSED = 2 };

uint8_t rpcflow_link_slot_at(const rpcflow_link *link, uint32_t ahead);
void rpcflow_link_reset(rpcflow_link *link, uint16_t session, uint8_t reason);

#ifdef __cplusplus
}
#endif
#endif
