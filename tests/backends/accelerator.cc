// SPDX-License-Identifier: Apache-2.0
//
// An accelerator for the tests of rpcflow/backends/delegated.py: two devices over malloc, whose addresses mean nothing
// to the host, and a library of functions for them.

#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/error.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/reflection/registry.h>

#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <set>
#include <string>

namespace {

namespace ffi = tvm::ffi;

constexpr int64_t kDevices = 2;
constexpr int64_t kElsewhere = int64_t{1} << 50;  // added to pointers: whoever follows one of ours faults
constexpr int64_t kMostBytes = int64_t{1} << 40;

struct Accelerator {
  std::map<int64_t, int64_t> blocks;  // nbytes by address
  std::set<int64_t> streams;
  int64_t last_stream = 0;
  int64_t current_stream = 0;
  std::chrono::steady_clock::time_point began;

  static Accelerator& Get() {
    static Accelerator made;
    return made;
  }

  static void CheckDevice(int64_t dev_id) {
    if (dev_id < 0 || dev_id >= kDevices) TVM_FFI_THROW(ValueError) << "no device " << dev_id;
  }

  void CheckStream(int64_t stream) {
    if (stream && !streams.count(stream)) TVM_FFI_THROW(ValueError) << "no such stream: " << stream;
  }

  char* Host(int64_t address, int64_t nbytes) {
    auto after = blocks.upper_bound(address);
    if (after != blocks.begin()) {
      auto block = std::prev(after);
      if (address + nbytes <= block->first + block->second) return reinterpret_cast<char*>(address - kElsewhere);
    }
    TVM_FFI_THROW(ValueError) << nbytes << " bytes at " << address << " are not in the accelerator's memory";
  }

  int64_t Allocate(int64_t dev_id, int64_t nbytes, int64_t alignment, ffi::String scope) {
    CheckDevice(dev_id);
    std::string kind = scope;
    if (!kind.empty() && kind != "vtcm") {
      TVM_FFI_THROW(ValueError) << "the accelerator has no memory of the scope '" << kind << "'";
    }
    void* made = nullptr;
    if (nbytes > kMostBytes || posix_memalign(&made, static_cast<size_t>(alignment), static_cast<size_t>(nbytes))) {
      return 0;
    }
    int64_t address = reinterpret_cast<int64_t>(made) + kElsewhere;
    blocks[address] = nbytes;
    return address;
  }

  void Free(int64_t dev_id, int64_t address) {
    CheckDevice(dev_id);
    if (!blocks.erase(address)) TVM_FFI_THROW(ValueError) << "nothing was allocated at " << address;
    free(reinterpret_cast<void*>(address - kElsewhere));
  }

  ffi::Any Attribute(int64_t dev_id, int64_t kind) {
    CheckDevice(dev_id);
    if (kind == 1) return int64_t{256};
    if (kind == 5) return ffi::String("Accelerator " + std::to_string(dev_id));
    if (kind == 8) return ffi::String("[256, 1, 1]");
    if (kind == 14) return kMostBytes;
    return nullptr;
  }
};

float* Data(ffi::TensorView x) {
  if (x.device().device_type != kDLExtDev) TVM_FFI_THROW(ValueError) << "a tensor of the accelerator's, please";
  return reinterpret_cast<float*>(
      Accelerator::Get().Host(reinterpret_cast<int64_t>(x.data_ptr()), x.numel() * int64_t{sizeof(float)}));
}

void Scale(ffi::TensorView x, double factor) {
  float* data = Data(x);
  for (int64_t i = 0; i < x.numel(); ++i) data[i] *= static_cast<float>(factor);
}

ffi::Tensor Same(ffi::Tensor x) { return x; }

int64_t Live() { return static_cast<int64_t>(Accelerator::Get().blocks.size()); }

int64_t CurrentStream() { return Accelerator::Get().current_stream; }

}  // namespace

TVM_FFI_STATIC_INIT_BLOCK() {
  Accelerator& it = Accelerator::Get();
  ffi::reflection::GlobalDef()
      .def("rpcflow.ext_dev.count", []() { return kDevices; })
      .def("rpcflow.ext_dev.allocate",
           [&it](int64_t dev_id, int64_t nbytes, int64_t alignment, ffi::String scope) {
             return it.Allocate(dev_id, nbytes, alignment, scope);
           })
      .def("rpcflow.ext_dev.free", [&it](int64_t dev_id, int64_t address) { it.Free(dev_id, address); })
      .def("rpcflow.ext_dev.write",
           [&it](int64_t dev_id, int64_t address, void* host, int64_t nbytes, int64_t stream) {
             it.CheckStream(stream);
             std::memcpy(it.Host(address, nbytes), host, static_cast<size_t>(nbytes));
           })
      .def("rpcflow.ext_dev.read",
           [&it](int64_t dev_id, int64_t address, void* host, int64_t nbytes, int64_t stream) {
             it.CheckStream(stream);
             std::memcpy(host, it.Host(address, nbytes), static_cast<size_t>(nbytes));
           })
      .def("rpcflow.ext_dev.copy",
           [&it](int64_t dev_id, int64_t source, int64_t target, int64_t nbytes, int64_t stream) {
             it.CheckStream(stream);
             std::memmove(it.Host(target, nbytes), it.Host(source, nbytes), static_cast<size_t>(nbytes));
           })
      .def("rpcflow.ext_dev.attribute", [&it](int64_t dev_id, int64_t kind) { return it.Attribute(dev_id, kind); })
      .def("rpcflow.ext_dev.create_stream",
           [&it](int64_t dev_id) {
             it.streams.insert(it.last_stream += 0x1000);
             return it.last_stream;
           })
      .def("rpcflow.ext_dev.free_stream",
           [&it](int64_t dev_id, int64_t stream) {
             it.CheckStream(stream);
             if (stream == it.current_stream) TVM_FFI_THROW(ValueError) << "the current stream is not freed";
             it.streams.erase(stream);
           })
      .def("rpcflow.ext_dev.synchronize", [&it](int64_t dev_id, int64_t stream) { it.CheckStream(stream); })
      .def("rpcflow.ext_dev.set_device", [](int64_t dev_id) { Accelerator::CheckDevice(dev_id); })
      .def("rpcflow.ext_dev.set_stream",
           [&it](int64_t dev_id, int64_t stream) {
             it.CheckStream(stream);
             it.current_stream = stream;
           })
      .def("rpcflow.ext_dev.start_timer",
           [&it](int64_t dev_id, int64_t stream) { it.began = std::chrono::steady_clock::now(); })
      .def("rpcflow.ext_dev.stop_timer",
           [&it](int64_t dev_id, int64_t stream) {
             return std::chrono::duration<double>(std::chrono::steady_clock::now() - it.began).count();
           })
      .def("accelerator.scale", Scale)
      .def("accelerator.same", Same)
      .def("accelerator.live", Live)
      .def("accelerator.stream", CurrentStream);
}

TVM_FFI_DLL_EXPORT_TYPED_FUNC(scale, Scale);
