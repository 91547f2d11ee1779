#pragma once

#include <grpcpp/support/server_callback.h>

#include "nibble/v1/inference.pb.h"
#include "server/ops/metrics.h"
#include "server/ops/task_thread.h"
#include "server/registry/registry.h"

namespace nibble {

// The reactor of one Generate stream; `tasks` prepares it (tokenizing, loading).
grpc::ServerWriteReactor<v1::GenerateResponse>* StartGenerate(grpc::CallbackServerContext* context,
                                                              const v1::GenerateRequest* request,
                                                              Registry& registry, Metrics& metrics,
                                                              TaskThread& tasks);

// Fields that the request has and this version does not serve, or values out of range.
absl::Status CheckGenerate(const v1::GenerateRequest& request);

}  // namespace nibble
