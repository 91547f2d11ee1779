#include "quant/kernels/device/torch_device.h"

#include <c10/core/CachingDeviceAllocator.h>

#include "quant/base/status_macros.h"
#include "quant/kernels/device/devices.h"

namespace nibble {

at::Device TorchDevice(const Device& device) {
  if (!device.is_cuda()) return at::Device(at::kCPU);
  return {at::kCUDA, static_cast<c10::DeviceIndex>(device.index)};
}

absl::Status PrepareDevice(const Device& device) {
  NIBBLE_RETURN_IF_ERROR(CheckDevice(device));
  if (!device.is_cuda()) return absl::OkStatus();
  at::globalContext().setAllowTF32CuBLAS(false);
  at::globalContext().setAllowBF16ReductionCuBLAS(/*allow_reduced_precision=*/false);
  return absl::OkStatus();
}

at::ScalarType WorkingType(Compute compute, const Device& device) {
  return device.is_cuda() && compute == Compute::kBf16 ? at::kBFloat16 : at::kFloat;
}

int64_t PeakDeviceBytes(const Device& device) {
  if (!device.is_cuda()) return 0;
  const at::Device on = TorchDevice(device);
  constexpr auto kAll = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
  return c10::getDeviceAllocator(on.type())->getDeviceStats(on.index()).reserved_bytes[kAll].peak;
}

}  // namespace nibble
