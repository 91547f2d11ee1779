// The `worker` role: a process of its own that claims jobs and runs them, one at a time.
#pragma once

#include <functional>
#include <string>

#include "absl/status/status.h"
#include "quant/base/device.h"
#include "quant/kernels/device/devices.h"
#include "server/ops/names.h"

namespace nibble {

// Asked after each failed attempt: not OK where the device works no more in this process.
using DeviceCheck = std::function<absl::Status(const Device&)>;

// Runs jobs on `device` until standard input ends; claims them as `name`. Speaks WorkerSupervisor's
// lines over standard input, a socket. Returns what `works` says when that isn't OK: the attempt is
// then no failure of its job, whose lease is left for the supervisor to take back.
absl::Status RunWorker(const DataRoot& root, const std::string& name, const Device& device,
                       DeviceCheck works = CheckDeviceWorks);

}  // namespace nibble
