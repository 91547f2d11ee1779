// Which devices there are. Torch-free, so that the server can include it.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "quant/base/device.h"

namespace nibble {

// FAILED_PRECONDITION unless this process can use the device.
absl::Status CheckDevice(const Device& device);

// All of its memory; 0 on the CPU. Of a device that CheckDevice has passed; the process takes some
// of that memory for good.
int64_t DeviceBytes(const Device& device);

// INTERNAL with the device's error when it has failed for good (a sticky CUDA error): only another
// process can use it again.
absl::Status CheckDeviceWorks(const Device& device);

}  // namespace nibble
