/* SPDX-License-Identifier: Apache-2.0 */
/* The line side of the link: what comes, what goes out, and when. See docs/reference/link.md. */
#include "link_machine.h"

enum { DUE_RESET = 1, DUE_WELCOME = 2, DUE_NAK = 4, DUE_ACK = RPCFLOW_LINK_DUE_ACK };
enum { UNKNOWN_SESSION = 0, STARTED = 1, OTHER_VERSION = 3 };
enum { SMALLEST_PAYLOAD = 32, PAYLOAD_GROWTH = 4, MOST_CREDIT = 64 };
enum { ACK_DELAY_MS = 10, TIMER_FIRST_MS = 300, TIMER_LEAST_MS = 30, TIMER_MOST_MS = 2000 };
enum { RETRIES = RPCFLOW_LINK_RETRIES };

/* What this costs beyond its buffers, where pointers have 32 bits. */
#define SIZE_OF(field) sizeof(((rpcflow_link *)0)->field)
#define STATE_NBYTES \
  (sizeof(rpcflow_link) - SIZE_OF(come_frames) - SIZE_OF(come_nbytes) - SIZE_OF(sent_frames) - SIZE_OF(slots))
typedef char rpcflow_link_is_small[sizeof(void *) != 4 || STATE_NBYTES < 200 ? 1 : -1];
typedef char rpcflow_link_slot_is_small[sizeof(rpcflow_link_slot) == 8 ? 1 : -1];

/* Numbers count modulo 256 and are never more than 64 apart: whether `a` stands behind `b`. */
static int is_behind(uint8_t a, uint8_t b) { return (uint8_t)(a - b - 1u) < 127u; }

/* Slot of the frame that is `ahead` of the oldest one. */
uint8_t rpcflow_link_slot_at(const rpcflow_link *link, uint32_t ahead) {
  return (uint8_t)((link->first + ahead) % RPCFLOW_LINK_SEND_FRAMES);
}

static uint8_t credit_of(const rpcflow_link *link) { return (uint8_t)(RPCFLOW_LINK_RECEIVE_FRAMES - link->come); }

/* Place of the frame that is coming, if there is room for it. */
static uint32_t place_of_next(const rpcflow_link *link) {
  return ((uint32_t)link->come_first + link->come) % RPCFLOW_LINK_RECEIVE_FRAMES;
}

void rpcflow_link_reset(rpcflow_link *link, uint16_t session, uint8_t reason) {
  link->reset_session = session;
  link->reset_reason = reason;
  link->due |= DUE_RESET;
}

void rpcflow_link_start(rpcflow_link *link, const rpcflow_line *line, uint32_t now_ms) {
  memset(link, 0, sizeof *link);
  link->line = line;
  link->now_ms = now_ms;
  link->sending = RPCFLOW_LINK_NO_SLOT;
  rpcflow_frame_in_start(&link->in);
  rpcflow_link_reset(link, 0, STARTED);
}

/* ---- what comes ---- */

/* The timer of the oldest frame under way begins anew, with the time that the line seems to take. */
static void ease(rpcflow_link *link) {
  link->patience_ms = link->timer_ms;
  link->eased_ms = link->now_ms;
}

static void begin_session(rpcflow_link *link, uint16_t session, uint16_t payload_nbytes) {
  link->session = session;
  link->open = 1;
  link->fresh = 1;
  link->epoch++;
  link->due = DUE_WELCOME;
  link->wanted = link->unsaid = link->refused = link->taken = 0;
  link->come_first = link->come = 0;
  link->read = 0;
  link->first = link->queued = link->under_way = link->next = link->base = 0;
  link->allowed = link->silent = link->measured = 0;
  link->timer_ms = TIMER_FIRST_MS;
  ease(link);
  link->limit = payload_nbytes < RPCFLOW_LINK_PAYLOAD_NBYTES ? payload_nbytes : RPCFLOW_LINK_PAYLOAD_NBYTES;
  link->size = link->limit;
}

/* The next frames to go out are those under way, from the oldest on. Long ones may be what the line does not carry. */
static void send_again(rpcflow_link *link) {
  link->next = 0;
  link->size = link->size / 2 > SMALLEST_PAYLOAD ? link->size / 2 : SMALLEST_PAYLOAD;
}

static uint16_t bounded(uint32_t milliseconds) {
  if (milliseconds < TIMER_LEAST_MS) return TIMER_LEAST_MS;
  return milliseconds < TIMER_MOST_MS ? (uint16_t)milliseconds : (uint16_t)TIMER_MOST_MS;
}

/* RFC 6298, in whole numbers. */
static void measure(rpcflow_link *link, const rpcflow_link_slot *slot) {
  uint32_t trip = (uint16_t)(link->now_ms - slot->sent_ms);
  if (trip > TIMER_MOST_MS) trip = TIMER_MOST_MS;
  if (!link->measured) {
    link->trip = (uint16_t)(trip * 8u);
    link->deviation = (uint16_t)(trip * 2u);
    link->measured = 1;
  } else {
    uint32_t mean = link->trip / 8u;
    uint32_t off = trip > mean ? trip - mean : mean - trip;
    link->deviation = (uint16_t)(link->deviation - link->deviation / 4u + off);
    link->trip = (uint16_t)(link->trip - mean + trip);
  }
  link->timer_ms = bounded(link->trip / 8u + link->deviation);
}

static void acknowledge(rpcflow_link *link, uint8_t count) {
  const rpcflow_link_slot *newest = &link->slots[rpcflow_link_slot_at(link, count - 1u)];
  uint32_t size = link->size + (uint32_t)count * PAYLOAD_GROWTH;
  if (!newest->sent_again) {
    measure(link, newest);
    link->patience_ms = link->timer_ms; /* else it stays doubled: the time may have been too short from the start */
  }
  link->eased_ms = link->now_ms;
  link->first = rpcflow_link_slot_at(link, count);
  link->base = (uint8_t)(link->base + count);
  link->queued = (uint8_t)(link->queued - count);
  link->under_way = (uint8_t)(link->under_way - count);
  link->next = link->next > count ? (uint8_t)(link->next - count) : 0;
  link->size = (uint16_t)(size < link->limit ? size : link->limit);
}

/* Any frame of the session says what has arrived and what there is room for. */
static void hear(rpcflow_link *link) {
  uint8_t wanted = link->in.fields[RPCFLOW_FRAME_WANTED], credit = link->in.fields[RPCFLOW_FRAME_CREDIT];
  uint8_t arrived = (uint8_t)(wanted - link->base);
  if (link->silent == RETRIES) ease(link);
  link->silent = 0;
  if (arrived > link->under_way) return; /* of a frame that was acknowledged before, or never sent */
  if (arrived) acknowledge(link, arrived);
  if (credit > MOST_CREDIT) credit = MOST_CREDIT;
  /* Room once told of stays: a frame that says less is an older one. */
  if (is_behind((uint8_t)(wanted + credit), link->allowed)) link->allowed = (uint8_t)(wanted + credit);
}

/* What came was damaged, or a frame before it is missing. */
static void refuse(rpcflow_link *link) {
  link->due |= DUE_NAK;
  link->refused = 1;
}

static void take_data(rpcflow_link *link) {
  uint8_t number = link->in.fields[RPCFLOW_FRAME_NUMBER];
  if (number != link->wanted) {
    if (!is_behind(number, link->wanted)) {
      link->due |= DUE_ACK;
    } else if (!link->refused) {
      refuse(link);
    }
  } else if (!link->placed) {
    link->due |= DUE_ACK;
  } else {
    link->come_nbytes[place_of_next(link)] = link->in.nbytes; /* the bytes are there already */
    link->come++;
    link->wanted++;
    link->taken = 1;
    link->refused = 0;
    link->due &= (uint8_t)~DUE_NAK;
    if (link->unsaid++ == 0) link->unsaid_ms = link->now_ms;
    if (link->unsaid >= 2) link->due |= DUE_ACK;
  }
}

static void take_hello(rpcflow_link *link, uint16_t session) {
  const uint8_t *payload = &link->in.fields[RPCFLOW_FRAME_PAYLOAD];
  uint16_t payload_nbytes = (uint16_t)(payload[1] | payload[2] << 8);
  if (payload[0] != RPCFLOW_LINK_VERSION) {
    rpcflow_link_reset(link, session, OTHER_VERSION);
  } else if (session != 0 && payload_nbytes >= SMALLEST_PAYLOAD) {
    if (!link->open || session != link->session) {
      begin_session(link, session, payload_nbytes);
      hear(link);
    } else if (!link->taken) {
      link->due |= DUE_WELCOME;
    }
  }
}

static void take_frame(rpcflow_link *link) {
  const uint8_t *fields = link->in.fields;
  uint8_t kind = fields[RPCFLOW_FRAME_KIND];
  uint16_t session = (uint16_t)(fields[RPCFLOW_FRAME_SESSION] | fields[RPCFLOW_FRAME_SESSION + 1] << 8);
  int ours = link->open && session == link->session;
  if (kind == RPCFLOW_FRAME_HELLO) {
    take_hello(link, session);
  } else if (kind == RPCFLOW_FRAME_RESET) {
    if (ours) link->open = 0;
  } else if (kind == RPCFLOW_FRAME_WELCOME) {
    /* is for hosts */
  } else if (!ours) {
    rpcflow_link_reset(link, session, UNKNOWN_SESSION);
  } else {
    hear(link);
    if (kind == RPCFLOW_FRAME_DATA) {
      take_data(link);
    } else if (kind == RPCFLOW_FRAME_PING) {
      link->due |= DUE_ACK;
    } else if (kind == RPCFLOW_FRAME_NAK) {
      if (link->under_way == 0 || fields[RPCFLOW_FRAME_WANTED] != link->base) {
        link->due |= DUE_ACK; /* what was damaged was no DATA frame of ours */
      } else if (link->next > 0 && link->sending != link->first) {
        send_again(link); /* else that is what is going on */
      }
    }
  }
}

void rpcflow_link_receive(rpcflow_link *link, uint8_t byte) {
  switch (rpcflow_frame_in_byte(&link->in, byte)) {
    case RPCFLOW_CAME_PAYLOAD:
      /* Straight to its place, if it has one from its first byte on; it counts only if the frame proves right, and is
       * the one wanted. */
      if (link->in.at == 0) link->placed = link->come < RPCFLOW_LINK_RECEIVE_FRAMES;
      if (link->placed) link->come_frames[place_of_next(link)][link->in.at] = link->in.payload;
      break;
    case RPCFLOW_CAME_FRAME:
      take_frame(link);
      break;
    case RPCFLOW_CAME_DAMAGED:
      if (link->open) refuse(link);
      break;
    default:
      break;
  }
}

void rpcflow_link_tick(rpcflow_link *link, uint32_t now_ms) {
  link->now_ms = now_ms;
  if (!link->open) return;
  if (link->unsaid && now_ms - link->unsaid_ms >= ACK_DELAY_MS) link->due |= DUE_ACK;
  /* The oldest frame under way, if it is not about to go out anyway; a host that does not listen is left in peace. */
  if (link->next > 0 && link->sending != link->first && link->silent < RETRIES) {
    uint16_t since_sent = (uint16_t)(now_ms - link->slots[link->first].sent_ms);
    if (since_sent >= link->patience_ms && now_ms - link->eased_ms >= link->patience_ms) {
      send_again(link);
      link->silent++;
      link->patience_ms = bounded(link->patience_ms * 2u);
    }
  }
}

/* ---- what goes out ---- */

static void start_frame(rpcflow_link *link, uint8_t kind, uint16_t session, uint8_t number, const uint8_t *payload,
                        uint16_t nbytes) {
  uint8_t *fields = link->out.fields;
  fields[RPCFLOW_FRAME_KIND] = kind;
  fields[RPCFLOW_FRAME_SESSION] = (uint8_t)session;
  fields[RPCFLOW_FRAME_SESSION + 1] = (uint8_t)(session >> 8);
  fields[RPCFLOW_FRAME_NUMBER] = number;
  fields[RPCFLOW_FRAME_WANTED] = fields[RPCFLOW_FRAME_CREDIT] = 0;
  if (kind != RPCFLOW_FRAME_RESET) {
    fields[RPCFLOW_FRAME_WANTED] = link->wanted;
    fields[RPCFLOW_FRAME_CREDIT] = credit_of(link);
    link->unsaid = 0;
    link->due &= (uint8_t)~DUE_ACK;
  }
  rpcflow_frame_out_start(&link->out, payload, nbytes);
}

static int start_urgent(rpcflow_link *link) {
  static const uint8_t welcome[] = {RPCFLOW_LINK_VERSION, RPCFLOW_LINK_PAYLOAD_NBYTES & 255,
                                    RPCFLOW_LINK_PAYLOAD_NBYTES >> 8};
  static const uint8_t resets[][2] = {
      {0, RPCFLOW_LINK_VERSION}, {1, RPCFLOW_LINK_VERSION}, {2, RPCFLOW_LINK_VERSION}, {3, RPCFLOW_LINK_VERSION}};
  if (link->due & DUE_RESET) {
    link->due &= (uint8_t)~DUE_RESET;
    start_frame(link, RPCFLOW_FRAME_RESET, link->reset_session, 0, resets[link->reset_reason], sizeof resets[0]);
  } else if (!link->open) {
    return 0;
  } else if (link->due & DUE_WELCOME) {
    link->due &= (uint8_t)~DUE_WELCOME;
    start_frame(link, RPCFLOW_FRAME_WELCOME, link->session, 0, welcome, sizeof welcome);
  } else if (link->due & DUE_NAK) {
    link->due &= (uint8_t)~DUE_NAK;
    start_frame(link, RPCFLOW_FRAME_NAK, link->session, 0, link->out.fields, 0);
  } else {
    return 0;
  }
  return 1;
}

static int start_ack(rpcflow_link *link) {
  if (!link->open || !(link->due & DUE_ACK)) return 0;
  start_frame(link, RPCFLOW_FRAME_ACK, link->session, 0, link->out.fields, 0);
  return 1;
}

static int start_data(rpcflow_link *link) {
  uint8_t ahead = link->next;
  rpcflow_link_slot *slot;
  if (!link->open || ahead >= link->queued || ahead >= (uint8_t)(link->allowed - link->base)) return 0;
  link->sending = rpcflow_link_slot_at(link, ahead);
  slot = &link->slots[link->sending];
  slot->sent_again = ahead < link->under_way;
  link->next = (uint8_t)(ahead + 1u);
  if (!slot->sent_again) link->under_way = link->next;
  start_frame(link, RPCFLOW_FRAME_DATA, link->session, (uint8_t)(link->base + ahead), link->sent_frames[link->sending],
              slot->nbytes);
  return 1;
}

int rpcflow_link_transmit(rpcflow_link *link) {
  int byte;
  if (!link->out.busy && !start_urgent(link) && !start_data(link) && !start_ack(link)) return -1; /* DATA is ACK, too */
  byte = rpcflow_frame_out_byte(&link->out);
  if (!link->out.busy && link->sending != RPCFLOW_LINK_NO_SLOT) {
    link->slots[link->sending].sent_ms = (uint16_t)link->now_ms;
    link->sending = RPCFLOW_LINK_NO_SLOT;
  }
  return byte;
}
