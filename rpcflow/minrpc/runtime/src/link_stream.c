/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The stream side of the link. Bytes are copied unlocked, so that a UART without a buffer loses none meanwhile: the
 * line side writes where nothing is to be read, and sends nothing that is being filled.
 */
#include "link_machine.h"

static int has_ended(const rpcflow_link *link) { return !link->open || link->epoch != link->serving; }

/* The oldest frame has been read. */
static void release(rpcflow_link *link) {
  link->read = 0;
  link->come_first = (uint8_t)((link->come_first + 1u) % RPCFLOW_LINK_RECEIVE_FRAMES);
  if (link->come-- == RPCFLOW_LINK_RECEIVE_FRAMES) { /* the host waits to hear that there is room again */
    link->due |= RPCFLOW_LINK_DUE_ACK;
    link->line->kick();
  }
}

static int link_read(void *context, void *buffer, size_t nbytes) {
  rpcflow_link *link = (rpcflow_link *)context;
  const rpcflow_line *line = link->line;
  uint8_t *to = (uint8_t *)buffer;
  line->lock();
  while (nbytes > 0) {
    const uint8_t *from;
    size_t run;
    while (!has_ended(link) && link->come == 0) line->wait();
    if (has_ended(link)) break;
    from = &link->come_frames[link->come_first][link->read];
    run = (size_t)link->come_nbytes[link->come_first] - link->read;
    if (run > nbytes) run = nbytes;
    line->unlock();
    memcpy(to, from, run);
    line->lock();
    if (has_ended(link)) break;
    to += run;
    nbytes -= run;
    link->read = (uint16_t)(link->read + run);
    if (link->read == link->come_nbytes[link->come_first]) release(link);
  }
  line->unlock();
  return nbytes == 0 ? RPCFLOW_OK : RPCFLOW_ENDED;
}

/* The slot that is being filled is a frame to be sent. */
static void queue_slot(rpcflow_link *link) {
  rpcflow_link_slot *slot = &link->slots[rpcflow_link_slot_at(link, link->queued)];
  slot->nbytes = link->fill;
  link->fill = 0;
  link->queued++;
  link->line->kick();
}

static int link_write(void *context, const void *buffer, size_t nbytes) {
  rpcflow_link *link = (rpcflow_link *)context;
  const rpcflow_line *line = link->line;
  const uint8_t *from = (const uint8_t *)buffer;
  line->lock();
  while (nbytes > 0) {
    size_t run = 0;
    uint8_t slot = rpcflow_link_slot_at(link, link->queued);
    if (has_ended(link)) break;
    if (link->queued == RPCFLOW_LINK_SEND_FRAMES || slot == link->sending) { /* acknowledged while it was sent again */
      line->wait();
      continue;
    }
    if (link->fill < link->size) run = (size_t)link->size - link->fill;
    if (run > nbytes) run = nbytes;
    line->unlock();
    memcpy(&link->sent_frames[slot][link->fill], from, run);
    line->lock();
    if (has_ended(link)) break;
    link->fill = (uint16_t)(link->fill + run);
    from += run;
    nbytes -= run;
    if (link->fill >= link->size) queue_slot(link);
  }
  line->unlock();
  return nbytes == 0 ? RPCFLOW_OK : RPCFLOW_ENDED;
}

static int link_flush(void *context) {
  rpcflow_link *link = (rpcflow_link *)context;
  int ended;
  link->line->lock();
  ended = has_ended(link);
  if (!ended && link->fill > 0) queue_slot(link);
  link->line->unlock();
  return ended ? RPCFLOW_ENDED : RPCFLOW_OK;
}

void rpcflow_link_accept(rpcflow_link *link) {
  const rpcflow_line *line = link->line;
  line->lock();
  while (!(link->open && link->fresh)) {
    if (link->open) { /* the one served last: what it still sends is for nobody, what it has to get is sent first */
      while (link->come > 0) release(link);
      if (link->queued == 0 || link->silent == RPCFLOW_LINK_RETRIES) {
        link->open = 0;
        rpcflow_link_reset(link, link->session, RPCFLOW_LINK_CLOSED);
        line->kick();
      }
    }
    line->wait();
  }
  link->fresh = 0;
  link->fill = 0;
  link->serving = link->epoch;
  line->unlock();
}

rpcflow_stream rpcflow_link_stream(rpcflow_link *link) {
  rpcflow_stream stream;
  stream.context = link;
  stream.read = link_read;
  stream.write = link_write;
  stream.flush = link_flush;
  return stream;
}
