/* SPDX-License-Identifier: Apache-2.0 */
#include "link_frame.h"

enum { FLAG = 0x7E, ESCAPE = 0x7D, TOGGLE = 0x20, XON = 0x11, XOFF = 0x13 };

/* Longest body taken, and the count that stands for all longer ones. */
enum {
  OVERHEAD = RPCFLOW_FRAME_PAYLOAD + RPCFLOW_FRAME_FCS_NBYTES,
  BODY_NBYTES = OVERHEAD + RPCFLOW_LINK_PAYLOAD_NBYTES
};

/* Half a byte at a time: a table for whole bytes would take 1 KiB of flash. */
static uint32_t crc_add(uint32_t crc, uint8_t byte) {
  static const uint32_t table[16] = {
      0x00000000u, 0x1DB71064u, 0x3B6E20C8u, 0x26D930ACu, 0x76DC4190u, 0x6B6B51F4u, 0x4DB26158u, 0x5005713Cu,
      0xEDB88320u, 0xF00F9344u, 0xD6D6A3E8u, 0xCB61B38Cu, 0x9B64C2B0u, 0x86D3D2D4u, 0xA00AE278u, 0xBDBDF21Cu};
  crc = (crc >> 4) ^ table[(crc ^ byte) & 15u];
  return (crc >> 4) ^ table[(crc ^ ((uint32_t)byte >> 4)) & 15u];
}

static void begin_body(rpcflow_frame_in *in) {
  in->crc = 0xFFFFFFFFu;
  in->count = 0;
  in->escaped = 0;
}

void rpcflow_frame_in_start(rpcflow_frame_in *in) {
  begin_body(in);
  in->hunting = 1;
}

/* Bytes of payload that a kind of frame cannot do without; one with less is damaged, and so is an unknown kind. */
static int is_sound(uint8_t kind, uint16_t nbytes) {
  static const uint8_t least[] = {255, 3, 3, 1, 0, 0, 0, 2};
  return kind != 0 && kind < sizeof least && nbytes >= least[kind];
}

static int end_body(rpcflow_frame_in *in) {
  int came = RPCFLOW_CAME_NOTHING;
  if (in->count != 0 || in->escaped) {
    came = RPCFLOW_CAME_DAMAGED;
    if (in->count >= OVERHEAD && in->count <= BODY_NBYTES && !in->escaped && ~in->crc == in->last) {
      in->nbytes = (uint16_t)(in->count - OVERHEAD);
      if (is_sound(in->fields[RPCFLOW_FRAME_KIND], in->nbytes)) came = RPCFLOW_CAME_FRAME;
    }
  }
  if (in->hunting) came = RPCFLOW_CAME_NOTHING;
  in->hunting = 0;
  begin_body(in);
  return came;
}

int rpcflow_frame_in_byte(rpcflow_frame_in *in, uint8_t byte) {
  uint8_t settled;
  uint32_t at;
  if (byte == FLAG) return end_body(in);
  if (in->escaped) {
    byte = byte ^ TOGGLE;
    in->escaped = 0;
  } else if (byte == ESCAPE) {
    in->escaped = 1;
    return RPCFLOW_CAME_NOTHING;
  }
  if (in->count > BODY_NBYTES) return RPCFLOW_CAME_NOTHING;
  in->count++;
  /* The last four bytes are the check sum, and only the end says which ones are the last: each byte waits for four
   * more to come before it counts as one of the body. */
  settled = (uint8_t)in->last;
  in->last = (in->last >> 8) | ((uint32_t)byte << 24);
  if (in->count <= RPCFLOW_FRAME_FCS_NBYTES) return RPCFLOW_CAME_NOTHING;
  in->crc = crc_add(in->crc, settled);
  at = in->count - (uint32_t)RPCFLOW_FRAME_FCS_NBYTES - 1u;
  if (at < sizeof in->fields) in->fields[at] = settled;
  if (at < RPCFLOW_FRAME_PAYLOAD || at >= BODY_NBYTES - RPCFLOW_FRAME_FCS_NBYTES) return RPCFLOW_CAME_NOTHING;
  in->payload = settled;
  in->at = (uint16_t)(at - RPCFLOW_FRAME_PAYLOAD);
  return RPCFLOW_CAME_PAYLOAD;
}

void rpcflow_frame_out_start(rpcflow_frame_out *out, const uint8_t *payload, uint16_t nbytes) {
  out->payload = payload;
  out->nbytes = nbytes;
  out->at = 0;
  out->second = 0;
  out->crc = 0xFFFFFFFFu;
  out->busy = 1;
}

static int is_special(uint8_t byte) {
  return byte == FLAG || byte == ESCAPE || (RPCFLOW_LINK_XONXOFF && (byte == XON || byte == XOFF));
}

uint8_t rpcflow_frame_out_byte(rpcflow_frame_out *out) {
  uint8_t byte = out->second;
  uint32_t at = out->at, end = RPCFLOW_FRAME_PAYLOAD + (uint32_t)out->nbytes;
  if (byte) { /* of an escape: never 0 */
    out->second = 0;
    return byte;
  }
  out->at++;
  if (at == 0) return FLAG;
  at--;
  if (at < end) {
    byte = at < RPCFLOW_FRAME_PAYLOAD ? out->fields[at] : out->payload[at - RPCFLOW_FRAME_PAYLOAD];
    out->crc = crc_add(out->crc, byte);
  } else if (at < end + RPCFLOW_FRAME_FCS_NBYTES) {
    byte = (uint8_t)(~out->crc >> (8u * (at - end)));
  } else {
    out->busy = 0;
    return FLAG;
  }
  if (is_special(byte)) {
    out->second = byte ^ TOGGLE;
    return ESCAPE;
  }
  return byte;
}
