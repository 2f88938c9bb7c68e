// SPDX-License-Identifier: Apache-2.0
// Functions that are registered in tvm-ffi's library, with objects of every kind as results.
#include <tvm/ffi/container/shape.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/reflection/registry.h>
#include <tvm/ffi/string.h>

#include <cstdlib>

namespace {

namespace ffi = tvm::ffi;

int alive = 0;

struct Counted {
  void AllocData(DLTensor* tensor) {
    tensor->data = std::malloc(ffi::GetDataSize(*tensor));
    alive++;
  }
  void FreeData(DLTensor* tensor) {
    std::free(tensor->data);
    alive--;
  }
};

ffi::Tensor made(int64_t n) {
  ffi::Tensor tensor = ffi::Tensor::FromNDAlloc(Counted(), ffi::Shape({n, 2}), DLDataType{kDLFloat, 32, 1},
                                                DLDevice{kDLCPU, 0});
  for (int64_t i = 0; i < 2 * n; i++) static_cast<float*>(tensor.data_ptr())[i] = static_cast<float>(i);
  return tensor;
}

struct Column { // of a matrix: not in one piece
  explicit Column(ffi::Tensor whole) : whole(whole) {}
  void AllocData(DLTensor* tensor) {
    tensor->data = whole.data_ptr();
    tensor->strides[0] = 2;
  }
  void FreeData(DLTensor*) {}
  ffi::Tensor whole;
};

ffi::Tensor column(int64_t n) {
  ffi::Tensor whole = made(n);
  return ffi::Tensor::FromNDAlloc(Column(whole), ffi::Shape({whole.size(0)}), whole.dtype(), DLDevice{kDLCPU, 0});
}

TVM_FFI_STATIC_INIT_BLOCK() {
  tvm::ffi::reflection::GlobalDef()
      .def("t.echo", [](ffi::Any value) { return value; })
      .def("t.made", made)
      .def("t.column", column)
      .def("t.alive", [] { return alive; })
      .def("t.counter", [](int64_t start) {
        alive++;
        std::shared_ptr<int64_t> count(new int64_t(start), [](int64_t* it) {
          alive--;
          delete it;
        });
        return ffi::Function::FromTyped([count] { return ++*count; });
      })
      .def("t.twice", [](ffi::Function function) { return function().cast<int64_t>() + function().cast<int64_t>(); })
      .def("t.apply", [](ffi::Function function, ffi::TensorView tensor) { function(tensor, tensor, tensor); })
      .def("t.length", [](ffi::Shape shape) { return static_cast<int64_t>(shape.size()); })
      .def("t.text", [] { return ffi::String("one\0two and more", 16); })
      .def("t.sum", [](ffi::TensorView tensor) {
        double sum = 0;
        for (int64_t i = 0; i < tensor.numel(); i++) sum += static_cast<float*>(tensor.data_ptr())[i];
        return sum;
      })
      .def("t.fail", [](ffi::String words) { TVM_FFI_THROW(ValueError) << words; });
}

}  // namespace
