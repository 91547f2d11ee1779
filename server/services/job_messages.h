// The store's jobs as nibble.v1's messages.
#pragma once

#include "nibble/v1/quantization.pb.h"
#include "server/jobs/job.h"

namespace nibble {

v1::Job JobMessage(const Job& job);
// `job` is the event's, as it is now.
v1::JobEvent EventMessage(const Job& job, const JobEvent& event);

}  // namespace nibble
