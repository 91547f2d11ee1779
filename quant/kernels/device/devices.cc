#include "quant/kernels/device/devices.h"

#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/CachingDeviceAllocator.h>

#include "quant/base/strings.h"
#include "quant/base/torch_status.h"
#include "quant/kernels/device/torch_device.h"

namespace nibble {

absl::Status CheckDevice(const Device& device) {
  if (!device.is_cuda()) return absl::OkStatus();
  const int devices = at::detail::getCUDAHooks().getNumGPUs();
  if (device.index < devices) return absl::OkStatus();
  return absl::FailedPreconditionError(StrCat("device: found ", DeviceName(device),
                                              ", expected cpu or one of the ", devices,
                                              " CUDA devices that this process can use"));
}

int64_t DeviceBytes(const Device& device) {
  if (!device.is_cuda()) return 0;
  const at::Device on = TorchDevice(device);
  at::globalContext().lazyInitDevice(on.type());
  return static_cast<int64_t>(c10::getDeviceAllocator(on.type())->getMemoryInfo(on.index()).second);
}

absl::Status CheckDeviceWorks(const Device& device) {
  if (!device.is_cuda()) return absl::OkStatus();
  return CatchTorch([&] {
    at::detail::getCUDAHooks().deviceSynchronize(static_cast<c10::DeviceIndex>(device.index));
    return absl::OkStatus();
  });
}

}  // namespace nibble
