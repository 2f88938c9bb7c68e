/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libFuzzer's entry for the link: the input says what the line, the clock, the host and the program do. Besides what
 * the sanitizers find, this must hold: counts stay within their buffers, all that goes out is whole frames, and the
 * program reads the bytes of a session's DATA frames in order and each once.
 *
 * clang -g -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -I include -I src \
 *     fuzz/link_fuzz.c src/link.c src/link_frame.c src/link_stream.c
 */
#include <stdlib.h>
#include <string.h>

#include "link_frame.h"

#define MUST(condition)        \
  do {                         \
    if (!(condition)) abort(); \
  } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t nbytes);

static struct {
  rpcflow_link link;
  rpcflow_frame_in out; /* reads what the link transmits */
  const uint8_t *at, *end;
  uint32_t now_ms;
  int locked;
  int raw;           /* bytes of any kind have come: frames may be anything */
  uint8_t accepted;  /* a session was, */
  uint16_t left;     /* bytes of a frame in it that have not been read, */
  uint8_t number;    /* and the number of that frame, or of the next one */
} fuzz;

static uint8_t take(void) { return fuzz.at < fuzz.end ? *fuzz.at++ : 0; }

static void lock(void) {
  MUST(!fuzz.locked);
  fuzz.locked = 1;
}

static void unlock(void) {
  MUST(fuzz.locked);
  fuzz.locked = 0;
}

static void kick(void) { MUST(fuzz.locked); }

static void send_frame(uint8_t kind, uint16_t session, uint8_t number, uint8_t wanted, uint8_t credit,
                       const uint8_t *payload, uint16_t payload_nbytes) {
  rpcflow_frame_out frame;
  uint8_t *fields = frame.fields;
  fields[RPCFLOW_FRAME_KIND] = kind;
  fields[RPCFLOW_FRAME_SESSION] = (uint8_t)session;
  fields[RPCFLOW_FRAME_SESSION + 1] = (uint8_t)(session >> 8);
  fields[RPCFLOW_FRAME_NUMBER] = number;
  fields[RPCFLOW_FRAME_WANTED] = wanted;
  fields[RPCFLOW_FRAME_CREDIT] = credit;
  rpcflow_frame_out_start(&frame, payload, payload_nbytes);
  while (frame.busy) rpcflow_link_receive(&fuzz.link, rpcflow_frame_out_byte(&frame));
}

static void send_hello(uint16_t session, uint8_t payload_nbytes) {
  uint8_t payload[3];
  payload[0] = RPCFLOW_LINK_VERSION;
  payload[1] = payload_nbytes;
  payload[2] = 0;
  send_frame(RPCFLOW_FRAME_HELLO, session, 0, 0, 2, payload, sizeof payload);
}

/* The program would sleep: a new session ends that. */
static void wait(void) {
  MUST(fuzz.locked);
  send_hello((uint16_t)(fuzz.link.session % 65535u + 1u), 64);
}

static const rpcflow_line line = {lock, unlock, kick, wait};

/* A frame of the session, or nearly; its payload says how long it is and which. */
static void send_some_frame(uint8_t kind) {
  uint8_t payload[80], wanted, number;
  uint16_t session = (uint16_t)(fuzz.link.session + (take() == 255)), count = 0, i;
  wanted = (uint8_t)(fuzz.link.base + take() % 8);
  number = (uint8_t)(fuzz.link.wanted + (take() + 1) % 4 - 1);
  if (kind == RPCFLOW_FRAME_DATA) {
    count = (uint16_t)(2 + take() % 70); /* some of them too long */
    payload[0] = (uint8_t)count;
    payload[1] = number;
    for (i = 2; i < count; i++) payload[i] = (uint8_t)(number + i);
  }
  send_frame(kind, session, number, wanted, take(), payload, count);
}

static void transmit(unsigned most) {
  int byte;
  while (most-- && (byte = rpcflow_link_transmit(&fuzz.link)) >= 0) {
    MUST(rpcflow_frame_in_byte(&fuzz.out, (uint8_t)byte) != RPCFLOW_CAME_DAMAGED);
  }
}

static void check_read(const uint8_t *bytes, size_t count) {
  static uint16_t whole;
  for (; count; count--, bytes++) {
    if (fuzz.left == 0) {
      fuzz.left = whole = *bytes;
    } else if (fuzz.left == whole - 1) {
      MUST(*bytes == fuzz.number);
    } else {
      MUST(*bytes == (uint8_t)(fuzz.number + whole - fuzz.left));
    }
    if (--fuzz.left == 0) fuzz.number++;
  }
}

static void read_some(rpcflow_stream *stream) {
  uint8_t buffer[32];
  size_t count = 1u + take() % sizeof buffer, there = 0;
  uint16_t epoch = fuzz.link.epoch;
  unsigned i;
  for (i = 0; i < fuzz.link.come; i++) {
    there += fuzz.link.come_nbytes[(fuzz.link.come_first + i) % RPCFLOW_LINK_RECEIVE_FRAMES];
  }
  there -= fuzz.link.read;
  if (stream->read(stream->context, buffer, count) == RPCFLOW_OK) {
    MUST(count <= there && epoch == fuzz.link.epoch);
    if (!fuzz.raw) check_read(buffer, count);
  } else {
    fuzz.accepted = 0;
  }
}

static void write_some(rpcflow_stream *stream) {
  static const uint8_t bytes[200] = {0x7D, 0x7E, 0x11, 0x13};
  if (stream->write(stream->context, bytes, take() % sizeof bytes) != RPCFLOW_OK) fuzz.accepted = 0;
}

static void check_link(void) {
  const rpcflow_link *link = &fuzz.link;
  MUST(!fuzz.locked);
  MUST(link->come <= RPCFLOW_LINK_RECEIVE_FRAMES && link->come_first < RPCFLOW_LINK_RECEIVE_FRAMES);
  MUST(link->queued <= RPCFLOW_LINK_SEND_FRAMES && link->first < RPCFLOW_LINK_SEND_FRAMES);
  MUST(link->next <= link->under_way && link->under_way <= link->queued);
  MUST(link->fill <= RPCFLOW_LINK_PAYLOAD_NBYTES && link->limit <= RPCFLOW_LINK_PAYLOAD_NBYTES);
  MUST(link->size <= link->limit && (!link->open || link->size >= 32));
}

static void step(rpcflow_stream *stream) {
  uint8_t what = take(), count;
  switch (what % 12) {
    case 0: /* noise */
      fuzz.raw = 1;
      for (count = take(); count && fuzz.at < fuzz.end; count--) rpcflow_link_receive(&fuzz.link, take());
      break;
    case 1:
      send_hello(take(), take());
      break;
    case 2:
      fuzz.now_ms += take();
      rpcflow_link_tick(&fuzz.link, fuzz.now_ms);
      break;
    case 3:
      transmit(take());
      break;
    case 4:
      transmit(1u << 12);
      break;
    case 5:
      rpcflow_link_accept(&fuzz.link);
      fuzz.accepted = 1;
      fuzz.left = 0;
      fuzz.number = 0;
      fuzz.raw = fuzz.link.taken; /* frames that came before could have been anything */
      break;
    case 6:
      if (fuzz.accepted) read_some(stream);
      break;
    case 7:
      if (fuzz.accepted) write_some(stream);
      break;
    case 8:
      if (fuzz.accepted && stream->flush(stream->context) != RPCFLOW_OK) fuzz.accepted = 0;
      break;
    case 9:
      send_some_frame(take() % 9);
      break;
    default:
      send_some_frame(RPCFLOW_FRAME_DATA);
      break;
  }
  check_link();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t nbytes) {
  rpcflow_stream stream;
  memset(&fuzz, 0, sizeof fuzz);
  fuzz.at = data;
  fuzz.end = data + nbytes;
  fuzz.now_ms = 0xFFFFFF00u;
  rpcflow_frame_in_start(&fuzz.out);
  rpcflow_link_start(&fuzz.link, &line, fuzz.now_ms);
  stream = rpcflow_link_stream(&fuzz.link);
  while (fuzz.at < fuzz.end) step(&stream);
  return 0;
}
