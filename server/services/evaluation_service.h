#pragma once

#include "nibble/v1/evaluation.grpc.pb.h"
#include "server/ops/metrics.h"
#include "server/ops/task_thread.h"
#include "server/registry/registry.h"

namespace nibble {

// Thread-safe; everything given outlives it.
class EvaluationService : public v1::EvaluationService::CallbackService {
 public:
  EvaluationService(Registry& registry, Metrics& metrics);

  grpc::ServerWriteReactor<v1::EvaluatePerplexityResponse>* EvaluatePerplexity(
      grpc::CallbackServerContext* context, const v1::EvaluatePerplexityRequest* request) override;
  grpc::ServerWriteReactor<v1::ProfileActivationsResponse>* ProfileActivations(
      grpc::CallbackServerContext* context, const v1::ProfileActivationsRequest* request) override;

 private:
  Registry& registry_;
  Metrics& metrics_;
  TaskThread tasks_;     // tokenizing and loading: not for an RPC thread
  TaskThread profiles_;  // each to its end
};

}  // namespace nibble
