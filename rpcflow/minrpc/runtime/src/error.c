/* SPDX-License-Identifier: Apache-2.0 */
/* Errors in words. */
#include <stdarg.h>
#include <string.h>

#include "core.h"

void rpcflow_error_clear(void) { rpcflow_core.message_nbytes = 0; }

void rpcflow_error_append(const char *text) {
  while (*text && rpcflow_core.message_nbytes < RPCFLOW_MESSAGE_NBYTES)
    rpcflow_core.message[rpcflow_core.message_nbytes++] = *text++;
  if (*text)  /* it does not fit: leave no half of a character */
    while (rpcflow_core.message_nbytes && ((uint8_t)*text & 0xC0) == 0x80)
      text = &rpcflow_core.message[--rpcflow_core.message_nbytes];
}

int rpcflow_error(const char *format, ...) {
  char digits[24];
  va_list args;
  rpcflow_error_clear();
  va_start(args, format);
  for (; *format; format++) {
    char *text = &digits[sizeof digits - 1];
    *text = 0;
    if (*format != '%') {
      *--text = *format;
    } else if (*++format == 's') {
      rpcflow_error_append(va_arg(args, const char *));
      continue;
    } else {
      unsigned long number = va_arg(args, unsigned long);
      format++; /* %lu */
      do *--text = (char)('0' + number % 10);
      while (number /= 10);
    }
    rpcflow_error_append(text);
  }
  va_end(args);
  return -1;
}

/* All limits are named in the same way; `wanted` may be one more than there are. */
int rpcflow_no_room(const char *limit_name, size_t limit, size_t wanted) {
  return rpcflow_error("no room for %lu on this device: %s is %lu", (unsigned long)wanted, limit_name,
                       (unsigned long)limit);
}

int rpcflow_no_device(void) { return rpcflow_error("there is no device here but cpu 0"); }

int rpcflow_raise(const char *kind, const char *message) {
  (void)kind; /* it does not travel in this protocol */
  return rpcflow_error("%s", message);
}
