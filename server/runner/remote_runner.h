// A runner in a supervised process of its own, so that its crash, a lost device or a lack of memory
// ends no more than one step.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/runner/model_runner.h"

namespace nibble {

struct RemoteRunnerOptions {
  // argv of a child that calls ServeRunner on its standard input; the first is a path. kv_bytes is
  // 0 at first; of one that is started again the bytes of the first one's KV pool, which it must
  // hold.
  std::function<std::vector<std::string>(int64_t kv_bytes)> command;
  std::vector<std::string> environment;  // "NAME=value", added to ours
  // A child that has died so often without a step between is started again only once the last death
  // is `patience` ago.
  int deaths_in_a_row = 3;
  absl::Duration patience = absl::Minutes(1);
  // Called by the thread that steps.
  std::function<void()> on_restart = [] {};
  std::function<void(std::string_view line)> log = [](std::string_view) {};
};

// Starts the child and waits until it has loaded the model: the load's own status where that fails,
// UNAVAILABLE where the child dies. The child ends with the runner, and with this process, however
// that ends.
//
// A step in which the child dies is UNAVAILABLE and says how the child ended. The next one starts
// it again, or says why not; its KV cache is another one (kv_epoch).
absl::StatusOr<std::unique_ptr<ModelRunner>> MakeRemoteRunner(RemoteRunnerOptions options);

}  // namespace nibble
