/* SPDX-License-Identifier: Apache-2.0 */
/* Values off the line: out of the packet into rpcflow_core.args, where nothing of them is trusted yet. */
#include <string.h>

#include "core.h"

uint64_t rpcflow_take(unsigned nbytes) {
  uint64_t value = 0;
  if ((size_t)(rpcflow_core.end - rpcflow_core.at) < nbytes) {
    rpcflow_core.cut = 1;
    rpcflow_core.at = rpcflow_core.end;
    return 0;
  }
  memcpy(&value, rpcflow_core.at, nbytes); /* it may lie at any address */
  rpcflow_core.at += nbytes;
  return value;
}

int rpcflow_cut_short(void) { return rpcflow_error("the packet is shorter than its contents"); }

int rpcflow_take_end(void) {
  if (rpcflow_core.cut) return rpcflow_cut_short();
  if (rpcflow_core.at != rpcflow_core.end) return rpcflow_error("the packet is longer than its contents");
  return 0;
}

static void *pool_take(size_t nbytes) {
  uint8_t *taken = (uint8_t *)rpcflow_core.pool + rpcflow_core.pooled;
  if (nbytes > sizeof rpcflow_core.pool - rpcflow_core.pooled) {
    rpcflow_no_room("RPCFLOW_TENSOR_NBYTES", sizeof rpcflow_core.pool, rpcflow_core.pooled + nbytes);
    return NULL;
  }
  rpcflow_core.pooled += (nbytes + 7) & ~(size_t)7;
  return taken;
}

int rpcflow_take_tensor(rpcflow_tensor **tensor) {
  uint64_t data = rpcflow_take(8), device = rpcflow_take(8);
  uint32_t ndim = (uint32_t)rpcflow_take(4), dtype = (uint32_t)rpcflow_take(4), i;
  rpcflow_tensor *made;
  if (ndim > RPCFLOW_TENSOR_NBYTES / 8) return rpcflow_error("a tensor of %lu dimensions", (unsigned long)ndim);
  made = (rpcflow_tensor *)pool_take(sizeof *made + 8 * (size_t)ndim);
  if (!made) return -1;
  made->data = (void *)(data > UINTPTR_MAX ? UINTPTR_MAX : (uintptr_t)data);
  memcpy(&made->device, &device, 8);
  made->ndim = (int32_t)ndim;
  memcpy(&made->dtype, &dtype, 4);
  made->shape = (int64_t *)(made + 1);
  made->strides = NULL;
  for (i = 0; i < ndim; i++) made->shape[i] = (int64_t)rpcflow_take(8);
  made->byte_offset = rpcflow_take(8);
  *tensor = made;
  return 0;
}

/* The contents of a string or of bytes, behind their size; NULL if they are not all there. */
static uint8_t *take_contents(size_t *nbytes) {
  uint64_t size = rpcflow_take(8);
  uint8_t *contents = rpcflow_core.at;
  if (size > (size_t)(rpcflow_core.end - contents)) {
    rpcflow_cut_short();
    return NULL;
  }
  rpcflow_core.at += size;
  *nbytes = (size_t)size;
  return contents;
}

static int take_string(rpcflow_value *value) {
  size_t nbytes = 0;
  uint8_t *contents = take_contents(&nbytes);
  if (!contents) return -1;
  if (rpcflow_has_nul(contents, nbytes)) return rpcflow_error("a text with a NUL in it: bytes may have one");
  rpcflow_move(contents - 8, contents, nbytes); /* over its size, to make room for a NUL */
  contents -= 8;
  contents[nbytes] = 0;
  value->type = RPCFLOW_STRING;
  value->u.as_string = (const char *)contents;
  return 0;
}

static int take_bytes(rpcflow_value *value) {
  size_t nbytes = 0;
  uint8_t *contents = take_contents(&nbytes);
  rpcflow_bytes *bytes;
  if (!contents) return -1;
  bytes = (rpcflow_bytes *)pool_take(sizeof *bytes);
  if (!bytes) return -1;
  bytes->data = (const char *)contents;
  bytes->nbytes = nbytes;
  value->type = RPCFLOW_BYTES;
  value->u.as_bytes = bytes;
  return 0;
}

static int take_value(rpcflow_value *value) {
  uint32_t type = (uint32_t)rpcflow_take(4);
  value->type = (int32_t)type;
  value->small_nbytes = 0;
  value->u.as_int = 0;
  if (type == RPCFLOW_NONE) return 0;
  if (type <= RPCFLOW_DEVICE || type == RPCFLOW_FUNCTION_OBJECT || type == RPCFLOW_MODULE_OBJECT) {
    value->u.as_int = (int64_t)rpcflow_take(8); /* on the line they are as in memory */
    return 0;
  }
  if (type == RPCFLOW_TENSOR) return rpcflow_take_tensor(&value->u.as_tensor);
  if (type == RPCFLOW_SMALL_STRING || type == RPCFLOW_SMALL_BYTES || (int32_t)type >= RPCFLOW_OBJECTS) {
    type = (uint32_t)rpcflow_take(4); /* only this says what follows */
    if (type == RPCFLOW_STRING_OBJECT) return take_string(value);
    if (type == RPCFLOW_BYTES_OBJECT) return take_bytes(value);
#if RPCFLOW_LIBRARY
    if (type == RPCFLOW_OBJECT_REFERENCE) {
      value->type = RPCFLOW_OBJECT_REFERENCE;
      value->u.as_int = (int64_t)rpcflow_take(8);
      return 0;
    }
#endif
  } else if (type == RPCFLOW_STRING) {
    return take_string(value);
  } else if (type == RPCFLOW_BYTES) {
    return take_bytes(value);
  }
  return rpcflow_error("a value of type %lu: there are none here", (unsigned long)type);
}

int rpcflow_take_values(void) {
  uint32_t count = (uint32_t)rpcflow_take(4), i;
  if (count > RPCFLOW_MAX_ARGS) return rpcflow_no_room("RPCFLOW_MAX_ARGS", RPCFLOW_MAX_ARGS, count);
  for (i = 0; i < count; i++)
    if (take_value(&rpcflow_core.args[i])) return -1;
  rpcflow_core.count = (int32_t)count;
  return rpcflow_take_end();
}

/* Each character of a signature is '0' + the type index of an argument, or '*': any. */
int rpcflow_expect(const char *signature, const rpcflow_value *args, int32_t count) {
  int32_t i;
  if (count != (int32_t)rpcflow_length(signature))
    return rpcflow_error("%lu arguments, not %lu", (unsigned long)rpcflow_length(signature), (unsigned long)count);
  for (i = 0; i < count; i++)
    if (signature[i] != '*' && args[i].type != signature[i] - '0')
      return rpcflow_error("argument %lu is of type %lu, not %lu", (unsigned long)i, (unsigned long)args[i].type,
                           (unsigned long)(signature[i] - '0'));
  return 0;
}

size_t rpcflow_tensor_nbytes(const rpcflow_tensor *tensor) {
  size_t bits = (size_t)tensor->dtype.bits * tensor->dtype.lanes, elements = 1, nbytes;
  int32_t i;
  if (!bits) return SIZE_MAX;
  for (i = 0; i < tensor->ndim; i++) { /* what does not fit stays the most there is, unless a 0 follows */
    size_t extent = (uint64_t)tensor->shape[i] > SIZE_MAX ? SIZE_MAX : (size_t)tensor->shape[i];
    if (__builtin_mul_overflow(elements, extent, &elements)) elements = SIZE_MAX;
  }
  /* elements x bits / 8, upwards; elements x bits itself may not fit */
  if (elements == SIZE_MAX || __builtin_mul_overflow(elements / 8, bits, &nbytes) ||
      __builtin_add_overflow(nbytes, (elements % 8 * bits + 7) / 8, &nbytes))
    return SIZE_MAX;
  return nbytes;
}

uint8_t *rpcflow_tensor_place(const rpcflow_tensor *tensor, size_t nbytes) {
  const rpcflow_block *block = rpcflow_block_at(tensor->data);
#if RPCFLOW_LIBRARY
  uint8_t *place = block ? NULL : rpcflow_object_tensor_place(tensor, nbytes);
  if (place) return place;
#endif
  if (tensor->device.type != 1 || tensor->device.id != 0) {
    rpcflow_no_device();
  } else if (!block || rpcflow_is_module((uint8_t *)rpcflow_core.machine.memory + block->offset)) {
    rpcflow_error("a tensor that is not in memory");
  } else {
    size_t offset = (size_t)((uintptr_t)tensor->data - (uintptr_t)rpcflow_core.machine.memory);
    size_t room = block->nbytes - (offset - block->offset);
    if (tensor->byte_offset <= room && nbytes <= room - tensor->byte_offset)
      return (uint8_t *)tensor->data + tensor->byte_offset;
    rpcflow_error("a tensor reaches beyond its memory of %lu bytes", (unsigned long)block->nbytes);
  }
  return NULL;
}

int rpcflow_check_arguments(int trust) {
  int32_t i;
  for (i = 0; i < rpcflow_core.count; i++) {
    rpcflow_value *value = &rpcflow_core.args[i];
    if (value->type == RPCFLOW_TENSOR) {
      uint32_t width = value->u.as_tensor->dtype.bits / 8U;
      const uint8_t *place = rpcflow_tensor_place(value->u.as_tensor, rpcflow_tensor_nbytes(value->u.as_tensor));
      if (!place) return -1;
      if (width > 1 && (width & (width - 1)) == 0 && ((uintptr_t)place & (width - 1)))
        return rpcflow_error("argument %lu: its elements are not aligned", (unsigned long)i);
#if RPCFLOW_LIBRARY
    } else if (value->type >= RPCFLOW_OBJECTS && trust >= RPCFLOW_FOREIGN) {
      if (rpcflow_object_argument(value))
        return rpcflow_error("argument %lu: there is nothing of that handle", (unsigned long)i);
    } else if (value->type == RPCFLOW_POINTER && value->u.as_int && trust == RPCFLOW_FOREIGN_KERNEL) {
      return rpcflow_error("argument %lu: this function cannot take what only has a number", (unsigned long)i);
#endif
    } else if ((value->type >= RPCFLOW_OBJECTS && trust != RPCFLOW_BUILTIN) ||
               (value->type == RPCFLOW_POINTER && value->u.as_int && trust == RPCFLOW_KERNEL)) {
      return rpcflow_error("argument %lu: this function cannot take what only has a number", (unsigned long)i);
    }
  }
  return 0;
}
