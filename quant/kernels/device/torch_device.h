// A Device as LibTorch's.
#pragma once

#include <ATen/ATen.h>

#include "absl/status/status.h"
#include "quant/base/compute.h"
#include "quant/base/device.h"

namespace nibble {

at::Device TorchDevice(const Device& device);

// FAILED_PRECONDITION unless the device is there. From then on f32 products on CUDA are done in
// f32, not TF32, and bf16 products are summed in f32 throughout: process-wide settings of LibTorch.
absl::Status PrepareDevice(const Device& device);

// In which weights and activations are held: bf16 for kBf16 on CUDA, else f32.
at::ScalarType WorkingType(Compute compute, const Device& device);

// The most that LibTorch has taken of the device's memory in this process so far; 0 on the CPU.
int64_t PeakDeviceBytes(const Device& device);

}  // namespace nibble
