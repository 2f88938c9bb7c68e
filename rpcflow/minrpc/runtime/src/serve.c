/* SPDX-License-Identifier: Apache-2.0 */
/* A session: packets in, each answered before the next is looked at. */
#include <string.h>

#include "core.h"

rpcflow_state rpcflow_core;

enum {
  SHUTDOWN = 1,
  INIT_SERVER,
  CALL_FUNC,
  RETURN,
  EXCEPTION,
  COPY_FROM_REMOTE,
  COPY_TO_REMOTE,
  COPY_ACK,
  GET_GLOBAL_FUNC,
  FREE_HANDLE,
  SET_DEVICE,
  GET_ATTR,
  ALLOC_DATA,
  FREE_DATA,
  STREAM_SYNC,
  COPY_AMONG,
  ALLOC_WITH_SCOPE,
  CREATE_STREAM,
  FREE_STREAM,
  SET_STREAM,
  GET_STREAM
};
enum { EXIST = 0, TOTAL_MEMORY = 14, FREE_MEMORY = 15 };

#define VERSION "0.8.0"
/* Longer packets cannot be meant: what comes is no packet at all. */
#define NONSENSE (sizeof(size_t) == 8 ? SIZE_MAX >> 16 : SIZE_MAX)

void rpcflow_start(const rpcflow_machine *machine) { rpcflow_core.machine = *machine; }

/* Take so many bytes of the packet off the line. */
static void read_in(void *buffer, size_t nbytes) {
  if (rpcflow_core.status == RPCFLOW_OK && nbytes) {
    rpcflow_core.status = rpcflow_core.stream->read(rpcflow_core.stream->context, buffer, nbytes);
    if (rpcflow_core.status == RPCFLOW_ENDED) rpcflow_core.status = RPCFLOW_FAILED; /* in the middle of a packet */
  }
  rpcflow_core.left -= nbytes;
}

/* The same into the packet buffer, behind what is there; -1 if the packet has no more or the line does not. */
static int fill(size_t nbytes) {
  if (nbytes > rpcflow_core.left) return rpcflow_cut_short();
  if (nbytes > sizeof rpcflow_core.packet - rpcflow_core.used)
    return rpcflow_no_room("RPCFLOW_PACKET_NBYTES", RPCFLOW_PACKET_NBYTES, rpcflow_core.used + rpcflow_core.left);
  read_in(rpcflow_core.end, nbytes);
  rpcflow_core.used += nbytes;
  rpcflow_core.end += nbytes;
  return rpcflow_core.status ? -1 : 0;
}

static void drain(void) {
  while (rpcflow_core.left && rpcflow_core.status == RPCFLOW_OK) {
    size_t step = rpcflow_core.left < sizeof rpcflow_core.packet ? rpcflow_core.left : sizeof rpcflow_core.packet;
    read_in(rpcflow_core.packet, step);
  }
}

static int init_server(void) {
  uint64_t nbytes = rpcflow_take(8);
  const uint8_t *version = rpcflow_core.at;
  if (nbytes > (size_t)(rpcflow_core.end - version)) rpcflow_core.cut = 1;
  else rpcflow_core.at += nbytes;
  if (rpcflow_core.cut) return rpcflow_take_end();
  if (nbytes != sizeof VERSION - 1 || !rpcflow_begins((const char *)version, VERSION))
    return rpcflow_error("the protocol's version here is " VERSION ", the client's is another");
  if (rpcflow_take_values()) return -1;
  if (rpcflow_core.count && (rpcflow_core.args[0].type != RPCFLOW_STRING ||
                             !rpcflow_same(rpcflow_core.args[0].u.as_string, "rpc.LocalSession")))
    return rpcflow_error("rpc.LocalSession is the only constructor of sessions here");
  if (rpcflow_core.begun) return rpcflow_error("the session has already been initialized");
  rpcflow_core.begun = 1;
  return 0;
}

static int call_function(void) {
  rpcflow_target target;
  uint64_t handle = rpcflow_take(8);
  if (rpcflow_take_values() || rpcflow_resolve(handle, &target) || rpcflow_check_arguments(target.trust)) return -1;
  rpcflow_error_clear();
  if (target.function(target.self, rpcflow_core.args, rpcflow_core.count, &rpcflow_core.result)) return -1;
#if RPCFLOW_LIBRARY
  if (target.trust >= RPCFLOW_FOREIGN && rpcflow_core.result.type >= RPCFLOW_OBJECTS) {
    rpcflow_core.object = 1;
    return 0;
  }
#endif
  if (target.trust != RPCFLOW_BUILTIN && rpcflow_core.result.type >= RPCFLOW_OBJECTS)
    return rpcflow_untravelled(rpcflow_core.result.type); /* only this runtime itself can give handles */
  return 0;
}

/* The tensor of a copy, which the packet has next, and how many bytes; where they are, or NULL. */
static uint8_t *copy_place(size_t *nbytes) {
  rpcflow_tensor *tensor;
  uint64_t wanted;
  uint32_t ndim;
  if (fill(24)) return NULL;
  memcpy(&ndim, rpcflow_core.at + 16, 4);
  if (ndim > RPCFLOW_TENSOR_NBYTES / 8) {
    rpcflow_error("a tensor of %lu dimensions", (unsigned long)ndim);
    return NULL;
  }
  if (fill(8 * (size_t)ndim + 16) || rpcflow_take_tensor(&tensor)) return NULL;
  wanted = rpcflow_take(8);
  *nbytes = wanted > SIZE_MAX ? SIZE_MAX : (size_t)wanted;
  return rpcflow_tensor_place(tensor, *nbytes);
}

static int too_long(void) { return rpcflow_error("the packet is longer than its contents"); }

static int copy_to(void) {
  size_t nbytes;
  uint8_t *place = copy_place(&nbytes);
  if (!place) return -1;
  if (nbytes > rpcflow_core.left) return rpcflow_cut_short();
  if (nbytes < rpcflow_core.left) return too_long();
  read_in(place, nbytes);
  return 0;
}

static int copy_from(void) {
  size_t nbytes;
  uint8_t *place = copy_place(&nbytes);
  if (!place) return -1;
  if (rpcflow_core.left) return too_long();
  rpcflow_core.result_bytes.data = (const char *)place;
  rpcflow_core.result_bytes.nbytes = nbytes;
  rpcflow_core.acknowledge = 1;
  return 0;
}

static int copy_among(const rpcflow_tensor *from, const rpcflow_tensor *to) {
  size_t nbytes = rpcflow_tensor_nbytes(from);
  uint8_t *source, *target;
  if (nbytes != rpcflow_tensor_nbytes(to)) return rpcflow_error("the tensors of a copy are not of the same size");
  source = rpcflow_tensor_place(from, nbytes);
  if (!source) return -1;
  target = rpcflow_tensor_place(to, nbytes);
  if (!target) return -1;
  rpcflow_move(target, source, nbytes);
  return 0;
}

static int give_memory(uint64_t nbytes) {
  void *address = rpcflow_allocate(nbytes > SIZE_MAX ? SIZE_MAX : (size_t)nbytes);
  rpcflow_core.result.type = RPCFLOW_POINTER;
  rpcflow_core.result.u.as_int = (int64_t)(uintptr_t)address;
  return address ? 0 : -1;
}

static void get_attribute(const rpcflow_device *device, int64_t kind) {
  size_t largest;
  rpcflow_value *result = &rpcflow_core.result;
  result->type = RPCFLOW_INT;
  if (kind == EXIST)
    result->u.as_int = device->type == 1 && device->id == 0;
  else if (kind == TOTAL_MEMORY)
    result->u.as_int = (int64_t)rpcflow_core.machine.memory_nbytes;
  else if (kind == FREE_MEMORY)
    result->u.as_int = (int64_t)rpcflow_free_nbytes(&largest);
  else
    result->type = RPCFLOW_NONE;
}

static int system_call(uint32_t code) {
  static const char signatures[][5] = {"8", "4", "6", "61", "611*", "64", "64", "774", "7*", "6", "64", "64", "6"};
  const rpcflow_value *args = rpcflow_core.args;
  const rpcflow_device *device = &args[0].u.as_device;
  const char *scope;
  if (rpcflow_take_values() || rpcflow_expect(signatures[code - GET_GLOBAL_FUNC], args, rpcflow_core.count)) return -1;
  if (args[0].type == RPCFLOW_TENSOR) device = &args[0].u.as_tensor->device;
  if (code > FREE_HANDLE && !(code == GET_ATTR && args[1].u.as_int == EXIST) && (device->type != 1 || device->id != 0))
    return rpcflow_no_device();
  switch (code) {
    case GET_GLOBAL_FUNC:
      rpcflow_core.result.type = RPCFLOW_POINTER;
      rpcflow_core.result.u.as_int = (int64_t)rpcflow_find(args[0].u.as_string);
#if RPCFLOW_LIBRARY
      if (!rpcflow_core.result.u.as_int && rpcflow_core.message_nbytes) return -1; /* there is no place for one more */
#endif
      return 0;
    case FREE_HANDLE:
      return rpcflow_free_handle((uint64_t)args[0].u.as_int);
    case GET_ATTR:
      get_attribute(device, args[1].u.as_int);
      return 0;
    case ALLOC_DATA:
      if (args[2].u.as_int > RPCFLOW_ALIGNMENT)
        return rpcflow_error("memory here is aligned to %lu bytes", (unsigned long)RPCFLOW_ALIGNMENT);
      return give_memory((uint64_t)args[1].u.as_int);
    case FREE_DATA:
      if (!args[1].u.as_int) return 0;
      if (!rpcflow_is_module(args[1].u.as_pointer) && rpcflow_release(args[1].u.as_pointer) == 0) return 0;
      return rpcflow_error("there are no data at that address to be freed");
    case COPY_AMONG:
      return copy_among(args[0].u.as_tensor, args[1].u.as_tensor);
    case ALLOC_WITH_SCOPE:
      scope = args[1].type == RPCFLOW_STRING ? args[1].u.as_string : "";
      if ((args[1].type != RPCFLOW_STRING && args[1].type != RPCFLOW_NONE) ||
          (*scope && !rpcflow_same(scope, "global")))
        return rpcflow_error("memory here has no scope %s", scope);
      return give_memory(rpcflow_tensor_nbytes(args[0].u.as_tensor));
    case CREATE_STREAM:
    case GET_STREAM:
      rpcflow_core.result.type = RPCFLOW_POINTER; /* 0: all is done in order here */
      return 0;
    default: /* there is nothing to set or to wait for */
      return 0;
  }
}

static int request(uint32_t *code) {
  if (fill(4)) return -1;
  *code = (uint32_t)rpcflow_take(4);
  if (*code < SHUTDOWN || *code == RETURN || *code == EXCEPTION || *code == COPY_ACK || *code > GET_STREAM)
    return rpcflow_error("a packet of code %lu: there is no such request", (unsigned long)*code);
  if (*code == SHUTDOWN) {
    rpcflow_core.ended = 1;
    return 0;
  }
  if (*code != INIT_SERVER && !rpcflow_core.begun) return rpcflow_error("a request before InitServer");
  if (*code == COPY_TO_REMOTE) return copy_to();
  if (*code == COPY_FROM_REMOTE) return copy_from();
  if (fill(rpcflow_core.left)) return -1;
  if (*code == INIT_SERVER) return init_server();
  return *code == CALL_FUNC ? call_function() : system_call(*code);
}

static void serve_packet(void) {
  uint8_t head[12];
  uint32_t code = 0;
  int failed;
  rpcflow_core.at = rpcflow_core.end = rpcflow_core.packet;
  rpcflow_core.used = rpcflow_core.pooled = 0;
  rpcflow_core.cut = rpcflow_core.acknowledge = 0;
  rpcflow_core.result.type = RPCFLOW_NONE;
  rpcflow_core.result.small_nbytes = 0;
  rpcflow_core.result.u.as_int = 0;
  failed = request(&code);
  drain();
  if (rpcflow_core.ended) return;
#if RPCFLOW_LIBRARY
  if (rpcflow_core.object) {
    rpcflow_core.object = 0;
    failed = rpcflow_object_answer();
    if (!failed) return;
  }
#endif
  if (!failed && rpcflow_core.acknowledge) {
    uint64_t length = rpcflow_core.result_bytes.nbytes + (uint64_t)4;
    memcpy(head, &length, 8);
    code = COPY_ACK;
    memcpy(head + 8, &code, 4);
    rpcflow_write(head, sizeof head);
    rpcflow_write(rpcflow_core.result_bytes.data, rpcflow_core.result_bytes.nbytes);
  } else if (failed || rpcflow_answer(code == CALL_FUNC)) {
    rpcflow_answer_error();
  }
}

static void flush(void) {
  if (rpcflow_core.status == RPCFLOW_OK && rpcflow_core.stream->flush)
    rpcflow_core.status = rpcflow_core.stream->flush(rpcflow_core.stream->context);
}

static void free_all(void) {
  rpcflow_object_free_all();
  memset(rpcflow_core.evaluators, 0, sizeof rpcflow_core.evaluators);
#if RPCFLOW_MAX_MODULES > 0
  memset(rpcflow_core.modules, 0, sizeof rpcflow_core.modules);
#endif
  rpcflow_core.blocks_count = 0;
}

int rpcflow_serve(const rpcflow_stream *stream) {
  rpcflow_core.stream = stream;
  rpcflow_core.status = RPCFLOW_OK;
  rpcflow_core.begun = rpcflow_core.ended = 0;
  while (rpcflow_core.status == RPCFLOW_OK && !rpcflow_core.ended) {
    uint64_t length;
    rpcflow_core.status = stream->read(stream->context, &length, 8);
    if (rpcflow_core.status || !length) continue;
    if (length > NONSENSE) {
      rpcflow_error("what came is no packet");
      rpcflow_answer_error();
      flush();
      rpcflow_core.status = RPCFLOW_FAILED;
    } else {
      rpcflow_core.left = (size_t)length;
      serve_packet();
      flush();
    }
  }
  free_all();
  return rpcflow_core.status;
}
