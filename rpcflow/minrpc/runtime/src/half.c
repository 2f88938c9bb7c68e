/* SPDX-License-Identifier: Apache-2.0 */
/* From float64 to float16, which compiled kernels leave to the compiler's library where the processor cannot; and
 * libgcc's for ARM and RISC-V have no such function. */
#include "core.h"

#define BITS(exponent) ((uint64_t)(1023 + (exponent)) << 52) /* 2 to the power of that, as a double */

uint16_t rpcflow_half(uint64_t bits) {
  uint32_t sign = (uint32_t)(bits >> 48) & 0x8000;
  uint32_t shift = 42, half; /* 52 - 10 bits of the fraction go */
  uint64_t rest, tie;
  bits &= ~((uint64_t)1 << 63);
  if (bits > BITS(1024)) return (uint16_t)(sign | 0x7E00); /* NaN */
  if (bits >= BITS(16)) return (uint16_t)(sign | 0x7C00);
  if (bits < BITS(-25)) return (uint16_t)sign;
  if (bits >= BITS(-14)) {
    bits -= (uint64_t)(1023 - 15) << 52; /* from one exponent's bias to the other's */
  } else { /* subnormal: the fraction's first bit is written out */
    shift += (uint32_t)(1023 - 14) - (uint32_t)(bits >> 52);
    bits = (bits & (((uint64_t)1 << 52) - 1)) | (uint64_t)1 << 52;
  }
  half = (uint32_t)(bits >> shift);
  rest = bits & (((uint64_t)1 << shift) - 1);
  tie = (uint64_t)1 << (shift - 1);
  if (rest > tie || (rest == tie && (half & 1))) half++; /* which may carry into the exponent, up to infinity */
  return (uint16_t)(sign | half);
}

/* The argument comes in integer registers: on ARM whatever the ABI for floats is. */
#if defined(__arm__) || defined(__riscv_float_abi_soft)
#ifdef __cplusplus
extern "C" {
#endif
uint16_t __truncdfhf2(uint64_t bits);
__attribute__((weak)) uint16_t __truncdfhf2(uint64_t bits) { return rpcflow_half(bits); }
#ifdef __cplusplus
}
#endif
#endif
