// What is done about the jobs of workers that are no more.
#pragma once

#include <filesystem>
#include <functional>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/jobs/job_store.h"

namespace nibble {

// Takes back the jobs that `worker` holds (empty: that any worker holds), removing what nobody will
// go on from. Returns the jobs as they are now.
absl::StatusOr<std::vector<Job>> TakeBackJobs(JobStore& store,
                                              const std::filesystem::path& artifacts,
                                              std::string_view worker, Interruption interruption,
                                              std::string_view reason);

// Removes what the attempts at jobs that have ended have left in `artifacts`, such as one cancelled
// while it waited to go on.
absl::Status RemoveOrphans(JobStore& store, const std::filesystem::path& artifacts);

}  // namespace nibble
