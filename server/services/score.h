#pragma once

#include <grpcpp/support/server_callback.h>

#include "nibble/v1/inference.pb.h"
#include "server/ops/metrics.h"
#include "server/ops/task_thread.h"
#include "server/registry/registry.h"

namespace nibble {

// The reactor of one Score call; `tasks` prepares it (tokenizing).
grpc::ServerUnaryReactor* StartScore(grpc::CallbackServerContext* context,
                                     const v1::ScoreRequest* request, v1::ScoreResponse* response,
                                     Registry& registry, Metrics& metrics, TaskThread& tasks);

// Values out of range.
absl::Status CheckScore(const v1::ScoreRequest& request);

}  // namespace nibble
