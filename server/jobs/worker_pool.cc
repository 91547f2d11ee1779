#include "server/jobs/worker_pool.h"

#include <utility>

#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "server/jobs/recovery.h"

namespace nibble {

absl::StatusOr<std::unique_ptr<WorkerPool>> WorkerPool::Start(
    std::vector<WorkerSupervisor::Options> workers, JobStore& store, JobNotifier& notifier) {
  auto pool = std::unique_ptr<WorkerPool>(new WorkerPool());
  const WorkerSupervisor::Options& first = workers.front();
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<Job> jobs,
                          TakeBackJobs(store, first.artifacts, "", Interruption::kLost,
                                       "the worker ended with its daemon"));
  for (const Job& job : jobs) {
    first.log(StrCat(job.id, " is ", JobStateName(job.state), ", attempt ", job.attempt));
  }
  NIBBLE_RETURN_IF_ERROR(RemoveOrphans(store, first.artifacts));
  for (WorkerSupervisor::Options& options : workers) {
    NIBBLE_ASSIGN_OR_RETURN(pool->workers_.emplace_back(),
                            WorkerSupervisor::Start(std::move(options), store, notifier));
  }
  return pool;
}

int64_t WorkerPool::DeviceBytes() const {
  int64_t smallest = 0;
  for (const auto& worker : workers_) {
    const int64_t bytes = worker->device_bytes();
    if (bytes > 0 && (smallest == 0 || bytes < smallest)) smallest = bytes;
  }
  return smallest;
}

void WorkerPool::Wake() {
  for (const auto& worker : workers_) worker->WakeWorker();
}

void WorkerPool::Stop() {
  for (const auto& worker : workers_) worker->Stop();
}

}  // namespace nibble
