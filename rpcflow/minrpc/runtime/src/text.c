/* SPDX-License-Identifier: Apache-2.0 */
/* What is needed of strings. */
#include <string.h>

#include "core.h"

int rpcflow_begins(const char *text, const char *prefix) {
  while (*prefix)
    if (*text++ != *prefix++) return 0;
  return 1;
}

int rpcflow_same(const char *one, const char *other) {
  while (*one && *one == *other) one++, other++;
  return *one == *other;
}

int rpcflow_has_nul(const void *data, size_t nbytes) {
  const char *at = (const char *)data;
  while (nbytes--)
    if (!*at++) return 1;
  return 0;
}

size_t rpcflow_length(const char *text) {
  const char *end = text;
  while (*end) end++;
  return (size_t)(end - text);
}

void rpcflow_move(void *to, const void *from, size_t nbytes) {
  uint8_t *target = (uint8_t *)to;
  const uint8_t *source = (const uint8_t *)from;
  if ((uintptr_t)to - (uintptr_t)from >= nbytes && (uintptr_t)from - (uintptr_t)to >= nbytes)
    memcpy(to, from, nbytes);
  else if (target < source)
    while (nbytes--) *target++ = *source++;
  else
    while (nbytes--) target[nbytes] = source[nbytes];
}
