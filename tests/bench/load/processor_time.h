#pragma once

#include <sys/types.h>

#include "absl/status/statusor.h"

namespace nibble {

// What a process of this machine has used so far, all its threads, in the kernel and outside.
absl::StatusOr<double> ProcessorSeconds(pid_t pid);

}  // namespace nibble
