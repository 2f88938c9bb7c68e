// SPDX-License-Identifier: Apache-2.0
//
// A DeviceAPI of TVM's runtime for the tests of rpcflow/backends/delegated_tvm.py: two devices over malloc, whose
// addresses mean nothing to the host. With ACCELERATOR_OFFSETS=0 it copies only from a tensor's first byte on, as the
// one for Hexagon does.

#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/reflection/registry.h>
#include <tvm/runtime/device_api.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <set>
#include <string>

namespace {

namespace ffi = tvm::ffi;
using tvm::Device;
using tvm::runtime::DeviceAPI;
using tvm::runtime::DeviceAttrKind;

constexpr intptr_t kElsewhere = intptr_t{1} << 50;

char* Host(const void* address) { return reinterpret_cast<char*>(reinterpret_cast<intptr_t>(address) - kElsewhere); }

class Accelerator final : public DeviceAPI {
 public:
  static Accelerator* Get() {
    static Accelerator made;
    return &made;
  }

  void SetDevice(Device) final {}

  void GetAttr(Device dev, DeviceAttrKind kind, ffi::Any* rv) final {
    switch (kind) {
      case tvm::runtime::kExist:
        *rv = int64_t{dev.device_id < 2};
        break;
      case tvm::runtime::kDeviceName:
        *rv = ffi::String("Accelerator " + std::to_string(dev.device_id));
        break;
      case tvm::runtime::kMaxThreadDimensions:
        *rv = ffi::String("[256, 1, 1]");
        break;
      default:
        break;
    }
  }

  using DeviceAPI::AllocDataSpace;

  void* AllocDataSpace(Device, size_t nbytes, size_t alignment, DLDataType) final {
    void* made = nullptr;
    if (nbytes > (size_t{1} << 40) || posix_memalign(&made, alignment < 64 ? 64 : alignment, nbytes)) {
      TVM_FFI_THROW(MemoryError) << "the accelerator has no room for " << nbytes << " bytes";
    }
    ++live;
    return static_cast<char*>(made) + kElsewhere;
  }

  void* AllocDataSpace(Device dev, int ndim, const int64_t* shape, DLDataType dtype,
                       ffi::Optional<ffi::String> scope) final {
    std::string kind = scope.has_value() ? std::string(scope.value()) : "";
    if (!kind.empty() && kind != "vtcm") {
      TVM_FFI_THROW(ValueError) << "the accelerator has no memory of the scope '" << kind << "'";
    }
    size_t nbytes = (dtype.bits * dtype.lanes + 7u) / 8u;
    for (int i = 0; i < ndim; ++i) nbytes *= static_cast<size_t>(shape[i]);
    return AllocDataSpace(dev, nbytes, 64, dtype);
  }

  void FreeDataSpace(Device, void* address) final {
    --live;
    free(Host(address));
  }

  void* CreateStream(Device) final {
    streams.insert(++last_stream);
    return reinterpret_cast<void*>(last_stream << 12);
  }

  void FreeStream(Device, void* stream) final { streams.erase(Known(stream)); }

  void SetStream(Device, void* stream) final { current_stream = Known(stream); }

  void StreamSync(Device, void* stream) final { Known(stream); }

  int64_t live = 0;
  int64_t current_stream = 0;

 protected:
  void CopyDataFromTo(const void* from, size_t from_offset, void* to, size_t to_offset, size_t nbytes, Device dev_from,
                      Device dev_to, DLDataType, void*) final {
    static const char* offsets = std::getenv("ACCELERATOR_OFFSETS");
    const char* source = static_cast<const char*>(from);
    char* target = static_cast<char*>(to);
    if (offsets && *offsets == '0') {
      if ((from_offset && dev_from.device_type == kDLExtDev) || (to_offset && dev_to.device_type == kDLExtDev)) {
        TVM_FFI_THROW(ValueError) << "the accelerator copies whole tensors only";
      }
    }
    if (dev_from.device_type == kDLExtDev) source = Host(source);
    if (dev_to.device_type == kDLExtDev) target = Host(target);
    std::memcpy(target + to_offset, source + from_offset, nbytes);
  }

 private:
  int64_t Known(void* stream) {
    int64_t number = reinterpret_cast<intptr_t>(stream) >> 12;
    if (number && !streams.count(number)) TVM_FFI_THROW(ValueError) << "no such stream: " << number;
    return number;
  }

  std::set<int64_t> streams;
  int64_t last_stream = 0;
};

void Scale(ffi::TensorView x, double factor) {
  float* data = reinterpret_cast<float*>(Host(x.data_ptr()));
  for (int64_t i = 0; i < x.numel(); ++i) data[i] *= static_cast<float>(factor);
}

ffi::Tensor Same(ffi::Tensor x) { return x; }

}  // namespace

TVM_FFI_STATIC_INIT_BLOCK() {
  ffi::reflection::GlobalDef()
      .def("device_api.ext_dev", []() -> void* { return static_cast<DeviceAPI*>(Accelerator::Get()); })
      .def("accelerator.scale", Scale)
      .def("accelerator.same", Same)
      .def("accelerator.live", []() { return Accelerator::Get()->live; })
      .def("accelerator.stream", []() { return Accelerator::Get()->current_stream; });
}
