// The `worker` role: a process of its own that claims jobs and runs them, one at a time.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "quant/base/device.h"
#include "server/ops/names.h"

namespace nibble {

// Runs jobs on `device` until standard input ends; claims them as `name`. Speaks WorkerSupervisor's
// lines over standard input, a socket.
absl::Status RunWorker(const DataRoot& root, const std::string& name, const Device& device);

}  // namespace nibble
