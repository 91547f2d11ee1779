// The `runner` role: a process of its own that holds one model for a RemoteRunner.
#pragma once

#include <functional>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/runner/model_runner.h"

namespace nibble {

struct ServedRunner {
  std::function<absl::StatusOr<std::unique_ptr<ModelRunner>>()> load;
  // Asked after a step that failed: an error says that no later one can succeed in this process.
  std::function<absl::Status()> check_device = [] { return absl::OkStatus(); };
};

// Loads the runner and answers steps over `socket` (messages.h). When its other end is closed the
// process ends, whatever it does: by OK, or in the middle of it. Returns the error, which the other
// end has been told, where it can't go on.
absl::Status ServeRunner(int socket, const ServedRunner& served);

}  // namespace nibble
