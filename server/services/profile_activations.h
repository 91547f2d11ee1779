// EvaluationService.ProfileActivations.
#pragma once

#include "nibble/v1/evaluation.grpc.pb.h"
#include "server/ops/metrics.h"
#include "server/ops/names.h"
#include "server/ops/task_thread.h"

namespace nibble {

// A stream that profiles on `tasks`, one call after another; everything given outlives it.
grpc::ServerWriteReactor<v1::ProfileActivationsResponse>* ProfileActivations(
    const v1::ProfileActivationsRequest& request, const DataRoot& root, TaskThread& tasks,
    Metrics& metrics);

}  // namespace nibble
