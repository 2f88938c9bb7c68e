/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Takes the place of ffi.c where the program is linked with the library of tvm-ffi, alone or with TVM's: what is
 * registered there can be called, and its objects travel as handles. The library counts references and has the heap.
 */
#include "core.h"

#if RPCFLOW_LIBRARY
#include <string.h>
#include <tvm/ffi/c_api.h>

RPCFLOW_STATIC_ASSERT(sizeof(rpcflow_value) == sizeof(TVMFFIAny), values_are_those_of_the_library);
RPCFLOW_STATIC_ASSERT(sizeof(rpcflow_tensor) == sizeof(DLTensor), tensors_are_those_of_the_library);
RPCFLOW_STATIC_ASSERT(sizeof(rpcflow_bytes) == sizeof(TVMFFIByteArray), bytes_are_those_of_the_library);
RPCFLOW_STATIC_ASSERT(RPCFLOW_MAX_OBJECTS < 65536, objects_have_16_bits_of_a_handle);

/* An object that the host has a handle of: one reference. */
typedef struct {
  TVMFFIObject *object; /* NULL: this place is free */
  uint32_t generation;
  uint8_t trust; /* of a function */
} kept_object;

static kept_object objects[RPCFLOW_MAX_OBJECTS];
static uint32_t last; /* where a place was found */

/* What is behind the head of an object that is a text, bytes, a tensor or an error. */
static void *contents(const TVMFFIObject *object) { return (void *)(uintptr_t)(object + 1); }

static void release(void *object) {
  if (object) (void)TVMFFIObjectDecRef(object);
}

void rpcflow_object_drop(const rpcflow_value *value) {
  if (value->type >= RPCFLOW_OBJECTS) release(value->u.as_pointer);
}

/* A handle for an object, whose reference goes over to it; 0, which says why, if there are too many. */
static uint64_t keep(void *object, uint8_t trust) {
  uint32_t tries;
  for (tries = 0; tries < RPCFLOW_MAX_OBJECTS; tries++) {
    kept_object *kept = &objects[last = (last + 1) % RPCFLOW_MAX_OBJECTS];
    if (kept->object) continue;
    kept->object = (TVMFFIObject *)object;
    kept->generation = ++rpcflow_core.generation;
    kept->trust = trust;
    return RPCFLOW_HANDLE(RPCFLOW_HANDLE_OBJECT, 0, last, kept->generation);
  }
  release(object);
  rpcflow_error("%lu objects are in use: RPCFLOW_MAX_OBJECTS", (unsigned long)RPCFLOW_MAX_OBJECTS);
  return 0;
}

static kept_object *kept_of(uint64_t handle) {
  uint32_t place = (uint32_t)handle >> 16;
  return (handle & 0xffff) == RPCFLOW_HANDLE_OBJECT && place < RPCFLOW_MAX_OBJECTS && objects[place].object &&
                 objects[place].generation == handle >> 32
             ? &objects[place]
             : NULL;
}

/* The library's error becomes ours. Where it has none, a function of ours that a kernel called has said what it is. */
static int raised(void) {
  TVMFFIObjectHandle error = NULL;
  TVMFFIErrorMoveFromRaised(&error);
  if (error) {
    rpcflow_error("%s", ((const TVMFFIErrorCell *)contents((TVMFFIObject *)error))->message.data);
    release(error);
  }
  return -1;
}

void rpcflow_object_raise(void) {
  rpcflow_core.message[rpcflow_core.message_nbytes < sizeof rpcflow_core.message
                           ? rpcflow_core.message_nbytes
                           : sizeof rpcflow_core.message - 1] = 0;
  TVMFFIErrorSetRaisedFromCStr("RuntimeError", rpcflow_core.message);
}

static int call(void *self, const rpcflow_value *args, int32_t count, rpcflow_value *result) {
  return TVMFFIFunctionCall(self, (TVMFFIAny *)(uintptr_t)args, count, (TVMFFIAny *)result) ? raised() : 0;
}

static int find(const char *name, void **function) {
  TVMFFIByteArray text;
  text.data = name;
  text.size = rpcflow_length(name);
  *function = NULL;
  return TVMFFIFunctionGetGlobal(&text, function) ? raised() : 0;
}

uint64_t rpcflow_object_find(const char *name) {
  void *function;
  rpcflow_error_clear();
  return find(name, &function) || !function ? 0 : keep(function, RPCFLOW_FOREIGN);
}

int rpcflow_object_resolve(uint64_t handle, rpcflow_target *target) {
  kept_object *kept = kept_of(handle);
  if (!kept || kept->object->type_index != kTVMFFIFunction) return -1;
  target->function = call;
  target->self = kept->object;
  target->trust = kept->trust;
  return 0;
}

int rpcflow_object_in_module(uint64_t module, const char *name, uint64_t *handle) {
  static void *get_function;
  kept_object *kept = kept_of(module);
  rpcflow_value args[3], result;
  if (!kept || kept->object->type_index != kTVMFFIModule) return rpcflow_error("there is no module of that handle");
  rpcflow_error_clear();
  if (!get_function && find("ffi.ModuleGetFunction", &get_function)) return -1;
  if (!get_function) return rpcflow_error("the library has no ffi.ModuleGetFunction");
  args[0].type = RPCFLOW_MODULE_OBJECT;
  args[0].u.as_pointer = kept->object;
  args[1].type = RPCFLOW_STRING;
  args[1].u.as_string = name;
  args[2].type = RPCFLOW_BOOL; /* in what it imports as well */
  args[2].u.as_int = 1;
  result.type = RPCFLOW_NONE;
  args[0].small_nbytes = args[1].small_nbytes = args[2].small_nbytes = result.small_nbytes = 0;
  result.u.as_int = 0;
  if (call(get_function, args, 3, &result)) return -1;
  if (result.type == RPCFLOW_FUNCTION_OBJECT) {
    *handle = keep(result.u.as_pointer, RPCFLOW_FOREIGN_KERNEL);
    return *handle ? 0 : -1;
  }
  rpcflow_object_drop(&result);
  return 0;
}

void *rpcflow_object_take(uint64_t handle) {
  kept_object *kept = kept_of(handle);
  void *object = kept ? kept->object : NULL;
  if (kept) kept->object = NULL;
  return object;
}

int rpcflow_object_free(uint64_t handle) {
  void *object = rpcflow_object_take(handle);
  release(object);
  return object ? 0 : -1;
}

void rpcflow_object_release(void *object) { release(object); }

void rpcflow_object_free_all(void) {
  uint32_t i;
  for (i = 0; i < RPCFLOW_MAX_OBJECTS; i++) {
    release(objects[i].object);
    objects[i].object = NULL;
  }
  for (i = 0; i < RPCFLOW_MAX_EVALUATORS; i++)
    if (rpcflow_core.evaluators[i].generation) rpcflow_free_evaluator(&rpcflow_core.evaluators[i]);
}

int rpcflow_object_argument(rpcflow_value *value) {
  kept_object *kept = kept_of((uint64_t)value->u.as_int);
  if (!kept) return -1;
  value->type = kept->object->type_index;
  value->u.as_pointer = kept->object;
  return 0;
}

/* Where the tensors lie that functions have returned. */
uint8_t *rpcflow_object_tensor_place(const rpcflow_tensor *tensor, size_t nbytes) {
  uint32_t i;
  for (i = 0; i < RPCFLOW_MAX_OBJECTS; i++) {
    const rpcflow_tensor *whole;
    size_t room, before;
    if (!objects[i].object || objects[i].object->type_index != kTVMFFITensor) continue;
    whole = (const rpcflow_tensor *)contents(objects[i].object);
    if (whole->device.type != 1) continue;
    room = rpcflow_tensor_nbytes(whole) + (size_t)whole->byte_offset;
    before = (size_t)((uintptr_t)tensor->data - (uintptr_t)whole->data);
    if (before <= room && tensor->byte_offset <= room - before && nbytes <= room - before - tensor->byte_offset)
      return (uint8_t *)tensor->data + tensor->byte_offset;
  }
  return NULL;
}

static uint8_t *put(uint8_t *at, const void *data, size_t nbytes) {
  memcpy(at, data, nbytes);
  return at + nbytes;
}

static uint8_t *put_number(uint8_t *at, uint64_t value, size_t nbytes) { return put(at, &value, nbytes); }

static int is_compact(const rpcflow_tensor *tensor) {
  int64_t expected = 1;
  int32_t i;
  for (i = tensor->ndim - 1; tensor->strides && i >= 0; i--) {
    if (tensor->shape[i] != 1 && tensor->strides[i] != expected) return 0;
    expected *= tensor->shape[i];
  }
  return 1;
}

/* A tensor as it goes on the line, or NULL, which says why not. */
static uint8_t *put_tensor(uint8_t *at, const rpcflow_tensor *tensor) {
  if (!is_compact(tensor)) {
    rpcflow_error("the function's result is a tensor with strides, which does not travel");
    return NULL;
  }
  if (tensor->ndim > RPCFLOW_TENSOR_NBYTES / 8) {
    rpcflow_error("the function's result is a tensor of %lu dimensions", (unsigned long)tensor->ndim);
    return NULL;
  }
  at = put_number(at, RPCFLOW_TENSOR, 4);
  at = put_number(at, (uintptr_t)tensor->data, 8);
  at = put(at, &tensor->device, 8);
  at = put_number(at, (uint32_t)tensor->ndim, 4);
  at = put(at, &tensor->dtype, 4);
  at = put(at, tensor->shape, 8 * (size_t)tensor->ndim);
  return put_number(at, tensor->byte_offset, 8);
}

int rpcflow_object_answer(void) {
  static uint8_t head[96 + RPCFLOW_TENSOR_NBYTES];
  TVMFFIObject *object = (TVMFFIObject *)rpcflow_core.result.u.as_pointer;
  int32_t type = rpcflow_core.result.type;
  uint8_t *at = put_number(put_number(head + 16, RPCFLOW_INT, 4), (uint64_t)type, 8);
  uint32_t count = 2;
  uint64_t handle;
  if (type == RPCFLOW_STRING_OBJECT || type == RPCFLOW_BYTES_OBJECT) {
    const rpcflow_bytes *bytes = (const rpcflow_bytes *)contents(object);
    if (type == RPCFLOW_BYTES_OBJECT) {
      at = put_number(at, RPCFLOW_BYTES, 4);
    } else if (!rpcflow_has_nul(bytes->data, bytes->nbytes)) {
      at = put_number(at, RPCFLOW_STRING, 4);
    } else { /* the other form would be cut there by those who read it */
      at = put_number(put_number(at, RPCFLOW_STRING_OBJECT, 4), RPCFLOW_STRING_OBJECT, 4);
    }
    rpcflow_write_values(head, put_number(at, bytes->nbytes, 8), 4, count, bytes->data, bytes->nbytes);
    release(object);
    return 0;
  }
  if (type == RPCFLOW_TENSOR_OBJECT) {
    at = put_tensor(at, (const rpcflow_tensor *)contents(object));
    if (!at) {
      release(object);
      return -1;
    }
    count = 3;
  }
  handle = keep(object, RPCFLOW_FOREIGN);
  if (!handle) return -1;
  rpcflow_write_values(head, put_number(put_number(at, RPCFLOW_POINTER, 4), handle, 8), 4, count, NULL, 0);
  return 0;
}
#endif
