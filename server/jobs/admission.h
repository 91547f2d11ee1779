// Whether a machine can ever hold a job.
#pragma once

#include "absl/status/status.h"
#include "quant/pipeline/estimate.h"
#include "server/ops/resources.h"

namespace nibble {

// RESOURCE_EXHAUSTED with what was found and what is needed, for what falls short: all of the
// memory, or the disk that is free.
absl::Status CheckFits(const QuantizeEstimate& estimate, const Resources& resources);

}  // namespace nibble
