// The `worker` role: a process of its own that claims jobs and runs them, one at a time.
#pragma once

#include "absl/status/status.h"
#include "server/ops/names.h"

namespace nibble {

// Runs until standard input ends. Speaks WorkerSupervisor's lines over standard input, a socket.
absl::Status RunWorker(const DataRoot& root);

}  // namespace nibble
