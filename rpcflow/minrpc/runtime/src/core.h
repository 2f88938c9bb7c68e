/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of the runtime share: its whole state, and what they do for each other. Nobody else's. */
#ifndef RPCFLOW_CORE_H
#define RPCFLOW_CORE_H

#include "rpcflow/runtime.h"

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "values are kept as they come off the line, which is little-endian"
#endif

#define RPCFLOW_STATIC_ASSERT(condition, name) typedef char rpcflow_assert_##name[(condition) ? 1 : -1]

#define RPCFLOW_KERNEL_PREFIX "__tvm_ffi_"
#define RPCFLOW_KERNEL_PREFIX_NBYTES (sizeof RPCFLOW_KERNEL_PREFIX - 1)

typedef struct {
  const char *name; /* that of a kernel has the prefix */
  rpcflow_function function;
} rpcflow_entry;

typedef struct {
  size_t offset; /* in the machine's memory */
  size_t nbytes;
} rpcflow_block;

/* What of a function's arguments may be passed on. */
enum {
  RPCFLOW_BUILTIN,    /* part of this runtime: takes handles, and gives them */
  RPCFLOW_REGISTERED, /* by hand: takes pointers, which it has to know how to check */
  RPCFLOW_KERNEL,     /* compiled: would take a pointer for the address of a tensor's description */
  RPCFLOW_FOREIGN,    /* registered in a library: takes its objects too */
  RPCFLOW_FOREIGN_KERNEL /* of one of its modules */
};

typedef struct {
  rpcflow_function function;
  void *self;
  uint8_t trust;
  uint8_t module; /* 1 + the place of the loaded module that it is from, or 0 */
} rpcflow_target;

typedef struct {
  uint8_t *base;
  const uint8_t *functions; /* pairs of addresses: the function's, its name's */
  size_t count;
  uint32_t references; /* 0: this place is free */
  uint32_t generation;
} rpcflow_module;

/* What a time evaluator is told in numbers, in the order of its arguments. */
enum {
  RPCFLOW_NUMBER,
  RPCFLOW_REPEAT,
  RPCFLOW_MIN_REPEAT_MS,
  RPCFLOW_LIMIT_ZERO_TIMES,
  RPCFLOW_COOLDOWN_MS,
  RPCFLOW_REPEATS_TO_COOLDOWN,
  RPCFLOW_FLUSH_NBYTES,
  RPCFLOW_SETTINGS
};

typedef struct {
  rpcflow_target target;
  rpcflow_function prepare;
  void *prepare_self;
  uint32_t generation; /* 0: this place is free */
  uint32_t settings[RPCFLOW_SETTINGS];
} rpcflow_evaluator;

RPCFLOW_STATIC_ASSERT(sizeof(rpcflow_value) == 16, value);
RPCFLOW_STATIC_ASSERT(sizeof(rpcflow_tensor) == (sizeof(void *) == 8 ? 48 : 40), tensor);
RPCFLOW_STATIC_ASSERT(sizeof(rpcflow_entry) == 2 * sizeof(void *), entry);
RPCFLOW_STATIC_ASSERT(sizeof(rpcflow_block) == 2 * sizeof(void *), block);
RPCFLOW_STATIC_ASSERT(sizeof(void *) == 8 || sizeof(rpcflow_module) == 20, module);
RPCFLOW_STATIC_ASSERT(sizeof(void *) == 8 || sizeof(rpcflow_evaluator) == 52, evaluator);
RPCFLOW_STATIC_ASSERT(RPCFLOW_PACKET_NBYTES >= 256, packets_hold_the_arguments_of_a_time_evaluator);
RPCFLOW_STATIC_ASSERT(RPCFLOW_TENSOR_NBYTES >= 128, tensors_hold_the_two_of_a_copy);
RPCFLOW_STATIC_ASSERT(RPCFLOW_MAX_ARGS >= 12, arguments_hold_those_of_a_time_evaluator);
RPCFLOW_STATIC_ASSERT(RPCFLOW_MAX_FUNCTIONS < 65536, functions_have_16_bits_of_a_handle);
RPCFLOW_STATIC_ASSERT(RPCFLOW_MAX_MODULES < 255, modules_have_8_bits_of_a_handle);
RPCFLOW_STATIC_ASSERT(RPCFLOW_MAX_EVALUATORS > 0 && RPCFLOW_MAX_EVALUATORS < 255, evaluators_have_8_bits_of_a_handle);
RPCFLOW_STATIC_ASSERT((RPCFLOW_ALIGNMENT & (RPCFLOW_ALIGNMENT - 1)) == 0, alignment_is_a_power_of_2);

/* Everything that is not constant. The buffers come last, so that the rest is within short reach of one register. */
typedef struct {
  rpcflow_machine machine;
  const rpcflow_stream *stream;
  int status;      /* of the stream */
  size_t left;     /* bytes of the packet that are still on the line */
  size_t used;     /* bytes of it in `packet` */
  uint8_t *at;     /* reading of `packet` goes on here */
  uint8_t *end;    /* and ends here */
  int32_t count;   /* of `args` */
  size_t pooled;   /* bytes of `pool` in use */
  size_t message_nbytes;
  size_t functions_count;
  size_t functions_lost; /* for which there was no place */
  size_t blocks_count;
  uint32_t generation; /* the last one given */
  uint8_t begun;       /* InitServer has come */
  uint8_t ended;       /* Shutdown has come */
  uint8_t cut;         /* something was read beyond `end` */
  uint8_t loading;     /* initialisers of a module run */
  uint8_t acknowledge; /* the answer is `result` bytes as they are */
#if RPCFLOW_LIBRARY
  uint8_t object;      /* `result` is the library's */
#endif
  rpcflow_value result;
  rpcflow_bytes result_bytes;
  rpcflow_evaluator evaluators[RPCFLOW_MAX_EVALUATORS];
#if RPCFLOW_MAX_MODULES > 0
  rpcflow_module modules[RPCFLOW_MAX_MODULES];
#endif
  rpcflow_entry functions[RPCFLOW_MAX_FUNCTIONS];
  rpcflow_block blocks[RPCFLOW_MAX_BLOCKS];
  char message[RPCFLOW_MESSAGE_NBYTES];
  rpcflow_value args[RPCFLOW_MAX_ARGS];
  uint64_t pool[(RPCFLOW_TENSOR_NBYTES + 7) / 8];
  uint8_t packet[RPCFLOW_PACKET_NBYTES];
} rpcflow_state;

RPCFLOW_STATIC_ASSERT(sizeof(void *) == 8 || offsetof(rpcflow_state, evaluators) <= 128, state_before_its_tables);

extern rpcflow_state rpcflow_core;

/* text.c: what is needed of strings, in a tenth of the room that usual libraries take for speed. */
int rpcflow_same(const char *one, const char *other);
int rpcflow_begins(const char *text, const char *prefix);
int rpcflow_has_nul(const void *data, size_t nbytes);
size_t rpcflow_length(const char *text);
void rpcflow_move(void *to, const void *from, size_t nbytes); /* they may overlap */

/* error.c: makes the message of a text in which %s and %lu stand for arguments. Returns -1. */
int rpcflow_error(const char *format, ...) __attribute__((format(printf, 1, 2)));
int rpcflow_no_room(const char *limit_name, size_t limit, size_t wanted);
int rpcflow_no_device(void);
void rpcflow_error_clear(void);
void rpcflow_error_append(const char *text);

/* memory.c */
void *rpcflow_allocate(size_t nbytes);    /* NULL: said why */
int rpcflow_release(const void *address); /* -1: no block begins there; says nothing */
const rpcflow_block *rpcflow_block_at(const void *address); /* that the address is in or just behind; or NULL */
size_t rpcflow_free_nbytes(size_t *largest);

/* values.c */
uint64_t rpcflow_take(unsigned nbytes);
int rpcflow_take_tensor(rpcflow_tensor **tensor);
int rpcflow_take_values(void);
int rpcflow_take_end(void); /* nothing may follow; and nothing was cut short */
int rpcflow_cut_short(void);
int rpcflow_expect(const char *signature, const rpcflow_value *args, int32_t count);
size_t rpcflow_tensor_nbytes(const rpcflow_tensor *tensor); /* more than there can be if its shape is senseless */
uint8_t *rpcflow_tensor_place(const rpcflow_tensor *tensor, size_t nbytes); /* NULL: said why */
int rpcflow_check_arguments(int trust);

/* answer.c */
void rpcflow_write(const void *data, size_t nbytes);
int rpcflow_untravelled(int32_t type);
int rpcflow_answer(int is_call);
void rpcflow_answer_error(void);
void rpcflow_write_values(uint8_t *head, const uint8_t *at, uint32_t code, uint32_t count, const void *data,
                          size_t nbytes);

/* functions.c */
uint64_t rpcflow_find(const char *name);
const rpcflow_entry *rpcflow_find_entry(const char *name, int in_system_lib);
int rpcflow_resolve(uint64_t handle, rpcflow_target *target);
int rpcflow_free_handle(uint64_t handle);
int rpcflow_module_function(uint64_t module, const char *name, uint64_t *handle); /* the handle is 0 if there is none */

/* ffi_tvm.c, where there is a library. */
#if RPCFLOW_LIBRARY
uint64_t rpcflow_object_find(const char *name); /* a handle; 0: there is none, or it said why */
int rpcflow_object_in_module(uint64_t module, const char *name, uint64_t *handle);
int rpcflow_object_answer(void); /* `result` is the library's */
/* -1: there is no such handle; says nothing. */
int rpcflow_object_resolve(uint64_t handle, rpcflow_target *target);
int rpcflow_object_argument(rpcflow_value *value); /* it comes in the place of its handle */
int rpcflow_object_free(uint64_t handle);
void *rpcflow_object_take(uint64_t handle); /* the handle ends, its reference goes over to the caller. NULL: as above */
void rpcflow_object_free_all(void);
void rpcflow_object_release(void *object);
void rpcflow_object_drop(const rpcflow_value *value);
uint8_t *rpcflow_object_tensor_place(const rpcflow_tensor *tensor, size_t nbytes); /* NULL: in none of the library's */
void rpcflow_object_raise(void); /* our error becomes the library's: we are in a kernel that it called */
#else
#define rpcflow_object_find(name) ((uint64_t)0)
#define rpcflow_object_free(handle) (-1)
#define rpcflow_object_free_all() ((void)0)
#define rpcflow_object_take(handle) ((void *)NULL)
#define rpcflow_object_release(object) ((void)0)
#define rpcflow_object_drop(value) ((void)0)
#define rpcflow_object_raise() ((void)0)
#endif

/* evaluator.c */
int rpcflow_make_evaluator(void *self, const rpcflow_value *args, int32_t count, rpcflow_value *result);
int rpcflow_evaluate(void *self, const rpcflow_value *args, int32_t count, rpcflow_value *result);
void rpcflow_free_evaluator(rpcflow_evaluator *evaluator);

/* half.c */
uint16_t rpcflow_half(uint64_t bits);

/* modules.c */
int rpcflow_load(void *self, const rpcflow_value *args, int32_t count, rpcflow_value *result);
int rpcflow_is_module(const void *address);
void rpcflow_let_go(unsigned module);

/* Handles: what it is in the lowest byte, then the place in that one's table, the number of a function in it (16 bits),
 * and in the upper half what tells it from others that were in the same place before. */
enum {
  RPCFLOW_HANDLE_BUILTIN = 1,
  RPCFLOW_HANDLE_FUNCTION,
  RPCFLOW_HANDLE_SYSTEM_LIB,
  RPCFLOW_HANDLE_EVALUATOR,
  RPCFLOW_HANDLE_MODULE,
  RPCFLOW_HANDLE_MODULE_FUNCTION,
  RPCFLOW_HANDLE_OBJECT
};

#define RPCFLOW_HANDLE(kind, place, index, generation)                                                       \
  (((uint64_t)(generation) << 32) | ((uint32_t)(index) << 16) | ((uint32_t)(place) << 8) | (uint32_t)(kind))

#endif
