#pragma once

#include <string>

#include "absl/status/status.h"
#include "client/cli/commands.h"

namespace nibble {

// Shows a job's events after `after_sequence` up to its end. An error unless it SUCCEEDED.
absl::Status Watch(Client& client, const Context& context, const std::string& job_id,
                   int64_t after_sequence);

// One job: as JSON, or in words.
absl::Status PrintJob(const Context& context, const v1::Job& job);

}  // namespace nibble
