/* SPDX-License-Identifier: Apache-2.0 */
/* What tests/minrpc/clink.py needs of the C link beyond its public functions. */
#include "link_frame.h"

size_t probe_link_nbytes(void);
size_t probe_encode(const uint8_t *fields, const uint8_t *payload, uint16_t nbytes, uint8_t *line);
rpcflow_frame_in *probe_decoder(void);
int probe_decode(rpcflow_frame_in *in, uint8_t byte, uint8_t *fields, uint8_t *payload, uint16_t *nbytes);
int probe_read(rpcflow_link *link, void *buffer, size_t nbytes);
int probe_write(rpcflow_link *link, const void *buffer, size_t nbytes);
int probe_flush(rpcflow_link *link);
void probe_receive(rpcflow_link *link, const uint8_t *line, size_t nbytes);
size_t probe_transmit(rpcflow_link *link, uint8_t *line, size_t nbytes);

size_t probe_link_nbytes(void) { return sizeof(rpcflow_link); }

/* `line` has room for twice the body and two more. */
size_t probe_encode(const uint8_t *fields, const uint8_t *payload, uint16_t nbytes, uint8_t *line) {
  rpcflow_frame_out out;
  size_t count = 0, i;
  for (i = 0; i < sizeof out.fields; i++) out.fields[i] = fields[i];
  rpcflow_frame_out_start(&out, payload, nbytes);
  while (out.busy) line[count++] = rpcflow_frame_out_byte(&out);
  return count;
}

rpcflow_frame_in *probe_decoder(void) {
  static rpcflow_frame_in in;
  rpcflow_frame_in_start(&in);
  return &in;
}

/* `payload` has room for RPCFLOW_LINK_PAYLOAD_NBYTES. */
int probe_decode(rpcflow_frame_in *in, uint8_t byte, uint8_t *fields, uint8_t *payload, uint16_t *nbytes) {
  int came = rpcflow_frame_in_byte(in, byte);
  size_t i;
  if (came == RPCFLOW_CAME_PAYLOAD) payload[in->at] = in->payload;
  if (came == RPCFLOW_CAME_FRAME) {
    for (i = 0; i < 6; i++) fields[i] = in->fields[i];
    *nbytes = in->nbytes;
  }
  return came;
}

int probe_read(rpcflow_link *link, void *buffer, size_t nbytes) {
  rpcflow_stream stream = rpcflow_link_stream(link);
  return stream.read(stream.context, buffer, nbytes);
}

int probe_write(rpcflow_link *link, const void *buffer, size_t nbytes) {
  rpcflow_stream stream = rpcflow_link_stream(link);
  return stream.write(stream.context, buffer, nbytes);
}

int probe_flush(rpcflow_link *link) {
  rpcflow_stream stream = rpcflow_link_stream(link);
  return stream.flush(stream.context);
}

void probe_receive(rpcflow_link *link, const uint8_t *line, size_t nbytes) {
  size_t i;
  for (i = 0; i < nbytes; i++) rpcflow_link_receive(link, line[i]);
}

/* At most `nbytes` of what the link has for the line. */
size_t probe_transmit(rpcflow_link *link, uint8_t *line, size_t nbytes) {
  size_t count = 0;
  int byte = 0;
  while (count < nbytes && (byte = rpcflow_link_transmit(link)) >= 0) line[count++] = (uint8_t)byte;
  return count;
}
