// The workers of a daemon, one process each, and the recovery of what earlier ones have left.
#pragma once

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "server/jobs/supervisor.h"

namespace nibble {

// Thread-safe once started.
class WorkerPool {
 public:
  // Takes back the jobs of an earlier daemon's workers, then starts one worker for each of
  // `workers`, which have one `artifacts`. `store` and `notifier` outlive the pool.
  static absl::StatusOr<std::unique_ptr<WorkerPool>> Start(
      std::vector<WorkerSupervisor::Options> workers, JobStore& store, JobNotifier& notifier);

  // All memory of the workers' smallest GPU; 0: there is none, or none has told yet.
  int64_t DeviceBytes() const;
  // A job was submitted or cancelled.
  void Wake();
  // Asks every worker to leave its job and end; the destructor waits for them.
  void Stop();

 private:
  WorkerPool() = default;

  std::vector<std::unique_ptr<WorkerSupervisor>> workers_;
};

}  // namespace nibble
