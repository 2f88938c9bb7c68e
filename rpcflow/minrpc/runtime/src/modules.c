/* SPDX-License-Identifier: Apache-2.0 */
/* Modules that the host has linked for a place in our memory and written there, as a tensor. */
#include <string.h>

#include "core.h"

#if RPCFLOW_MAX_MODULES > 0

#define WORD sizeof(uintptr_t)

static uintptr_t word(const uint8_t *at) {
  uintptr_t value;
  memcpy(&value, at, WORD);
  return value;
}

static int in(const rpcflow_block *block, uintptr_t address) {
  return address - (uintptr_t)rpcflow_core.machine.memory - block->offset < block->nbytes;
}

int rpcflow_is_module(const void *address) {
  const rpcflow_module *module = rpcflow_core.modules;
  for (; module < rpcflow_core.modules + RPCFLOW_MAX_MODULES; module++)
    if (module->references && module->base == address) return 1;
  return 0;
}

void rpcflow_let_go(unsigned place) {
  rpcflow_module *module = &rpcflow_core.modules[place - 1];
  rpcflow_evaluator *evaluator = rpcflow_core.evaluators;
  if (--module->references) return;
  rpcflow_release(module->base);
  for (; evaluator < rpcflow_core.evaluators + RPCFLOW_MAX_EVALUATORS; evaluator++)
    if (evaluator->target.module == place) evaluator->generation = 0; /* the host has freed more than it had */
}

static int outside(size_t i) {
  return rpcflow_error("word %lu of the table, or what it refers to, lies outside the image", (unsigned long)i);
}

int rpcflow_load(void *self, const rpcflow_value *args, int32_t count, rpcflow_value *result) {
  rpcflow_module *module = rpcflow_core.modules, *end = module + RPCFLOW_MAX_MODULES;
  const rpcflow_tensor *tensor;
  const rpcflow_block *block;
  const uint8_t *table;
  size_t room, i, functions, initialisers;
  (void)self;
  if (rpcflow_expect("71", args, count)) return -1;
  tensor = args[0].u.as_tensor;
  block = rpcflow_block_at(tensor->data);
  if (!block || (uintptr_t)tensor->data != (uintptr_t)rpcflow_core.machine.memory + block->offset ||
      tensor->byte_offset || tensor->ndim != 1 || tensor->dtype.code != 1 || tensor->dtype.bits != 8 ||
      tensor->dtype.lanes != 1)
    return rpcflow_error("the image must be a whole tensor of uint8 in one dimension");
  while (module->references)
    if (++module == end)
      return rpcflow_no_room("RPCFLOW_MAX_MODULES", RPCFLOW_MAX_MODULES, RPCFLOW_MAX_MODULES + 1);
  if (args[1].u.as_int < 0 || (uint64_t)args[1].u.as_int > block->nbytes ||
      block->nbytes - (size_t)args[1].u.as_int < 2 * WORD)
    return outside(0);
  table = (const uint8_t *)tensor->data + args[1].u.as_int;
  room = (block->nbytes - (size_t)args[1].u.as_int) / WORD - 2;
  functions = word(table);
  initialisers = word(table + WORD);
  table += 2 * WORD;
  if (functions > 65535 || initialisers > room || 2 * functions > room - initialisers)
    return outside(0);
  for (i = 0; i < initialisers; i++)
    if (!in(block, word(table + i * WORD))) return outside(i + 2);
  for (i = 0; i < functions; i++) {
    const uint8_t *pair = table + (initialisers + 2 * i) * WORD;
    uintptr_t name = word(pair + WORD);
    if (!in(block, word(pair))) return outside(initialisers + 2 * i + 2);
    if (!in(block, name) ||
        !rpcflow_has_nul((const void *)name, block->nbytes - (size_t)(name - (uintptr_t)tensor->data)))
      return outside(initialisers + 2 * i + 3);
  }
  if (rpcflow_core.machine.code_written) rpcflow_core.machine.code_written(tensor->data, block->nbytes);
  rpcflow_core.loading = 1;
  for (i = 0; i < initialisers; i++) ((void (*)(void))word(table + i * WORD))();
  rpcflow_core.loading = 0;
  module->base = (uint8_t *)tensor->data;
  module->functions = table + initialisers * WORD;
  module->count = functions;
  module->references = 1;
  module->generation = ++rpcflow_core.generation;
  result->type = RPCFLOW_MODULE_OBJECT;
  result->u.as_int =
      (int64_t)RPCFLOW_HANDLE(RPCFLOW_HANDLE_MODULE, module - rpcflow_core.modules, 0, module->generation);
  return 0;
}

#else

int rpcflow_is_module(const void *address) {
  (void)address;
  return 0;
}

void rpcflow_let_go(unsigned place) { (void)place; }

#endif
