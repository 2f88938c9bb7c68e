/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The machine's memory, given out first fit. Where blocks lie is kept in a table sorted by address and not in the
 * memory itself, where a kernel that writes too far would change it.
 */
#include "core.h"

static size_t rounded(size_t offset) { return (offset + RPCFLOW_ALIGNMENT - 1) & ~(size_t)(RPCFLOW_ALIGNMENT - 1); }

/* Where the gap before block i, or behind the last one, begins and ends. */
static size_t gap_begin(size_t i) {
  const rpcflow_block *before = rpcflow_core.blocks + i;
  if (!i) return 0;
  before--;
  return before->offset + rounded(before->nbytes ? before->nbytes : 1); /* no bytes have an address of their own too */
}

static size_t gap_end(size_t i) {
  return i < rpcflow_core.blocks_count ? rpcflow_core.blocks[i].offset
                                       : rpcflow_core.machine.memory_nbytes & ~(size_t)(RPCFLOW_ALIGNMENT - 1);
}

size_t rpcflow_free_nbytes(size_t *largest) {
  size_t sum = 0, i;
  *largest = 0;
  for (i = 0; i <= rpcflow_core.blocks_count; i++) {
    size_t gap = gap_end(i) - gap_begin(i);
    sum += gap;
    if (gap > *largest) *largest = gap;
  }
  return sum;
}

void *rpcflow_allocate(size_t nbytes) {
  size_t i, largest, sum;
  if (rpcflow_core.blocks_count == RPCFLOW_MAX_BLOCKS) {
    rpcflow_no_room("RPCFLOW_MAX_BLOCKS", RPCFLOW_MAX_BLOCKS, RPCFLOW_MAX_BLOCKS + 1);
    return NULL;
  }
  for (i = 0; i <= rpcflow_core.blocks_count; i++) {
    rpcflow_block *block = &rpcflow_core.blocks[i];
    size_t begin = gap_begin(i), end = gap_end(i);
    if (end > begin && nbytes <= end - begin) {
      rpcflow_move(block + 1, block, (rpcflow_core.blocks_count++ - i) * sizeof *block);
      block->offset = begin;
      block->nbytes = nbytes;
      return (uint8_t *)rpcflow_core.machine.memory + begin;
    }
  }
  sum = rpcflow_free_nbytes(&largest);
  rpcflow_error("out of memory: %lu bytes asked for, %lu free, the largest piece %lu", (unsigned long)nbytes,
                (unsigned long)sum, (unsigned long)largest);
  return NULL;
}

const rpcflow_block *rpcflow_block_at(const void *address) {
  size_t offset = (size_t)((uintptr_t)address - (uintptr_t)rpcflow_core.machine.memory);
  size_t low = 0, high = rpcflow_core.blocks_count;
  while (low < high) { /* the first block that begins behind the address */
    size_t middle = (low + high) / 2;
    if (rpcflow_core.blocks[middle].offset > offset)
      high = middle;
    else
      low = middle + 1;
  }
  if (!low || offset - rpcflow_core.blocks[low - 1].offset > rpcflow_core.blocks[low - 1].nbytes) return NULL;
  return &rpcflow_core.blocks[low - 1];
}

int rpcflow_release(const void *address) {
  const rpcflow_block *block = rpcflow_block_at(address);
  size_t i;
  if (!block || block->offset != (size_t)((uintptr_t)address - (uintptr_t)rpcflow_core.machine.memory)) return -1;
  i = (size_t)(block - rpcflow_core.blocks);
  rpcflow_move(&rpcflow_core.blocks[i], block + 1, (--rpcflow_core.blocks_count - i) * sizeof *block);
  return 0;
}
