/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libFuzzer's way into the runtime: an input is a session. Each packet is made when the server reads it, so that it can
 * name addresses and handles that earlier answers gave; or is raw bytes. What is checked beyond what the sanitizers
 * see: one answer to each request, and answers that are packets.
 *
 * clang -g -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -I include -I src fuzz/runtime_fuzz.c
 * src/{text,error,memory,values,answer,functions,evaluator,modules,half,ffi,serve}.c -o runtime_fuzz
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core.h"

enum { MEMORY_NBYTES = 16384, MOST_PACKET_NBYTES = 4096, SEEN = 32, MOST_CALLS = 2000 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t nbytes);
void TVMFFIErrorSetRaisedFromCStr(const char *kind, const char *message);
void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count);
int TVMFFIEnvModRegisterSystemLibSymbol(const char *name, void *symbol);
void *TVMBackendAllocWorkspace(int device_type, int device_id, uint64_t nbytes, int code, int bits);
int TVMBackendFreeWorkspace(int device_type, int device_id, void *address);

#define CHECK(condition)                                            \
  do                                                                \
    if (!(condition)) fprintf(stderr, "failed: %s\n", #condition), abort(); \
  while (0)

/* ---- what is left of the input */

static const uint8_t *input;
static size_t input_nbytes;

static uint64_t next(unsigned nbytes) {
  uint64_t value = 0;
  for (; nbytes && input_nbytes; nbytes--, input_nbytes--) value = value << 8 | *input++;
  return value;
}

/* ---- the packet that the server reads now */

static uint8_t packet[MOST_PACKET_NBYTES];
static size_t packet_nbytes, packet_begin;
static unsigned requests, answers, calls;
static int lost_count; /* where packets begin is no longer what was meant */
static uint64_t seen[SEEN], latest;
static unsigned seen_count;
static unsigned loading; /* of the packets that load a module, which come next */

static void put(const void *data, size_t nbytes) {
  if (nbytes > sizeof packet - packet_nbytes) nbytes = sizeof packet - packet_nbytes;
  memcpy(packet + packet_nbytes, data, nbytes);
  packet_nbytes += nbytes;
}

static void put_number(uint64_t value, size_t nbytes) { put(&value, nbytes); }

static uint64_t some_address(void) {
  unsigned choice = (unsigned)next(1);
  if (choice < 160 && seen_count) return seen[choice % seen_count];
  if (choice < 192 && seen_count) return seen[choice % seen_count] + next(1);
  if (choice < 200) return (uintptr_t)rpcflow_core.machine.memory + next(2);
  if (choice < 208) return next(8);
  return choice & 7;
}

static uint64_t some_number(void) {
  static const uint64_t odd[] = {0,          1,          2,          7,          8,          63,
                                 64,         255,        4096,       65535,      1ULL << 31, 1ULL << 32,
                                 1ULL << 62, 1ULL << 63, UINT64_MAX, UINT64_MAX - 63};
  unsigned choice = (unsigned)next(1);
  if (choice < 128) return choice & 15;
  if (choice < 192) return odd[choice & 15];
  return next(choice & 7);
}

static const char *const words[] = {"echo", "write", "fail", "compiled", "rpc.LocalSession", "global", "0.8.0", "",
                                    "tvm.rpc.server.GetCRTMaxPacketSize", "tvm.rpc.server.ModuleGetFunction",
                                    "ffi.SystemLib", "runtime.RPCTimeEvaluator", "rpcflow.minrpc.load",
                                    "rpcflow.minrpc.build_id", "loaded", "12345678"};

static void put_text(void) {
  const char *word = words[next(1) & 15];
  put_number(strlen(word), 8);
  put(word, strlen(word));
}

static void put_tensor(void) {
  unsigned kind = (unsigned)next(1), ndim = kind & 3, i;
  put_number(some_address(), 8);
  put_number(kind & 4 ? next(1) & 3 : 1, 4);
  put_number(kind & 8 ? next(1) & 1 : 0, 4);
  put_number(kind & 16 ? next(2) : ndim, 4);
  put_number(kind & 32 ? next(4) : 0x00010801, 4);
  for (i = 0; i < ndim; i++) put_number(some_number(), 8);
  put_number(kind & 64 ? some_number() : 0, 8);
}

static void put_values(const char *types) {
  unsigned count = types ? (unsigned)strlen(types) : (unsigned)next(1) & 7, i;
  put_number(count, 4);
  for (i = 0; i < count; i++) {
    unsigned type = types ? (unsigned)(types[i] - '0') : (unsigned)next(1) % 16, inner;
    if (type == 13) type = 73;
    if (type == 14) type = 68;
    if (type == 15) type = (unsigned)next(2);
    put_number(type, 4);
    if (type == 0) continue;
    if (type == 7) {
      put_tensor();
    } else if (type == 8 || type == 9) {
      put_text();
    } else if (type == 11 || type == 12 || (type >= 64 && type != 68 && type != 73)) {
      inner = (unsigned)next(1);
      put_number(inner & 128 ? inner : 65 + (inner & 1), 4);
      put_text();
    } else if (type == 4 || type == 68 || type == 73) {
      put_number(some_address(), 8);
    } else if (type == 6) {
      put_number(1, 8);
    } else {
      put_number(some_number(), 8);
    }
  }
}

enum { IMAGE_NBYTES = 64 };

static void put_image_tensor(uint64_t address) {
  put_number(address, 8);
  put_number(1, 8);
  put_number(1, 4);
  put_number(0x00010801, 4);
  put_number(IMAGE_NBYTES, 8);
  put_number(0, 8);
}

/* Five packets: memory, an image with a table that is most often right, the loading of it, its function, a call. */
static void put_loading(void) {
  uintptr_t image[IMAGE_NBYTES / sizeof(uintptr_t)] = {1, 1, 0, 0, 0, 0, 0, 0};
  if (loading == 5) {
    put_number(13, 4);
    put_number(4, 4);
    put_number(6, 4);
    put_number(1, 8);
    put_number(1, 4);
    put_number(IMAGE_NBYTES, 8);
    put_number(1, 4);
    put_number(64, 8);
    put_number(5, 4);
    put_number(0x00010801, 8);
  } else if (loading == 4) {
    unsigned kind = (unsigned)next(1);
    image[2] = (uintptr_t)latest + 48;
    image[3] = (uintptr_t)latest + 49;
    image[4] = (uintptr_t)latest + 56;
    memcpy(&image[7], "loaded", 7);
    if (kind & 1) image[next(1) & 7] = (uintptr_t)some_number();
    if (kind & 2) image[2 + next(1) % 3] = (uintptr_t)latest + next(1);
    put_number(7, 4);
    put_image_tensor(latest);
    put_number(IMAGE_NBYTES, 8);
    put(image, sizeof image);
  } else if (loading == 2) {
    put_number(3, 4);
    put_number(1 << 16 | 1, 8);
    put_number(3, 4);
    put_number(73, 4);
    put_number(latest, 8);
    put_number(8, 4);
    put_number(6, 8);
    put("loaded", 6);
    put_number(0, 4);
  } else if (loading == 1) {
    put_number(3, 4);
    put_number(latest, 8);
    put_values(NULL);
  } else {
    put_number(3, 4);
    put_number(4 << 16 | 1, 8);
    put_number(2, 4);
    put_number(7, 4);
    put_image_tensor(latest);
    put_number(1, 4);
    put_number((next(1) & 7) ? 0 : some_number(), 8);
  }
  loading--;
}

static void make_packet(void) {
  static const char *const signatures[] = {"8", "4", "6", "61", "6115", "64", "64", "774", "78", "6", "64", "64", "6"};
  unsigned kind = (unsigned)next(1), code;
  if (!requests && kind < 240) kind = 20; /* little happens before InitServer */
  uint64_t length;
  packet_nbytes = 8;
  packet_begin = 0;
  if (!loading && requests && kind >= 170 && kind < 180) loading = 5;
  if (loading) {
    put_loading();
  } else if (kind < 16) { /* any bytes, rightly measured */
    for (length = next(1); length; length--) put_number(next(1), 1);
  } else if (kind < 20) { /* wrongly measured */
    length = next(8);
    memcpy(packet, &length, 8);
    while (input_nbytes && packet_nbytes < sizeof packet) put_number(next(1), 1);
    lost_count = 1;
    return;
  } else if (kind < 40) {
    put_number(2, 4);
    put_number(5, 8);
    put("0.8.0", 5);
    put_number(0, 4);
  } else if (kind < 130) {
    static const char *const typical[] = {NULL, "", "7", "77", "=8*", "=81111111118", "71", "8"};
    unsigned i, handle = (unsigned)next(1);
    char types[16];
    put_number(3, 4);
    if (handle & 128 && seen_count)
      put_number(seen[handle % seen_count], 8);
    else
      put_number((uint64_t)(handle & 7) << 16 | (1 + (handle >> 6 & 1)), 8);
    i = (unsigned)next(1) & 7;
    if (typical[i]) {
      char *star;
      strcpy(types, typical[i]);
      for (star = types; *star; star++)
        if (*star == '*') *star = '2';
        else if (*star == '=') *star = 'y';
      put_values(types);
    } else {
      put_values(NULL);
    }
  } else if (kind < 150) {
    put_number(6, 4);
    put_tensor();
    put_number(some_number(), 8);
  } else if (kind < 170) {
    put_number(7, 4);
    put_tensor();
    length = next(1);
    put_number(kind & 1 ? length : some_number(), 8);
    for (; length; length--) put_number(0, 1);
  } else {
    code = 9 + (unsigned)next(1) % 13;
    put_number(code, 4);
    put_values(kind & 7 ? signatures[code - 9] : NULL);
  }
  length = packet_nbytes - 8;
  if (kind == 255) { /* cut short: what follows is taken for its end */
    length += next(1);
    lost_count = 1;
  }
  memcpy(packet, &length, 8);
  if (length) requests++;
}

static int stream_read(void *context, void *buffer, size_t nbytes) {
  uint8_t *to = (uint8_t *)buffer;
  (void)context;
  while (nbytes) {
    size_t step = packet_nbytes - packet_begin;
    if (!step) {
      if (!input_nbytes) return to == buffer ? RPCFLOW_ENDED : RPCFLOW_FAILED;
      make_packet();
      continue;
    }
    if (step > nbytes) step = nbytes;
    memcpy(to, packet + packet_begin, step);
    packet_begin += step;
    to += step;
    nbytes -= step;
  }
  return RPCFLOW_OK;
}

/* ---- its answer */

static uint8_t answer[MEMORY_NBYTES + 1024];
static size_t answer_nbytes;

static int stream_write(void *context, const void *data, size_t nbytes) {
  (void)context;
  CHECK(nbytes <= sizeof answer - answer_nbytes);
  memcpy(answer + answer_nbytes, data, nbytes);
  answer_nbytes += nbytes;
  return RPCFLOW_OK;
}

static int stream_flush(void *context) {
  uint64_t length;
  uint32_t code, type;
  (void)context;
  if (!answer_nbytes) return RPCFLOW_OK; /* to Shutdown */
  CHECK(answer_nbytes >= 12);
  memcpy(&length, answer, 8);
  CHECK(length == answer_nbytes - 8);
  memcpy(&code, answer + 8, 4);
  CHECK(code == 4 || code == 5 || code == 8);
  if (code == 5) CHECK(answer_nbytes > 28);
  if (code == 4) { /* it may be a handle or an address: to be used */
    CHECK(answer_nbytes >= 20);
    memcpy(&type, answer + answer_nbytes - (answer_nbytes > 20 ? 12 : 4), 4);
    if (type == 4) {
      memcpy(&latest, answer + answer_nbytes - 8, 8);
      seen[answers % SEEN] = latest;
      if (seen_count <= answers % SEEN) seen_count = answers % SEEN + 1;
    }
  }
  answers++;
  answer_nbytes = 0;
  return RPCFLOW_OK;
}

/* ---- the machine */

static uint64_t now;

static uint64_t clock_ns(void) { return now += (now & 3) ? 1000 : 5000000000; }

static int touch(const rpcflow_value *args, int32_t count) {
  int32_t i, j;
  for (i = 0; i < count; i++) {
    if (args[i].type == RPCFLOW_STRING) CHECK(strlen(args[i].u.as_string) < MOST_PACKET_NBYTES);
    if (args[i].type == RPCFLOW_BYTES && args[i].u.as_bytes->nbytes) CHECK(args[i].u.as_bytes->data[0] != 1);
    if (args[i].type == RPCFLOW_TENSOR) {
      rpcflow_tensor *t = args[i].u.as_tensor;
      uint64_t nbytes = (uint64_t)t->dtype.bits * t->dtype.lanes;
      CHECK(t->device.type == 1 && !t->strides);
      for (j = 0; j < t->ndim; j++) nbytes = nbytes && t->shape[j] ? nbytes * (uint64_t)t->shape[j] : 0;
      CHECK((nbytes + 7) / 8 <= MEMORY_NBYTES);
      memset((uint8_t *)t->data + t->byte_offset, 0x5a, (size_t)((nbytes + 7) / 8));
    }
  }
  return ++calls > MOST_CALLS ? rpcflow_raise("RuntimeError", "enough") : 0;
}

static int echo(void *self, const rpcflow_value *args, int32_t count, rpcflow_value *result) {
  (void)self;
  if (count) *result = args[0];
  return touch(args, count);
}

static int write_all(void *self, const rpcflow_value *args, int32_t count, rpcflow_value *result) {
  (void)self, (void)result;
  return touch(args, count);
}

static int fail(void *self, const rpcflow_value *args, int32_t count, rpcflow_value *result) {
  (void)self, (void)args, (void)count, (void)result;
  calls++;
  return -1;
}

static int compiled(void *self, const rpcflow_value *args, int32_t count, rpcflow_value *result) {
  int32_t i;
  void *space = TVMBackendAllocWorkspace(1, 0, 512 * (uint64_t)count, 2, 32);
  const char *parts[] = {"a part", NULL, " and another"};
  if (!space) return -1;
  memset(space, 1, 512 * (size_t)count);
  if (count != 3 && TVMBackendFreeWorkspace(1, 0, space)) return -1; /* else it leaks until the session ends */
  for (i = 0; i < count; i++) CHECK(args[i].type != RPCFLOW_POINTER || !args[i].u.as_pointer);
  if (count == 5) TVMFFIErrorSetRaisedFromCStr("TypeError", "five");
  if (count == 6) TVMFFIErrorSetRaisedFromCStrParts("TypeError", parts, 3);
  return count < 5 ? write_all(self, args, count, result) : -1;
}

static void nothing(void) { CHECK(!TVMFFIEnvModRegisterSystemLibSymbol("__tvm_ffi_not_while_loading", NULL)); }

/* The image has been checked: let it refer to us, for there is no code in it. */
static void code_written(void *code, size_t nbytes) {
  uint8_t *table = (uint8_t *)code + rpcflow_core.args[1].u.as_int;
  uintptr_t functions, initialisers, i, own;
  (void)nbytes;
  memcpy(&functions, table, sizeof own);
  memcpy(&initialisers, table + sizeof own, sizeof own);
  for (i = 0; i < initialisers; i++) {
    own = (uintptr_t)nothing;
    memcpy(table + (2 + i) * sizeof own, &own, sizeof own);
  }
  for (i = 0; i < functions; i++) {
    own = (uintptr_t)compiled;
    memcpy(table + (2 + initialisers + 2 * i) * sizeof own, &own, sizeof own);
  }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t nbytes) {
  static const rpcflow_stream stream = {NULL, stream_read, stream_write, stream_flush};
  static rpcflow_machine machine;
  int status;
  if (!machine.memory) {
    machine.memory = aligned_alloc(RPCFLOW_ALIGNMENT, MEMORY_NBYTES);
    machine.memory_nbytes = MEMORY_NBYTES;
    machine.clock_ns = clock_ns;
    machine.code_written = code_written;
    machine.build_id = (const uint8_t *)"build";
    machine.build_id_nbytes = 5;
    memset(machine.memory, 0, MEMORY_NBYTES);
    rpcflow_start(&machine);
    CHECK(!rpcflow_register("echo", echo) && !rpcflow_register("write", write_all) && !rpcflow_register("fail", fail));
    CHECK(!TVMFFIEnvModRegisterSystemLibSymbol("__tvm_ffi_compiled", (void *)(uintptr_t)compiled));
    CHECK(!TVMFFIEnvModRegisterSystemLibSymbol("__tvm_ffi__library_ctx", NULL));
  }
  input = data;
  input_nbytes = nbytes;
  packet_nbytes = packet_begin = answer_nbytes = 0;
  requests = answers = calls = seen_count = 0;
  lost_count = 0;
  now = latest = 0;
  loading = 0;
  status = rpcflow_serve(&stream);
  CHECK(!answer_nbytes && !rpcflow_core.blocks_count);
  if (!lost_count) CHECK(status == RPCFLOW_ENDED ? answers == requests : answers == requests - 1); /* but to Shutdown */
  return 0;
}
