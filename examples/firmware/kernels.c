/* SPDX-License-Identifier: Apache-2.0 */
/* Two kernels written by hand, as a firmware offers them to hosts. */
#include <rpcflow/runtime.h>

/* The float32 tensor with `ndim` dimensions that argument `i` is to be; NULL, and an error raised, if it is none. */
static const rpcflow_tensor *float32_tensor(const rpcflow_value *args, int32_t count, int32_t i, int32_t ndim) {
  const rpcflow_tensor *tensor;
  if (i >= count || args[i].type != RPCFLOW_TENSOR) {
    (void)rpcflow_raise("TypeError", "three tensors are wanted");
    return NULL;
  }
  tensor = args[i].u.as_tensor;
  if (tensor->dtype.code != 2 || tensor->dtype.bits != 32 || tensor->dtype.lanes != 1) {
    (void)rpcflow_raise("TypeError", "tensors of float32 are wanted");
    return NULL;
  }
  if (tensor->ndim != ndim) {
    (void)rpcflow_raise("ValueError", ndim == 1 ? "tensors of 1 dimension are wanted" : "matrices are wanted");
    return NULL;
  }
  return tensor;
}

static float *data_of(const rpcflow_tensor *tensor) { return (float *)((char *)tensor->data + tensor->byte_offset); }

/* vadd(a, b, out): out = a + b */
static int vadd(void *self, const rpcflow_value *args, int32_t count, rpcflow_value *result) {
  const rpcflow_tensor *a = float32_tensor(args, count, 0, 1), *b, *out;
  float *sum;
  int64_t i;
  (void)self;
  (void)result;
  if (!a || !(b = float32_tensor(args, count, 1, 1)) || !(out = float32_tensor(args, count, 2, 1))) return -1;
  if (a->shape[0] != b->shape[0] || a->shape[0] != out->shape[0]) {
    return rpcflow_raise("ValueError", "the three must have one length");
  }
  sum = data_of(out);
  for (i = 0; i < a->shape[0]; i++) sum[i] = data_of(a)[i] + data_of(b)[i];
  return 0;
}
RPCFLOW_REGISTER(vadd, vadd);

/* matmul(a, b, out): out = a times b */
static int matmul(void *self, const rpcflow_value *args, int32_t count, rpcflow_value *result) {
  const rpcflow_tensor *a = float32_tensor(args, count, 0, 2), *b, *out;
  int64_t rows, inner, columns, i, j, k;
  (void)self;
  (void)result;
  if (!a || !(b = float32_tensor(args, count, 1, 2)) || !(out = float32_tensor(args, count, 2, 2))) return -1;
  rows = a->shape[0];
  inner = a->shape[1];
  columns = b->shape[1];
  if (b->shape[0] != inner || out->shape[0] != rows || out->shape[1] != columns) {
    return rpcflow_raise("ValueError", "the shapes do not fit: (n, k), (k, m) and (n, m) are wanted");
  }
  for (i = 0; i < rows; i++) {
    for (j = 0; j < columns; j++) {
      float sum = 0;
      for (k = 0; k < inner; k++) sum += data_of(a)[i * inner + k] * data_of(b)[k * columns + j];
      data_of(out)[i * columns + j] = sum;
    }
  }
  return 0;
}
RPCFLOW_REGISTER(matmul, matmul);
