/* SPDX-License-Identifier: Apache-2.0 */
/* The state of a link: here for static allocation only, its fields are link.c's own. */
#ifndef RPCFLOW_LINK_STATE_H
#define RPCFLOW_LINK_STATE_H

#include "config.h"
#include <stdint.h>

#if RPCFLOW_LINK_PAYLOAD_NBYTES < 32 || RPCFLOW_LINK_PAYLOAD_NBYTES > 1024
#error "RPCFLOW_LINK_PAYLOAD_NBYTES must be 32 to 1024"
#endif
#if RPCFLOW_LINK_RECEIVE_FRAMES < 1 || RPCFLOW_LINK_RECEIVE_FRAMES > 64
#error "RPCFLOW_LINK_RECEIVE_FRAMES must be 1 to 64"
#endif
#if RPCFLOW_LINK_SEND_FRAMES < 1 || RPCFLOW_LINK_SEND_FRAMES > 64
#error "RPCFLOW_LINK_SEND_FRAMES must be 1 to 64"
#endif

/* A frame that is coming. */
typedef struct {
  uint32_t crc;
  uint32_t last;      /* the latest four bytes */
  uint16_t count;     /* bytes of the body so far */
  uint16_t at;        /* of `payload` */
  uint16_t nbytes;    /* of a whole frame's payload */
  uint8_t payload;
  uint8_t escaped;
  uint8_t hunting;    /* no flag has come yet */
  uint8_t fields[9];  /* of the body, and the payload of a control frame */
} rpcflow_frame_in;

/* A frame that is going out. */
typedef struct {
  const uint8_t *payload;
  uint32_t crc;
  uint16_t nbytes; /* of the payload */
  uint16_t at;
  uint8_t second;  /* of an escape, or 0 */
  uint8_t busy;
  uint8_t fields[6];
} rpcflow_frame_out;

#define RPCFLOW_LINK_NO_SLOT 255

/* A DATA frame that is kept until it is acknowledged. */
typedef struct {
  uint16_t nbytes;
  uint16_t sent_ms;  /* when its last byte was given to the line */
  uint8_t sent_again;
  uint8_t unused[3];
} rpcflow_link_slot;

struct rpcflow_link {
  const rpcflow_line *line;
  uint32_t now_ms;
  rpcflow_frame_in in;
  rpcflow_frame_out out;
  uint16_t session;      /* while `open` */
  uint16_t reset_session; /* RESET that is due: of which session, and why */
  uint8_t reset_reason;
  uint8_t due;           /* control frames to be sent */
  uint8_t open;
  uint8_t fresh;         /* begun and not accepted */
  uint16_t epoch;        /* counts sessions begun, */
  uint16_t serving;      /* and the one that the stream side serves */

  /* Receiving. */
  uint8_t wanted;
  uint8_t unsaid;        /* frames taken that no frame has acknowledged */
  uint8_t refused;       /* NAK has been sent for `wanted` */
  uint8_t taken;         /* a DATA frame was taken in this session */
  uint32_t unsaid_ms;    /* since when */
  uint8_t come_first;    /* frames that the program has not read: the place of the oldest, */
  uint8_t come;          /* how many they are, */
  uint16_t read;         /* and bytes of the oldest that have been read */
  uint8_t placed;        /* there is room for the one that is coming */

  /* Sending. Slots in use are those from `first` on: `under_way` have been given to the line once, `queued` are whole,
   * and the one behind these is being filled. */
  uint8_t first;
  uint8_t queued;
  uint8_t under_way;
  uint8_t next;          /* of these the next to be given to the line */
  uint8_t base;          /* number of the frame in slot `first` */
  uint8_t allowed;       /* number behind the last one that the host has room for */
  uint8_t sending;       /* slot of the DATA frame on the line, or RPCFLOW_LINK_NO_SLOT */
  uint8_t silent;        /* how often the timer has run out without a word from the host */
  uint8_t measured;      /* `trip` and `deviation` hold something */
  uint16_t trip;         /* milliseconds x 8 */
  uint16_t deviation;    /* milliseconds x 4 */
  uint16_t timer_ms;     /* as they say, */
  uint16_t patience_ms;  /* and doubled as often as it ran out since the last acknowledgement */
  uint32_t eased_ms;     /* when that was: the timer of slot `first` does not run from before */
  uint16_t size;         /* payload of new frames, */
  uint16_t limit;        /* and the most both ends take */
  uint16_t fill;         /* bytes in the slot that is being filled */

  rpcflow_link_slot slots[RPCFLOW_LINK_SEND_FRAMES];
  uint16_t come_nbytes[RPCFLOW_LINK_RECEIVE_FRAMES];
  uint8_t sent_frames[RPCFLOW_LINK_SEND_FRAMES][RPCFLOW_LINK_PAYLOAD_NBYTES];
  uint8_t come_frames[RPCFLOW_LINK_RECEIVE_FRAMES][RPCFLOW_LINK_PAYLOAD_NBYTES];
};

#endif
