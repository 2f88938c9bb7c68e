/* SPDX-License-Identifier: Apache-2.0 */
/* Answers, as they go on the line. */
#include <string.h>

#include "core.h"

void rpcflow_write(const void *data, size_t nbytes) {
  if (rpcflow_core.status == RPCFLOW_OK && nbytes)
    rpcflow_core.status = rpcflow_core.stream->write(rpcflow_core.stream->context, data, nbytes);
}

static uint8_t *put(uint8_t *at, uint64_t value, size_t nbytes) {
  memcpy(at, &value, nbytes);
  return at + nbytes;
}

/* Length, code and number of values come in front of what `head` has from byte 16 to `at`. */
void rpcflow_write_values(uint8_t *head, const uint8_t *at, uint32_t code, uint32_t count, const void *data,
                          size_t nbytes) {
  put(put(put(head, (size_t)(at - head) - 8 + nbytes, 8), code, 4), count, 4);
  rpcflow_write(head, (size_t)(at - head));
  rpcflow_write(data, nbytes);
}

void rpcflow_answer_error(void) {
  uint8_t head[28], *at;
  if (!rpcflow_core.message_nbytes) rpcflow_error("it failed, and did not say why");
  at = put(put(head + 16, RPCFLOW_STRING, 4), rpcflow_core.message_nbytes, 8);
  rpcflow_write_values(head, at, 5, 1, rpcflow_core.message, rpcflow_core.message_nbytes);
}

int rpcflow_untravelled(int32_t type) {
  return rpcflow_error("the function's result, of type %lu, cannot travel", (unsigned long)type);
}

int rpcflow_answer(int is_call) {
  const rpcflow_value *value = &rpcflow_core.result;
  int32_t leading = value->type, type = leading;
  uint64_t contents = (uint64_t)value->u.as_int;
  const void *data = NULL;
  size_t nbytes = 0;
  uint8_t head[40], *at = head + 16;
  switch (type) {
    case RPCFLOW_DTYPE:
      contents &= 0xffffffffU;
      break;
    case RPCFLOW_POINTER:
      if (is_call) contents = (uintptr_t)value->u.as_pointer;
      break;
    case RPCFLOW_FUNCTION_OBJECT:
    case RPCFLOW_MODULE_OBJECT:
      type = RPCFLOW_POINTER;
      break;
    case RPCFLOW_STRING:
      data = value->u.as_string;
      if (!data) return rpcflow_untravelled(type);
      nbytes = rpcflow_length(value->u.as_string);
      break;
    case RPCFLOW_BYTES:
      if (!value->u.as_bytes) return rpcflow_untravelled(type);
      data = value->u.as_bytes->data;
      nbytes = value->u.as_bytes->nbytes;
      if (!nbytes) data = value; /* no bytes may lie nowhere */
      if (!data) return rpcflow_untravelled(type);
      break;
    case RPCFLOW_SMALL_STRING:
    case RPCFLOW_SMALL_BYTES:
      data = value->u.as_small;
      nbytes = value->small_nbytes;
      if (nbytes > 7) return rpcflow_untravelled(type);
      type -= RPCFLOW_SMALL_STRING - RPCFLOW_STRING;
      break;
    default:
      if (type < RPCFLOW_NONE || type > RPCFLOW_DEVICE) return rpcflow_untravelled(type);
  }
  if (data) {
    contents = nbytes;
    leading = type == RPCFLOW_STRING ? (nbytes > 7 ? RPCFLOW_STRING_OBJECT : RPCFLOW_SMALL_STRING)
                                     : (nbytes > 7 ? RPCFLOW_BYTES_OBJECT : RPCFLOW_SMALL_BYTES);
  }
  if (is_call) at = put(put(at, RPCFLOW_INT, 4), (uint64_t)leading, 8);
  at = put(at, (uint64_t)type, 4);
  if (type != RPCFLOW_NONE) at = put(at, contents, 8);
  rpcflow_write_values(head, at, 4, is_call ? 2 : 1, data, nbytes);
  return 0;
}
