/* SPDX-License-Identifier: Apache-2.0 */
/* Frames of the link layer, a byte at a time: stuffing, check sum, and where the fields are. */
#ifndef RPCFLOW_SRC_LINK_FRAME_H
#define RPCFLOW_SRC_LINK_FRAME_H

#include <rpcflow/link.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { RPCFLOW_LINK_VERSION = 1 };

/* Kinds of frames, and the offsets of the fields of a body. */
enum {
  RPCFLOW_FRAME_HELLO = 1,
  RPCFLOW_FRAME_WELCOME = 2,
  RPCFLOW_FRAME_DATA = 3,
  RPCFLOW_FRAME_ACK = 4,
  RPCFLOW_FRAME_NAK = 5,
  RPCFLOW_FRAME_PING = 6,
  RPCFLOW_FRAME_RESET = 7
};
enum {
  RPCFLOW_FRAME_KIND = 0,
  RPCFLOW_FRAME_SESSION = 1,
  RPCFLOW_FRAME_NUMBER = 3,
  RPCFLOW_FRAME_WANTED = 4,
  RPCFLOW_FRAME_CREDIT = 5,
  RPCFLOW_FRAME_PAYLOAD = 6,
  RPCFLOW_FRAME_FCS_NBYTES = 4
};

/* What has come with a byte. */
enum {
  RPCFLOW_CAME_NOTHING,
  RPCFLOW_CAME_PAYLOAD, /* `payload` is the byte `at` of the payload, of which nobody knows yet whether it is right */
  RPCFLOW_CAME_FRAME,   /* a whole one: `fields`, and `nbytes` of payload */
  RPCFLOW_CAME_DAMAGED
};

void rpcflow_frame_in_start(rpcflow_frame_in *in);
int rpcflow_frame_in_byte(rpcflow_frame_in *in, uint8_t byte);

/* Begin a frame whose `fields` are filled in; `payload` must stay until it is out. */
void rpcflow_frame_out_start(rpcflow_frame_out *out, const uint8_t *payload, uint16_t nbytes);
/* The next byte of a frame that is `busy`; with its last one it is no longer. */
uint8_t rpcflow_frame_out_byte(rpcflow_frame_out *out);

#ifdef __cplusplus
}
#endif
#endif
