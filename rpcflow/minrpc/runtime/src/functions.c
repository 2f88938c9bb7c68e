/* SPDX-License-Identifier: Apache-2.0 */
/* What can be called: functions of this runtime, registered ones, kernels linked in or loaded; and their handles. */
#include <string.h>

#include "core.h"

static int is_kernel(const char *name) { return rpcflow_begins(name, RPCFLOW_KERNEL_PREFIX); }

static const char *plain(const char *name) { return is_kernel(name) ? name + RPCFLOW_KERNEL_PREFIX_NBYTES : name; }

const rpcflow_entry *rpcflow_find_entry(const char *name, int in_system_lib) {
  const rpcflow_entry *entry = rpcflow_core.functions;
  size_t left;
  for (left = rpcflow_core.functions_count; left; left--, entry++)
    if (rpcflow_same(plain(entry->name), name) && (in_system_lib || !is_kernel(entry->name))) return entry;
  return NULL;
}

int rpcflow_register(const char *name, rpcflow_function function) {
  rpcflow_entry *entry = &rpcflow_core.functions[rpcflow_core.functions_count];
  if (rpcflow_find_entry(plain(name), 1)) return -1;
  if (rpcflow_core.functions_count == RPCFLOW_MAX_FUNCTIONS) {
    rpcflow_core.functions_lost++;
    return -1;
  }
  entry->name = name;
  entry->function = function;
  rpcflow_core.functions_count++;
  return 0;
}

static int packet_limit(void *self, const rpcflow_value *args, int32_t count, rpcflow_value *result) {
  (void)self, (void)args, (void)count;
  result->type = RPCFLOW_INT;
  result->u.as_int = RPCFLOW_COPY_NBYTES;
  return 0;
}

static int build_id(void *self, const rpcflow_value *args, int32_t count, rpcflow_value *result) {
  (void)self, (void)args, (void)count;
  rpcflow_core.result_bytes.data = (const char *)rpcflow_core.machine.build_id;
  rpcflow_core.result_bytes.nbytes = rpcflow_core.machine.build_id_nbytes;
  result->type = RPCFLOW_BYTES;
  result->u.as_bytes = &rpcflow_core.result_bytes;
  return 0;
}

#if !RPCFLOW_LIBRARY
static int system_lib(void *self, const rpcflow_value *args, int32_t count, rpcflow_value *result) {
  (void)self;
  if (rpcflow_expect("", args, count)) return -1; /* there is no prefix to choose by */
  result->type = RPCFLOW_MODULE_OBJECT;
  result->u.as_int = RPCFLOW_HANDLE_SYSTEM_LIB;
  return 0;
}

#endif

static int get_function(void *self, const rpcflow_value *args, int32_t count, rpcflow_value *result) {
  uint64_t handle = 0;
  (void)self;
  if (rpcflow_expect("y8*", args, count) ||
      rpcflow_module_function((uint64_t)args[0].u.as_int, args[1].u.as_string, &handle))
    return -1;
  if (handle) result->type = RPCFLOW_FUNCTION_OBJECT;
  result->u.as_int = (int64_t)handle;
  return 0;
}

static const rpcflow_entry builtins[] = {
    {"tvm.rpc.server.GetCRTMaxPacketSize", packet_limit},
    {"tvm.rpc.server.ModuleGetFunction", get_function},
#if !RPCFLOW_LIBRARY /* else the library has it */
    {"ffi.SystemLib", system_lib},
#endif
    {"runtime.RPCTimeEvaluator", rpcflow_make_evaluator},
#if RPCFLOW_MAX_MODULES > 0
    {"rpcflow.minrpc.load", rpcflow_load},
#endif
    {"rpcflow.minrpc.build_id", build_id}, /* the last one: it may be missing */
};

uint64_t rpcflow_find(const char *name) {
  const rpcflow_entry *entry = rpcflow_find_entry(name, 0);
  size_t i, count = sizeof builtins / sizeof *builtins - (rpcflow_core.machine.build_id ? 0 : 1);
  if (entry) return RPCFLOW_HANDLE(RPCFLOW_HANDLE_FUNCTION, 0, entry - rpcflow_core.functions, 0);
  for (i = 0; i < count; i++)
    if (rpcflow_same(builtins[i].name, name)) return RPCFLOW_HANDLE(RPCFLOW_HANDLE_BUILTIN, 0, i, 0);
  return rpcflow_object_find(name);
}

/* A place in a table, if what the handle stands for is still there. */
static rpcflow_evaluator *evaluator_of(uint64_t handle) {
  uint32_t place = (uint32_t)handle >> 8;
  return place < RPCFLOW_MAX_EVALUATORS && rpcflow_core.evaluators[place].generation &&
                 rpcflow_core.evaluators[place].generation == handle >> 32
             ? &rpcflow_core.evaluators[place]
             : NULL;
}

#if RPCFLOW_MAX_MODULES > 0
/* 1 + the place of a loaded module, or 0. */
static unsigned module_of(uint64_t handle) {
  uint32_t place = ((uint32_t)handle >> 8) & 0xff;
  if (place < RPCFLOW_MAX_MODULES && rpcflow_core.modules[place].references &&
      rpcflow_core.modules[place].generation == handle >> 32)
    return place + 1;
  return 0;
}
#endif

static int unknown(void) { return rpcflow_error("there is nothing of that handle, or no longer"); }

int rpcflow_resolve(uint64_t handle, rpcflow_target *target) {
  uint32_t index = (uint32_t)handle >> 16;
  target->self = NULL;
  target->trust = RPCFLOW_BUILTIN;
  target->module = 0;
  switch (handle & 0xff) {
    case RPCFLOW_HANDLE_BUILTIN:
      if (handle >> 32 || index >= sizeof builtins / sizeof *builtins) break;
      target->function = builtins[index].function;
      return 0;
    case RPCFLOW_HANDLE_FUNCTION:
      if (handle >> 32 || index >= rpcflow_core.functions_count) break;
      target->function = rpcflow_core.functions[index].function;
      target->trust = is_kernel(rpcflow_core.functions[index].name) ? RPCFLOW_KERNEL : RPCFLOW_REGISTERED;
      return 0;
    case RPCFLOW_HANDLE_EVALUATOR:
      target->self = evaluator_of(handle);
      if (!target->self) break;
      target->function = rpcflow_evaluate;
      target->trust = evaluator_of(handle)->target.trust;
      return 0;
#if RPCFLOW_MAX_MODULES > 0
    case RPCFLOW_HANDLE_MODULE_FUNCTION: {
      unsigned module = module_of(handle);
      uintptr_t address;
      if (!module || index >= rpcflow_core.modules[module - 1].count) break;
      memcpy(&address, rpcflow_core.modules[module - 1].functions + 2 * index * sizeof address, sizeof address);
      target->function = (rpcflow_function)address;
      target->trust = RPCFLOW_KERNEL;
      target->module = (uint8_t)module;
      return 0;
    }
#endif
#if RPCFLOW_LIBRARY
    case RPCFLOW_HANDLE_OBJECT:
      if (rpcflow_object_resolve(handle, target)) break;
      return 0;
#endif
    default:
      break;
  }
  return unknown();
}

int rpcflow_module_function(uint64_t handle, const char *name, uint64_t *found) {
  *found = 0;
  if (handle == RPCFLOW_HANDLE_SYSTEM_LIB) {
    const rpcflow_entry *entry = rpcflow_find_entry(name, 1);
    if (entry) *found = RPCFLOW_HANDLE(RPCFLOW_HANDLE_FUNCTION, 0, entry - rpcflow_core.functions, 0);
    if (entry || !rpcflow_core.functions_lost) return 0;
    return rpcflow_no_room("RPCFLOW_MAX_FUNCTIONS", RPCFLOW_MAX_FUNCTIONS,
                           RPCFLOW_MAX_FUNCTIONS + rpcflow_core.functions_lost); /* it may be one of those */
  }
#if RPCFLOW_MAX_MODULES > 0
  if ((handle & 0xff) == RPCFLOW_HANDLE_MODULE && module_of(handle)) {
    rpcflow_module *module = &rpcflow_core.modules[module_of(handle) - 1];
    size_t i;
    for (i = 0; i < module->count; i++) {
      uintptr_t text;
      memcpy(&text, module->functions + (2 * i + 1) * sizeof text, sizeof text);
      if (rpcflow_same((const char *)text, name)) {
        module->references++;
        *found = RPCFLOW_HANDLE(RPCFLOW_HANDLE_MODULE_FUNCTION, module_of(handle) - 1, i, module->generation);
        return 0;
      }
    }
    return 0;
  }
#endif
#if RPCFLOW_LIBRARY
  if ((handle & 0xff) == RPCFLOW_HANDLE_OBJECT) return rpcflow_object_in_module(handle, name, found);
#endif
  return unknown();
}

int rpcflow_free_handle(uint64_t handle) {
  rpcflow_target target;
  if (!handle || handle == RPCFLOW_HANDLE_SYSTEM_LIB) return 0;
#if RPCFLOW_MAX_MODULES > 0
  if ((handle & 0xff) == RPCFLOW_HANDLE_MODULE) {
    unsigned module = module_of(handle);
    if (!module) return unknown();
    rpcflow_let_go(module);
    return 0;
  }
#endif
  if ((handle & 0xff) == RPCFLOW_HANDLE_OBJECT) return rpcflow_object_free(handle) ? unknown() : 0;
  if (rpcflow_resolve(handle, &target)) return -1;
  if (target.module) rpcflow_let_go(target.module);
  if (target.self) rpcflow_free_evaluator((rpcflow_evaluator *)target.self);
  return 0;
}
